"""A recording in segments: any of them can be read alone, the oldest go, a kill loses nothing but what was in flight."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pcap_build import Conversation

from bus.logfile import LogReader, LogWriter, account_of
from bus.parts import parts_of
from bus.ports import BusError, BusFull
from capture.assembler import Assembler
from capture.output import Output
from capture.segments import Rotation, Segments
from capture.settings import CaptureSettings
from cleanse import learn
from cleanse.app import cleanse
from cleanse.settings import CleanseSettings
from livefire.recording import Recording
from wire import codec
from wire.account import Account
from wire.codec import RecordType
from wire.records import Manifest

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


class Clock:
    def __init__(self) -> None:
        self.now_ns = START

    def __call__(self) -> int:
        return self.now_ns


def manifest(owner: str = "rec", *, masked: bool = True, created_ns: int = START, scale: float = 1.0) -> Manifest:
    return Manifest("raw", "0", owner, created_ns, "test", masked=masked, scale=scale)


class Recorder:
    """Writes numbered exchanges; some are left open between batches, so that there is something in flight."""

    def __init__(self, folder: Path, clock: Clock, rotation: Rotation, process: int = 0, processes: int = 1) -> None:
        self.clock = clock
        made = manifest("another", created_ns=clock())
        self.segments = Segments(folder, made, rotation, process=process, processes=processes, now_ns=clock)
        self.assembler = Assembler("rec", CaptureSettings(), None, b"k")
        self.output = Output(_Direct(self.segments), CaptureSettings(batch_ns=0))
        if self.segments.blind is not None:
            _Direct(self.segments).write_records((), RecordType.ACCOUNT, increment=self.segments.blind)
        self.number = 0

    def exchange(self, name: str, *, answered: bool = True) -> None:
        self.number += 1
        talk = Conversation(client=("10.0.0.1", 1000 + self.number), start_ns=self.clock()).open()
        talk.client(f"GET /{name} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        if answered:
            talk.server(b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n" + random.Random(name).randbytes(200))
        for ts_ns, frame in talk.packets:
            self.assembler.packet(ts_ns, frame, len(frame))
        self.output.pump(self.assembler, self.clock())

    def end(self, reason: str = "done") -> None:
        self.output.end(self.assembler, reason)

    def kill(self) -> None:
        self.segments.close()


class _Direct:
    """A batch writer without the queue."""

    def __new__(cls, log: Segments):  # type: ignore[no-untyped-def]
        from bus.batchwriter import BatchWriter

        class Writer(BatchWriter):
            next_offset = 0
            _name = "segments"

            def write(self, data: bytes) -> int:
                return log.write(data)

            def end(
                self, end: object = None, *, reason: str = "done", sorted: bool = False, stopped_ns: int = 0
            ) -> None:
                log.end(reason=reason)

            def close(self) -> None:
                log.close()

        return Writer()


def names(folder: Path) -> list[str]:
    return [
        e.request.head.split(b" ")[1].decode()[1:]
        for e in sorted(Recording(folder).exchanges(), key=lambda e: e.request_start_ns)
    ]


def total(parts: list[Path]) -> Account:
    found = Account()
    for part in parts:
        mine = account_of(part)
        assert mine.balanced, part
        found.merge(mine)
    return found


def test_a_new_file_by_size_and_by_time_and_all_of_it_is_read_as_one(tmp_path: Path) -> None:
    folder, clock = tmp_path / "r", Clock()
    recorder = Recorder(folder, clock, Rotation(bytes=3000, ns=60 * SECOND))
    for number in range(20):
        clock.now_ns += SECOND
        recorder.exchange(f"e{number:02d}", answered=number != 7)
    before = len(parts_of(folder))
    clock.now_ns += 61 * SECOND
    recorder.exchange("later")
    assert len(parts_of(folder)) == before + 1 >= 5
    recorder.end()
    assert names(folder) == [*(f"e{n:02d}" for n in range(20)), "later"]
    recording = Recording(folder)
    assert not recording.warnings and recording.account.balanced
    assert recording.account.ledger("messages").emitted == 41
    assert {part.stat().st_mode & 0o777 for part in parts_of(folder)} == {0o600}
    result = cleanse(folder, tmp_path / "clean.lf")
    assert result.exchanges == 20  # one was not answered
    with LogReader(parts_of(folder)[1]) as reader:
        ids = reader.manifest.owner_id if reader.manifest else ""
    assert ids == recording.manifest.owner_id


def test_any_segment_may_be_missing(tmp_path: Path) -> None:
    folder, clock = tmp_path / "r", Clock()
    recorder = Recorder(folder, clock, Rotation(bytes=2000))
    for number in range(20):
        clock.now_ns += SECOND
        recorder.exchange(f"e{number}", answered=number % 3 != 0)
    recorder.end()
    parts = parts_of(folder)
    assert total(parts).ledger("messages").in_flight == 0
    assert any(account_of(part).ledger("messages").in_flight for part in parts)  # or this shows nothing
    for gone in parts[1:3]:
        gone.unlink()
    assert Recording(folder).account.balanced


def test_a_ring_of_time_keeps_what_is_young_enough_and_says_what_went(tmp_path: Path) -> None:
    folder, clock = tmp_path / "r", Clock()
    recorder = Recorder(folder, clock, Rotation(keep_ns=100 * SECOND))
    for number in range(300):
        clock.now_ns += SECOND
        recorder.exchange(f"e{number:03d}")
    assert 10 <= len(parts_of(folder)) <= 12
    clock.now_ns += 5 * SECOND
    recorder.segments.tick()
    recorder.end()
    found = names(folder)
    assert found[-1] == "e299" and set(found) >= {f"e{n:03d}" for n in range(200, 300)} and len(found) <= 120
    recording = Recording(folder)
    assert recording.account.balanced
    assert 0 < recording.removed["exchanges"] <= 300 - len(found)
    clock.now_ns += 200 * SECOND
    recorder.segments.tick()
    assert len(parts_of_or_none(folder)) == 0


def test_what_went_is_told_after_a_kill_too(tmp_path: Path) -> None:
    folder, clock = tmp_path / "r", Clock()
    for run in range(3):
        recorder = Recorder(folder, clock, Rotation(keep_ns=100 * SECOND))
        for number in range(150):
            clock.now_ns += SECOND
            recorder.exchange(f"e{run}-{number:03d}")
        if run < 2:
            recorder.kill()
            for part in parts_of(folder):  # a segment's age is that of its file
                os.utime(part, ns=(clock.now_ns, clock.now_ns))
    recorder.end()
    recording = Recording(folder)
    gone = 3 * 150 - len(names(folder))
    assert gone - 11 <= recording.removed["exchanges"] <= gone and gone > 300  # as the last segment began
    assert recording.account.balanced


def parts_of_or_none(folder: Path) -> list[Path]:
    return sorted(folder.glob("raw-*.lf"))


def test_a_ring_within_a_budget_loses_the_oldest_first(tmp_path: Path) -> None:
    folder, clock = tmp_path / "r", Clock()
    recorder = Recorder(folder, clock, Rotation(keep_ns=10_000 * SECOND, max_bytes=20_000))
    for number in range(200):
        clock.now_ns += SECOND
        recorder.exchange(f"e{number:03d}")
        assert sum(part.stat().st_size for part in parts_of(folder)) <= 20_000
    recorder.end()
    found = names(folder)
    assert found == [f"e{n:03d}" for n in range(200 - len(found), 200)] and len(found) > 10


def test_a_full_disk_costs_a_ring_its_oldest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, clock = tmp_path / "r", Clock()
    recorder = Recorder(folder, clock, Rotation(ns=10 * SECOND, keep_ns=1000 * SECOND))
    for number in range(50):
        clock.now_ns += SECOND
        recorder.exchange(f"e{number:02d}")
    from bus.logwriter import LogWriter

    real, had = LogWriter.write, len(parts_of(folder))

    def write(self: LogWriter, data: bytes) -> int:
        if len(parts_of(folder)) >= had - 1:
            raise BusFull("no room")
        return real(self, data)

    monkeypatch.setattr(LogWriter, "write", write)
    recorder.exchange("last")
    monkeypatch.undo()
    recorder.end()
    assert names(folder)[-1] == "last" and names(folder)[0] != "e00"


@pytest.mark.parametrize("keep_ns", [0, 1000 * SECOND])
def test_a_disk_that_is_full_when_a_segment_ends_or_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_ns: int
) -> None:
    folder, clock = tmp_path / "r", Clock()
    recorder = Recorder(folder, clock, Rotation(ns=10 * SECOND, keep_ns=keep_ns))
    for number in range(35):
        clock.now_ns += SECOND
        recorder.exchange(f"e{number:02d}")
    from bus.logwriter import LogWriter

    real, room = LogWriter._append, [sum(part.stat().st_size for part in parts_of(folder)) + 10]

    def append(self: LogWriter, offset: int, *parts: bytes) -> None:
        if sum(part.stat().st_size for part in parts_of_or_none(folder)) + sum(map(len, parts)) > room[0]:
            raise BusFull("no room")
        real(self, offset, *parts)

    monkeypatch.setattr(LogWriter, "_append", append)
    clock.now_ns += 20 * SECOND
    recorder.segments.tick()  # its end mark has no room; the recorder goes on
    had = parts_of(folder)
    if keep_ns:
        recorder.exchange("last")
        assert names(folder)[0] != "e00", "the oldest made room for it"
    else:
        room[0] += 80  # for the end mark alone
        for _ in range(3):
            with pytest.raises(BusFull):
                recorder.exchange("last")
        assert len(set(parts_of(folder)) - set(had)) <= 1, "not a file for each time that it is tried"
    monkeypatch.undo()
    recorder.exchange("more")
    recorder.end()
    assert names(folder)[-2:] == ["last", "more"] or (not keep_ns and names(folder)[-1] == "more")
    assert Recording(folder).account.balanced


def test_what_is_not_a_segment_of_this_recording_is_left_as_it_is(tmp_path: Path) -> None:
    folder, clock = tmp_path / "r", Clock()
    rotation = Rotation(bytes=1500, keep_ns=50 * SECOND)
    recorder = Recorder(folder, clock, rotation)
    for number in range(6):
        recorder.exchange(f"e{number}")
    recorder.kill()
    first, *_, last = parts_of(folder)
    assert first != last
    copy, damaged = folder / "raw-0.000001.copy.lf", folder / "raw-0.000000.lf"
    copy.write_bytes(first.read_bytes())
    data = bytearray(first.read_bytes())
    data[60] ^= 1  # in its manifest: what is behind that can be read still
    damaged.write_bytes(data)
    for part in parts_of(folder):
        os.utime(part, ns=(clock(), clock()))
    (folder / "raw-0.000099.lf").touch()  # a recorder that was killed just then
    again = Recorder(folder, clock, rotation)
    assert not (folder / "raw-0.000099.lf").exists()
    again.exchange("after")
    clock.now_ns += 500 * SECOND
    again.segments.tick()
    again.kill()
    assert copy.exists() and damaged.exists() and not first.exists()
    copy.unlink()
    damaged.unlink()
    for number, owner in enumerate(("one", "two"), 200):
        of_it = LogWriter(folder / f"raw-0.{number:06d}.lf", manifest(owner))
        of_it.end(reason="rotated")
    with pytest.raises(BusError, match="holds files of two recordings"):
        Recorder(folder, clock, rotation)


@given(st.lists(st.sampled_from(["answered", "open", "kill", "tick", "wait"]), max_size=40), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_killed_anywhere_it_goes_on_and_everything_balances(steps: list[str], drop: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder, clock = Path(name) / "r", Clock()
        rotation = Rotation(bytes=1500, ns=20 * SECOND)
        recorder, written, kills = Recorder(folder, clock, rotation), [], 0
        for number, step in enumerate(steps):
            clock.now_ns += SECOND
            if step == "kill":
                recorder.kill()
                recorder, kills = Recorder(folder, clock, rotation), kills + 1
            elif step == "tick":
                recorder.segments.tick()
            elif step == "wait":
                clock.now_ns += 30 * SECOND
            else:
                recorder.exchange(f"e{number}", answered=step == "answered")
                if step == "answered":
                    written.append(f"e{number}")
        recorder.end()
        account = total(parts_of(folder))
        assert account.ledger("messages").in_flight == account.ledger("bytes").in_flight == 0
        assert [n for n in names(folder) if n in written] == written
        assert Recording(folder).account.balanced
        for gone in parts_of(folder)[:drop]:
            gone.unlink()
        if parts_of_or_none(folder):
            assert Recording(folder).account.balanced


def test_a_kill_loses_what_was_in_flight_and_says_for_how_long_nobody_looked(tmp_path: Path) -> None:
    folder, clock = tmp_path / "r", Clock()
    recorder = Recorder(folder, clock, Rotation(bytes=1500))
    for number in range(6):
        clock.now_ns += SECOND
        recorder.exchange(f"e{number}", answered=number not in (1, 5))
    recorder.kill()
    clock.now_ns += 100 * SECOND
    again = Recorder(folder, clock, Rotation(bytes=1500))
    assert again.segments.manifest.owner_id == "another"  # as it was begun
    again.exchange("after")
    again.end()
    account = Recording(folder).account
    assert account.ledger("messages").drops == {"crash": 2}
    assert account.notes["blind"] == 1 and 90 * SECOND < account.notes["blind_ns"] <= 101 * SECOND
    assert names(folder) == ["e0", "e2", "e3", "e4", "after"]


def test_who_is_killed_before_anything_came_has_been_here_too(tmp_path: Path) -> None:
    folder, clock = tmp_path / "r", Clock()
    Recorder(folder, clock, Rotation(ns=60 * SECOND)).kill()
    assert names(folder) == [] and Recording(folder).account.balanced
    clock.now_ns += 100 * SECOND
    again = Recorder(folder, clock, Rotation(ns=60 * SECOND))
    again.exchange("after")
    again.kill()
    assert Recording(folder).account.notes["blind"] == 1
    assert names(folder) == ["after"]
    clock.now_ns += 100 * SECOND
    other = Recorder(tmp_path / "s", clock, Rotation(ns=60 * SECOND))
    clock.now_ns += 100 * SECOND
    other.exchange("late")  # no segment is ended with nothing in it
    other.end()
    assert len(parts_of(tmp_path / "s")) == 1


@pytest.mark.parametrize("budget", [0, 6000])
def test_segments_of_processes_that_are_no_more_go_by_age_and_for_room(tmp_path: Path, budget: int) -> None:
    folder, clock = tmp_path / "r", Clock()
    rotation = Rotation(bytes=1500, keep_ns=50 * SECOND, max_bytes=budget)
    many = [Recorder(folder, clock, Rotation(bytes=1500, keep_ns=50 * SECOND), n, 3) for n in range(3)]
    for number in range(18):
        clock.now_ns += SECOND
        many[number % 3].exchange(f"e{number:02d}", answered=number % 4 != 3)
    for recorder in many:
        recorder.kill()
    for part in parts_of(folder):
        os.utime(part, ns=(clock(), clock()))
    theirs = {part for part in parts_of(folder) if part.name[:5] in ("raw-1", "raw-2")}
    (folder / "raw-2.000099.lf").touch()  # begun just as it was killed
    assert len(theirs) > 4
    held = Recorder(folder, clock, rotation, 1, 3)  # one that still runs with them
    with pytest.raises(BusError, match="another process is writing this file"):
        Recorder(folder, clock, rotation)
    held.kill()
    for part in parts_of(folder):
        os.utime(part, ns=(clock(), clock()))
    again = Recorder(folder, clock, rotation)
    assert not (folder / "raw-2.000099.lf").exists()
    again.exchange("after")
    if budget:
        assert sum(part.stat().st_size for part in parts_of(folder)) <= budget
        assert not all(part.exists() for part in theirs)
    else:
        assert all(part.exists() for part in theirs)
        recording = Recording(folder)
        assert len(names(folder)) == 15 and recording.account.balanced
        drops = recording.account.ledger("messages").drops
        assert drops["crash"] == 4, "what was in flight in all of them"
        assert recording.account.ledger("messages").in_flight == 0
    clock.now_ns += 51 * SECOND
    again.exchange("later")
    assert not any(part.exists() for part in theirs), "too old, whoever wrote it"
    again.end()
    recording = Recording(folder)
    assert names(folder) == ["after", "later"] and not recording.warnings and recording.account.balanced
    assert recording.removed["exchanges"] == 14


def test_a_segment_of_a_later_version_is_one_line_and_nothing_is_touched(tmp_path: Path) -> None:
    folder, clock = tmp_path / "r", Clock()
    recorder = Recorder(folder, clock, Rotation(bytes=1500))
    recorder.exchange("a")
    recorder.kill()
    (folder / "raw-notes.d").mkdir()
    (folder / "raw-0.000007.lf.bak").write_text("somebody's")
    (folder / "notes.txt").write_text("somebody's")
    of_later = codec.encode((manifest(),), first_ns=START, last_ns=START)
    with LogWriter(folder / "raw-0.000002.lf", manifest("another")) as log:
        log.write(of_later[:2] + bytes([codec.VERSION + 1]) + of_later[3:])
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    says = "raw-0.000002.lf: at byte .*format version 2, this program reads up to 1"
    for process, processes in ((0, 1), (0, 2)):
        with pytest.raises(BusError, match=says):
            Recorder(folder, clock, Rotation(bytes=1500), process, processes)
    upgrade = r"format version 2.*upgrade livefire"
    with pytest.raises(BusError, match=upgrade):
        cleanse(folder, tmp_path / "clean.lf", CleanseSettings())
    with pytest.raises(BusError, match=upgrade):
        learn.of_file(folder, tmp_path, CleanseSettings())
    assert not (tmp_path / "clean.lf").exists() and "format version 2" in Recording(folder).warnings[0]
    (folder / "raw-0.000002.lf").rename(folder / "raw-4.000002.lf")  # of a process that is no more
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(BusError, match=says.replace("raw-0", "raw-4")):
        Recorder(folder, clock, Rotation(bytes=1500))
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "raw-4.000002.lf").unlink()
    Recorder(folder, clock, Rotation(bytes=1500)).end()
    assert names(folder) == ["a"]


def test_what_cannot_be_gone_on_with_is_one_line(tmp_path: Path) -> None:
    folder, clock = tmp_path / "r", Clock()
    recorder = Recorder(folder, clock, Rotation(bytes=1500))
    recorder.exchange("a")
    recorder.kill()
    for other, says in (
        (manifest(masked=False), "was begun masked, and would go on unmasked"),
        (manifest(scale=0.5), "was begun with 100.000% of production"),
    ):
        with pytest.raises(BusError, match=says):
            Segments(folder, other, Rotation(), now_ns=clock)
    Recorder(folder, clock, Rotation(bytes=1500)).end()
    with pytest.raises(BusError, match="holds a recording that is whole already"):
        Recorder(folder, clock, Rotation(bytes=1500))
    Segments(folder, manifest("other"), Rotation(), process=1, now_ns=clock).end()
    with pytest.raises(BusError, match="holds 2 recordings"):
        parts_of(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BusError, match="without a recording in it"):
        parts_of(tmp_path / "empty")


def test_a_ring_on_a_small_disk_has_an_oldest_one_to_remove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are no longer than a tenth of what there is room for, however long is kept; also when it goes on."""
    free = 20_000

    class Usage:
        def __init__(self, _: Path) -> None:
            self.free = free

    monkeypatch.setattr("capture.segments.shutil.disk_usage", Usage)
    clock, folder = Clock(), tmp_path / "ring"
    for _ in range(2):
        recorder = Recorder(folder, clock, Rotation(keep_ns=3600 * SECOND))
        for number in range(12):
            recorder.exchange(f"e{number}")
            clock.now_ns += SECOND
        recorder.kill()
        used = sum(part.stat().st_size for part in parts_of(folder))
        free = 20_000 - used
        assert max(part.stat().st_size for part in parts_of(folder)) <= 2_000 + 500
    assert len(parts_of(folder)) > 4
