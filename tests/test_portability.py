"""What only Linux has is taken away, as on macOS: everything imports, records by proxy, and fires all the same."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from http_target import Target
from recordings import even, make_clean

import analytics
import bus
import capture
import cleanse
import drill
import livefire
import mask
import mock
import replay
import wire

PACKAGES = (analytics, bus, capture, cleanse, drill, livefire, mask, mock, replay, wire)

# Loaded by every Python that finds it on its path, so by the children as well.
ELSEWHERE = """
import fcntl, os, select, socket
for module, names in (
    (socket, ("AF_PACKET", "PF_PACKET", "PACKET_OUTGOING")),
    (select, ("epoll",)),
    (fcntl, ("F_SETPIPE_SZ", "F_GETPIPE_SZ")),
    (os, ("fdatasync", "sched_setaffinity", "sched_getaffinity", "memfd_create", "pidfd_open")),
):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "sitecustomize.py").write_text(ELSEWHERE)
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "LIVEFIRE_KEYS": str(tmp_path / "keys.json")}


def test_every_module_imports(elsewhere: dict[str, str]) -> None:
    names = [
        module.name
        for package in PACKAGES
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not module.name.endswith("__main__")
    ]
    program = "import importlib, select, sys\nassert not hasattr(select, 'epoll')\n" + "\n".join(
        f"importlib.import_module({name!r})" for name in names
    )
    done = subprocess.run([sys.executable, "-c", program], env=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(names) > 80


def test_the_ring_is_refused_in_one_line_and_the_proxy_chosen(elsewhere: dict[str, str]) -> None:
    program = (
        "from capture.choose import choose; from capture.settings import RecordSettings\n"
        "pairs = (('127.0.0.1:1', '127.0.0.1:2'),)\n"
        "found = choose(RecordSettings(to='x.lf', proxies=pairs, source='auto'))\n"
        "print(found.kind, found.why)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=elsewhere, capture_output=True, text=True)
    assert done.stdout.startswith("proxy ") and "no AF_PACKET" in done.stdout, done.stderr


def test_a_replay_without_epoll_sends_every_shot(elsewhere: dict[str, str], tmp_path: Path) -> None:
    clean = tmp_path / "clean.lf"
    make_clean(clean, even(60, 100.0))
    with Target(tmp_path) as target:
        done = subprocess.run(
            [sys.executable, "-m", "livefire", "--runs", str(tmp_path / "runs"), "replay", str(clean), "--json",
             "--target", target.url, "--copies", "2", "--spread", "500ms", "--skip-unsafe"],
            env=elsewhere, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        assert summary["planned"] == summary["answered"] == len(target.requests()) == 120, summary
