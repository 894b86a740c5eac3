"""The kernel is asked to begin with what was written, every few MiB, and never for less."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from bus import logwriter, writeback
from bus.logreader import LogReader
from bus.logwriter import LogWriter
from wire.records import Manifest


def test_it_is_asked_for_each_part_of_the_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(writeback, "begin", lambda fd, offset, size: asked.append((offset, size)))
    monkeypatch.setattr(logwriter, "_BEGIN_EVERY", 1 << 20)
    message = b"LF" + bytes(100_000)
    with LogWriter(tmp_path / "x.lf", Manifest("raw", "0", "r", 1, "test")) as log:
        for _ in range(40):
            log.write(message)
        end = log.next_offset
    assert len(asked) == 3
    assert all(one[0] + one[1] == next[0] for one, next in itertools.pairwise(asked))
    assert asked[0][0] == 0
    assert end - 2 * (1 << 20) < asked[-1][0] + asked[-1][1] <= end


def test_a_hint_that_is_refused_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writeback.begin(-1, 0, 1 << 20)  # no such file
    monkeypatch.setattr(writeback, "_call", None)  # a system that has no such call
    monkeypatch.setattr(logwriter, "_BEGIN_EVERY", 1)
    with LogWriter(tmp_path / "x.lf", Manifest("raw", "0", "r", 1, "test")) as log:
        log.end()
    with LogReader(tmp_path / "x.lf") as reader:
        while reader.read():
            pass
        assert reader.ended
