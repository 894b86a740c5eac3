"""`livefire record` into a folder: rotation, a ring that survives kills, a budget."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bus.parts import parts_of
from capture.progress import Progress
from capture.settings import RecordSettings
from livefire.disk import check_to, disk_of, forecast
from livefire.errors import UserError
from livefire.recording import Recording
from livefire.sources import nothing_seen
from wire.config import ConfigError

DEADLINE_S = 20.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


class Recorder:
    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        keys = folder.parent / "keys"
        command = [sys.executable, "-m", "livefire", "--keys", str(keys), "record", "--to", str(folder)]
        self.process = subprocess.Popen(
            [*command, "--mirror", f"127.0.0.1:{self.port}", "--unmasked", "--json", *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        end = time.monotonic() + DEADLINE_S
        while True:
            try:
                self.socket = socket.create_connection(("127.0.0.1", self.port), 1.0)
                return
            except OSError:
                assert time.monotonic() < end and self.process.poll() is None, self.process.communicate()
                time.sleep(0.02)

    def send(self, name: str, size: int = 0) -> None:
        body = random.Random(name).randbytes(size)  # that does not compress
        self.socket.sendall(
            b"POST /%b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (name.encode(), size) + body
        )
        assert self.socket.recv(1000).startswith(b"HTTP/1.1 200")

    def ended(self) -> tuple[str, dict[str, object]]:
        out, err = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0, err
        return err, json.loads(out)


@contextmanager
def recording(folder: Path, *options: str) -> Iterator[Recorder]:
    recorder = Recorder(folder, *options)
    try:
        yield recorder
    finally:
        recorder.socket.close()
        if recorder.process.poll() is None:
            recorder.process.kill()
            recorder.process.wait()
        for pipe in (recorder.process.stdout, recorder.process.stderr):
            assert pipe is not None
            pipe.close()


def names(folder: Path) -> list[str]:
    return [e.request.head.split(b" ")[1].decode()[1:] for e in Recording(folder).exchanges()]


def wait_for(folder: Path, name: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not (folder.is_dir() and list(folder.glob("*.lf")) and name in names(folder)):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_ring_goes_on_after_kills_and_all_that_was_written_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "ring"
    sent = []
    for life in range(2):
        with recording(folder, "--keep-last", "30m", "--rotate", "100kB") as recorder:
            for number in range(6):
                sent.append(f"{life}-{number}")
                recorder.send(sent[-1], 30_000)
            if life == 1:
                recorder.process.send_signal(signal.SIGTERM)
                err, account = recorder.ended()
                assert account["balanced"], err
            else:
                wait_for(folder, sent[-1])
                recorder.process.kill()
                recorder.process.wait()
    assert names(folder) == sent
    found = Recording(folder)
    assert found.account.balanced and found.account.notes["blind"] == 1
    assert len(parts_of(folder)) >= 3 and len(found.warnings) == 0


def test_a_budget_ends_the_recording_with_a_line(tmp_path: Path) -> None:
    file = tmp_path / "r.lf"
    with recording(file, "--max-disk", "1MB") as recorder:
        end = time.monotonic() + DEADLINE_S
        number = 0
        while recorder.process.poll() is None:
            assert time.monotonic() < end
            try:
                recorder.send(str(number), 100_000)
            except (OSError, AssertionError):
                break  # it has ended
            number += 1
            time.sleep(0.05)
        err, account = recorder.ended()
    assert 900_000 < file.stat().st_size < 1_230_000  # the request that passed it is there
    assert re.search(r"stopped: --max-disk 1.0 MB is used up", err), err
    assert account["balanced"] and os.stat(file).st_size <= 2_500_000  # what was on its way is written, too
    assert 5 <= len(names(file)) <= number
    assert not Recording(file).warnings


NOTHING = {"rotate": (), "keep_last": None, "max_disk": None, "processes": 1}


@pytest.mark.parametrize(
    ("options", "to", "says"),
    [
        ({"keep_last": "30m"}, "file", "is a file; --rotate, --keep-last and --processes write a folder"),
        ({}, "folder", "is a folder; a file is written"),
        ({"rotate": ("10",)}, "x", "--rotate: '10' is not a duration: did you mean 10s?"),
        ({"rotate": ("0s",)}, "x", ": at least 1s"),
        ({"max_disk": "0"}, "x", ": at least 1MB"),
        ({"max_disk": "much"}, "x", "--max-disk: 'much' is not a size"),
        ({"rotate": ("5kB",)}, "x", ": at least 100kB"),
        ({"max_disk": "1GB"}, None, "--max-disk is of a recording on this disk (--to)"),
        ({"processes": 2}, None, "--processes writes a folder on this disk"),
    ],
)
def test_what_does_not_fit_together_is_one_line(
    tmp_path: Path, options: dict[str, object], to: str | None, says: str
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    path = tmp_path / to if to is not None else None
    with pytest.raises((UserError, ConfigError), match=re.escape(says)):
        check_to(RecordSettings(to=str(path), **disk_of({**NOTHING, **options}, path)))


def test_what_was_not_seen_is_asked_of_who_should_have_sent_it() -> None:
    assert "is this the interface" in nothing_seen(RecordSettings(to="r.lf"))
    assert "is this the interface" in nothing_seen(RecordSettings(to="r.lf", proxies=(("a:1", "b:2"),), source="auto"))
    assert "--socket: did a service" in nothing_seen(RecordSettings(to="r.lf", socket="/run/tap"))
    assert "inner packets" in nothing_seen(RecordSettings(to="r.lf", vxlan=(":4789",)))


def progress(seconds: float, written: int) -> Progress:
    return Progress(round(seconds * 1e9), "", "", round(seconds * 100), 100.0, 1, written, 0, 0, "", 0, False, written)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_disk_bytes": 10_000_000}, "100 exchanges/s, 10.0 kB/s written: --max-disk 10.0 MB is full in 16.6 min"),
        ({"keep_last_ns": 600 * 10**9, "max_disk_bytes": 10_000_000}, "what is kept takes about 6.0 MB"),
        (
            {"keep_last_ns": 3600 * 10**9, "max_disk_bytes": 10_000_000},
            "--max-disk 10.0 MB holds about 16.7 min of the 60 min to keep: the oldest go first",
        ),
        ({}, "the disk ("),
    ],
)
def test_what_is_said_after_five_seconds(tmp_path: Path, options: dict[str, int], says: str) -> None:
    settings = RecordSettings(to=str(tmp_path / "r.lf"), **options)
    assert says in forecast(settings, progress(0, 0), progress(5, 50_000))
    assert forecast(RecordSettings(to=str(tmp_path / "r.lf")), progress(0, 0), progress(5, 1)).endswith("full in years")
    assert "nothing to tell yet" in forecast(settings, progress(0, 0), progress(5, 0))
