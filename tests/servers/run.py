"""Runs one command beside servers of its own: `run.py COMMAND [ARGUMENT...]`, used by `make fleet`.

`{kafka}`, `{clickhouse}` and `{elasticsearch}` in the arguments are host:port of each. The servers end with the
command, whose exit code is this program's.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)  # not this folder: its modules bear the drivers' names

from servers.clickhouse import ClickHouse  # noqa: E402
from servers.elasticsearch import Elasticsearch  # noqa: E402
from servers.kafka import Kafka  # noqa: E402
from servers.process import Died, Missing, Server  # noqa: E402

_SERVERS: dict[str, type[Server]] = {"kafka": Kafka, "clickhouse": ClickHouse, "elasticsearch": Elasticsearch}


def main(command: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the `finally`s
    with contextlib.ExitStack() as started:
        for name, make in _SERVERS.items():
            if not any(f"{{{name}}}" in word for word in command):
                continue
            try:
                server = started.enter_context(make())
            except (Missing, Died) as error:
                print(error, file=sys.stderr)
                return 2
            address = server.address.removeprefix("http://")
            print(f"{name} at {address}", flush=True)
            command = [word.replace(f"{{{name}}}", address) for word in command]
        child = subprocess.Popen(command)
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:  # it has heard it, too, and ends by itself
                continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
