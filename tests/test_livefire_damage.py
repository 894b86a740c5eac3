"""Who reads a run of which bytes are damaged is told so; a whole run says nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from recordings import id_of

from bus.logfile import FileBus
from livefire.damage import damage_of
from wire import topics
from wire.records import Claim, Failure, Kind, Manifest, Outcome, ShotKey, Verdict

RUN = "01HZZZZZZZZZZZZZZZZZZZZZZZ"


def write_run(runs: Path) -> Path:
    bus = FileBus(runs / RUN)
    keys = [ShotKey(id_of(number), 0, 0, 0, "GET /", 10**9 + number) for number in range(40)]
    with bus.writer(topics.CLAIMS, "w0", Manifest(topics.CLAIMS, "w0", RUN, 1, "t")) as claims:
        claims.write_records((Claim(RUN, "w0", 0, tuple(keys)),))
        claims.end()
    with bus.writer(topics.OUTCOMES, "w0", Manifest(topics.OUTCOMES, "w0", RUN, 1, "t")) as writer:
        for key in keys:
            writer.write_records(
                (
                    Outcome(
                        RUN, key.exchange_id, 0, 0, 0, key.route, Kind.STRESS, key.due_ns, 1, 1, 2, 0, 200,
                        Failure.NONE, 1, 1, Verdict.SAME,
                    ),
                )
            )  # fmt: skip
        writer.end()
    return bus.path(topics.OUTCOMES, "w0")


@pytest.mark.parametrize("command", ["outcomes", "windows"])
def test_damage_is_told_and_the_rest_is_read(tmp_path: Path, command: str) -> None:
    file = write_run(tmp_path)

    def asked() -> tuple[int, str]:
        words = (sys.executable, "-m", "livefire", "--runs", str(tmp_path), command, "--json")
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.count("\n"), done.stderr

    assert damage_of(tmp_path / RUN) == []
    lines, beside = asked()
    assert lines > 0 and beside == ""
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 16] = b"\xff" * 16
    file.write_bytes(data)
    lines, beside = asked()
    assert lines > 0
    assert beside.count("\n") == 1 and f"{file}: 1 damaged place, " in beside and "all else was read" in beside
