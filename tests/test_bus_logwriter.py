"""Writing log files: one writer, private, and whole after every kind of end."""

from __future__ import annotations

import os
import random
import select
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bus import frames
from bus.logfile import LogReader, LogWriter
from bus.ports import BusError
from wire import codec
from wire.codec import RecordType
from wire.records import Drop, End, Manifest

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = Manifest("outcomes", "w0", "run-1", 5, "test")


def bodies(path: Path) -> list[bytes]:
    """The messages of a file, but for marks."""
    with LogReader(path) as reader:
        found = []
        while messages := reader.read():
            found += [message.data for message in messages if message.data[:2] != codec.MAGIC]
        return found


def refusal(path: Path, manifest: Manifest = MANIFEST) -> str:
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(BusError) as caught:
        LogWriter(path, manifest).close()
    assert "\n" not in str(caught.value)
    if before is not None:
        assert path.read_bytes() == before, "a file that is refused is left as it is"
    return str(caught.value).removeprefix(f"{path}: ")


def test_a_recording_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        LogWriter(tmp_path / "a.lf", MANIFEST).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.lf").stat().st_mode) == 0o600


HOLDER = """
import sys
from bus.logfile import LogWriter
from wire.records import Manifest
writer = LogWriter(sys.argv[1], Manifest("outcomes", "w0", "run-1", 5, "test"))
writer.write(b"held")
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_file_has_one_writer_among_all_processes(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert refusal(path) == "another process is writing this file"
        child.send_signal(signal.SIGKILL)
    with LogWriter(path, MANIFEST) as writer:  # the lock ended with its process
        writer.write(b"mine")
        assert refusal(path) == "another process is writing this file"
    assert bodies(path) == [b"held", b"mine"]


def test_files_that_must_not_be_written_are_left_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    with LogWriter(path, MANIFEST) as writer:
        writer.write(b"x")
    good = path.read_bytes()
    future = codec.encode([Drop("a", "b", False, 1)])
    future = future[:2] + b"\x63" + future[3:]
    with LogWriter(tmp_path / "future.lf", MANIFEST) as writer:
        writer.write(future)
    (tmp_path / "foreign.lf").write_bytes(b"somebody's thesis, chapter 1")
    (tmp_path / "short.lf").write_bytes(b"thesis")
    with LogWriter(tmp_path / "whole.lf", MANIFEST) as writer:
        writer.end()
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "foreign.lf") == "not a Livefire file"
    assert refusal(tmp_path / "short.lf") == "not a Livefire file; it is left as it is"
    assert refusal(tmp_path / "whole.lf") == "is whole already (it has an end mark); write to another file"
    assert "format version 99" in refusal(tmp_path / "future.lf")
    assert refusal(tmp_path / "pipe") == "cannot be written: not a plain file"
    assert refusal(tmp_path) == "cannot be written: is a directory"
    assert refusal(tmp_path / "no" / "a.lf") == f"cannot be written: there is no folder {tmp_path / 'no'}"
    (tmp_path / "link").symlink_to(tmp_path / "no" / "a.lf")
    assert refusal(tmp_path / "link") == "cannot be written: no such file or directory"
    other = Manifest("outcomes", "w0", "run-2", 5, "test")
    assert refusal(path, other) == "holds outcomes of run-1, not outcomes of run-2; write to another file"
    assert path.read_bytes() == good


def test_a_torn_frame_is_cut_off_and_everything_whole_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    with LogWriter(path, MANIFEST) as writer:
        writer.write(b"one")
        whole = writer.next_offset
        writer.write(b"two" * 20)
    good = path.read_bytes()
    for length in range(whole, len(good)):
        path.write_bytes(good[:length])
        with LogWriter(path, MANIFEST) as writer:
            assert writer.cut_bytes == length - whole and writer.next_offset == whole
            writer.write(b"three")
        assert bodies(path) == [b"one", b"three"]


def test_damage_is_neither_cut_nor_written_over(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    with LogWriter(path, MANIFEST) as writer:
        offsets = [writer.write(bytes([n]) * 60) for n in range(3)]
    good = path.read_bytes()
    for at in (*range(16), offsets[0] + 5, offsets[1] + 40, offsets[2] + 3, offsets[2] + 40):
        damaged = bytearray(good)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        reader = LogReader(path)  # stands where the damage has led it to, when the writer comes
        seen = [message.data for message in reader.read()]
        with LogWriter(path, MANIFEST) as writer:
            writer.write(b"after")
            assert writer.cut_bytes < frames.FRAME_BYTES
        kept = [bytes([n]) * 60 for n in range(3) if not offsets[n] <= at < offsets[n] + 76]
        assert bodies(path) == [*kept, b"after"], at
        assert [message.data for message in reader.read()] == [b"after"], at
        assert seen[-len(kept) :] == kept
        reader.close()


def test_opening_counts_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    with LogWriter(path, MANIFEST) as writer:
        writer.write_records([Drop("a", "b", False, 1)] * 3, first_ns=100, last_ns=300)
        writer.write_records((), RecordType.ACCOUNT)
    with LogWriter(path, Manifest("outcomes", "w0", "run-1", 6, "later")) as writer:
        assert writer.manifest == MANIFEST
        writer.write(codec.encode([Drop("a", "b", False, 1)], first_ns=50, last_ns=60))  # counted as well
        assert (writer.count, writer.first_ns, writer.last_ns) == (4, 50, 300)
        writer.end(reason="stopped", sorted=True)
    with LogReader(path) as reader:
        last = reader.read()[-1]
    assert codec.decode(last.data).records == (End("run-1", "w0", 4, 50, 300, "stopped", True),)


def test_a_closed_writer_writes_nothing_anywhere(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "a.lf", MANIFEST)
    writer.close()
    writer.close()
    with open(tmp_path / "other", "wb") as other:  # likely with the same descriptor
        with pytest.raises(BusError, match="is closed"):
            writer.write(b"x")
        with pytest.raises(BusError, match="is closed"):
            writer.end()
        other.flush()
        assert os.fstat(other.fileno()).st_size == 0


def test_a_message_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "a.lf", MANIFEST) as writer:
        with pytest.raises(BusError, match="a message of 134217729 bytes, at most 134217728 can be written"):
            writer.write(bytes(frames.MAX_FRAME_BYTES + 1))
        writer.write(b"fits")
    assert bodies(tmp_path / "a.lf") == [b"fits"]


FULL = """
import resource, sys
from bus.logfile import LogWriter
from bus.ports import BusFull
from wire.records import Manifest
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
with LogWriter(sys.argv[1], Manifest("outcomes", "w0", "run-1", 5, "test")) as writer:
    number = 0
    try:
        while True:
            writer.write(number.to_bytes(4, "big") * 1000)
            number += 1
    except BusFull as error:
        print(number, error)
    writer.write(b"small")
    try:
        writer.write(bytes(60_000))
    except BusFull as error:
        print("again", writer.next_offset)
