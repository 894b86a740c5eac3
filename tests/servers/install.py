"""Fetches the servers that tests start: `make servers`. Quick when all is there; the only place that downloads.

One line a server. Exit code 2 when one could not be had; the others are there then.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)  # not this folder: its modules bear the drivers' names

from servers import clickhouse, jars, java  # noqa: E402
from servers.process import Missing  # noqa: E402

_PACKAGES = HERE.parent.parent / "requirements-servers.txt"


def _kafka() -> str:
    home = java.java_home(17, "Kafka 4", "KAFKA_JAVA_HOME")
    return f"{jars.fetch('kafka')}, runs on {home}"


def _elasticsearch() -> str:
    home = java.java_home(21, "Elasticsearch 9", "ES_JAVA_HOME")
    return f"{jars.fetch('elasticsearch')}, runs on {home}"


def _clickhouse() -> str:
    try:
        return f"{clickhouse.binary()} is there"
    except Missing:
        pass
    install = "apt-get install -y --no-install-recommends clickhouse-server"
    if shutil.which("apt-get") is None:
        raise Missing("ClickHouse's server is not installed, and there is no apt-get here: install clickhouse-server")
    if os.geteuid() != 0:
        raise Missing(f"ClickHouse's server is not installed: sudo {install}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for argv in (("apt-get", "update", "-qq"), (*install.split(), "-qq")):
        if subprocess.run(argv, env=env, stdout=subprocess.DEVNULL, check=False).returncode:
            raise Missing(f"{' '.join(argv)} failed, its words are above")
    return f"{clickhouse.binary()} is new"


def _chdb() -> str:
    if importlib.util.find_spec("chdb") is not None:
        return "the package is there"
    pip = (sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--require-hashes", "--no-deps")
    if subprocess.run((*pip, "-r", str(_PACKAGES)), check=False).returncode:
        raise Missing(f"pip could not install {_PACKAGES.name}, its words are above")
    return "the package is new"


SERVERS: dict[str, Callable[[], str]] = {
    "Kafka": _kafka,
    "Elasticsearch": _elasticsearch,
    "ClickHouse": _clickhouse,
    "chdb": _chdb,
}


def main() -> int:
    missing = 0
    for name, get in SERVERS.items():
        try:
            print(f"{name}: {get()}", flush=True)
        except Missing as error:
            missing += 1
            print(f"{name} is missing. {error}", file=sys.stderr, flush=True)
    return 2 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