"""


@pytest.mark.parametrize("words", [1000, 30_000])  # a message, and one so large that it is written by itself
def test_a_full_disk_refuses_the_message_and_leaves_the_file_whole(tmp_path: Path, words: int) -> None:
    path = tmp_path / "a.lf"
    room = 12 * 4 * words + 2000
    script = FULL.replace("50_000, 50_000", f"{room}, {room}").replace("1000", str(words))
    script = script.replace("bytes(60_000)", f"bytes({room})")
    ran = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    first, again = ran.stdout.splitlines()
    count, said = first.split(" ", 1)
    assert said == f"{path}: no room on the disk"
    assert again == f"again {path.stat().st_size}"
    assert bodies(path) == [number.to_bytes(4, "big") * words for number in range(int(count))] + [b"small"]
    with LogReader(path) as reader:
        while reader.read():
            pass
        assert (reader.corrupt_frames, reader.waiting_bytes) == (0, 0)


def test_a_disk_that_is_full_from_the_start_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    script = FULL.replace("50_000, 50_000", "10, 10")
    ran = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert ran.stderr.splitlines()[-1] == f"bus.ports.BusFull: {path}: no room on the disk"
    assert path.stat().st_size == 0
    LogWriter(path, MANIFEST).close()
    assert bodies(path) == []


KILLED = """
import os, sys
from bus.logfile import LogWriter
from wire.records import Manifest
number = int(sys.argv[2])
with LogWriter(sys.argv[1], Manifest("outcomes", "w0", "run-1", 5, "test")) as writer:
    while True:
        writer.write(number.to_bytes(8, "big") * (1 + number * 7919 % 30_000))
        os.write(1, number.to_bytes(8, "big"))
        number += 1
"""


def test_kill_9_at_random_instants_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    choose = random.Random(seed)
    path = tmp_path / "a.lf"
    start, expected = 0, 0
    for _ in range(10):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path), str(start)], cwd=ROOT, stdout=subprocess.PIPE, bufsize=0
        ) as child:
            assert child.stdout is not None
            acknowledged = child.stdout.read(8)  # it writes
            deadline = time.monotonic() + choose.random() * 0.02
            while (left := deadline - time.monotonic()) > 0:
                if select.select([child.stdout], [], [], left)[0]:
                    acknowledged += os.read(child.stdout.fileno(), 1 << 16)
            child.send_signal(signal.SIGKILL)
            while more := child.stdout.read(1 << 16):
                acknowledged += more
        last = int.from_bytes(acknowledged[-8:], "big")
        assert len(acknowledged) == 8 * (last - start + 1)
        with LogReader(path) as reader:
            torn = 0
            while reader.read():
                pass
            torn = reader.waiting_bytes
            assert reader.corrupt_frames == 0
        found = bodies(path)
        # One more may be whole: written, and not yet acknowledged.
        assert len(found) in (last + 1, last + 2)
        print(f"killed at {last}, {torn} bytes torn")
        start = expected = len(found)
    assert expected > 10
    for number, body in enumerate(bodies(path)):
        assert body == number.to_bytes(8, "big") * (1 + number * 7919 % 30_000)
