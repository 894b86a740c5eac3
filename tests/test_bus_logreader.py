"""Reading log files: damage costs what is damaged and nothing else; what is being written is waited for."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from bus import frames
from bus.logfile import LogReader, LogWriter
from bus.ports import BusError, Message
from wire import codec
from wire.codec import RecordType
from wire.records import Manifest

MANIFEST = Manifest("outcomes", "w0", "run-1", 5, "test")


def make(path: Path, *bodies: bytes, end: bool = False) -> list[Message]:
    with LogWriter(path, MANIFEST) as writer:
        for body in bodies:
            writer.write(body)
        if end:
            writer.end()
    return read(path)


def read(path: Path) -> list[Message]:
    with LogReader(path) as reader:
        return drain(reader)


def drain(reader: LogReader) -> list[Message]:
    messages: list[Message] = []
    while found := reader.read():
        messages.extend(found)
    return messages


def problem(path: Path, **options: int) -> str:
    with pytest.raises(BusError) as caught:
        LogReader(path, **options).close()
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


# ---------------------------------------------------------------------------- damage


def test_each_byte_changed_costs_its_own_frame_and_no_other(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    choose = random.Random(seed)
    path = tmp_path / "a.lf"
    bodies = [choose.randbytes(choose.randrange(0, 60)) for _ in range(6)]
    whole = make(path, *bodies, end=True)
    good = path.read_bytes()
    for at in range(len(good)):
        for bits in (1 << choose.randrange(8), choose.randrange(1, 256)):
            damaged = bytearray(good)
            damaged[at] ^= bits
            path.write_bytes(damaged)
            with LogReader(path) as reader:
                found = drain(reader)
                others = [message for message in whole if not message.offset <= at < message.next_offset]
                assert found == others, (at, bits)
                assert reader.corrupt_frames == 1 and reader.corrupt_bytes > 0
                assert reader.waiting_bytes < frames.FRAME_BYTES
    path.write_bytes(good)
    with LogReader(path) as reader:  # negative control: nothing is counted in a whole file
        assert drain(reader) == whole and reader.corrupt_frames == reader.corrupt_bytes == 0


def test_bytes_lost_added_or_zeroed_in_the_middle_cost_what_they_touch(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    choose = random.Random(seed)
    path = tmp_path / "a.lf"
    whole = make(path, *(choose.randbytes(choose.randrange(0, 400)) for _ in range(20)), end=True)
    good = path.read_bytes()
    for kind in ("lost", "added", "zeroed") * 60:
        start = choose.randrange(frames.FILE_BYTES, len(good))
        length = choose.choice([1, 5, 16, 300, 1000])
        hole = {"lost": b"", "added": good[start : start + length] + choose.randbytes(length), "zeroed": bytes(length)}
        path.write_bytes(good[:start] + hole[kind] + good[start + length :])
        found = {message.data for message in read(path)}
        untouched = [m.data for m in whole if m.next_offset <= start or m.offset >= start + length]
        assert set(untouched) <= found, (kind, start, length)


@pytest.mark.parametrize("rest", [b"", b"z" * 3, b"last"])
def test_a_length_that_misleads_onto_a_boundary_swallows_nothing(tmp_path: Path, rest: bytes) -> None:
    # The first body loses as many bytes as the next frame is long: its length then ends where that one ends.
    path = tmp_path / "a.lf"
    whole = make(path, b"a" * 100, b"b" * 50, *([rest] if rest == b"last" else []))
    data = path.read_bytes()
    start = whole[1].offset + frames.FRAME_BYTES + 10
    lost = whole[2].next_offset - whole[2].offset
    path.write_bytes(data[:start] + data[start + lost :] + (rest if rest != b"last" else b""))
    with LogReader(path) as reader:
        found = [message.data for message in drain(reader)[1:]]
        assert found == [b"b" * 50, *([rest] if rest == b"last" else [])]
        assert reader.corrupt_frames == 1


def test_several_damaged_places_are_counted_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    whole = make(path, *(bytes([n]) * 50 for n in range(10)))
    data = bytearray(path.read_bytes())
    data[whole[2].offset + 1] ^= 1  # a header
    data[whole[5].offset + 30] ^= 1  # two messages side by side
    data[whole[6].offset + 30] ^= 1
    path.write_bytes(data)
    with LogReader(path) as reader:
        found = drain(reader)
        assert [m.offset for m in found] == [m.offset for n, m in enumerate(whole) if n not in (2, 5, 6)]
        assert reader.corrupt_frames == 3
        assert reader.corrupt_bytes == sum(whole[n].next_offset - whole[n].offset for n in (2, 5, 6))


def test_a_frame_inside_a_recorded_body_is_never_taken_for_one_of_the_file(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner.lf", tmp_path / "outer.lf"
    with LogWriter(inner, Manifest("outcomes", "w0", "run-of-a-stranger", 1, "test")) as writer:
        writer.write(b"forged")
    forged = inner.read_bytes()
    whole = make(outer, b"first", b"body: " + forged + b" end", b"last")
    data = bytearray(outer.read_bytes())
    data[whole[2].offset + 9] ^= 1  # the header of the frame with the body: its bytes are searched
    outer.write_bytes(data)
    found = [message.data for message in read(outer)[1:]]
    assert found == [b"first", b"last"]
    # Negative control: a frame with this file's salt is found there, so the salt is what tells.
    with LogReader(outer) as reader:
        salt = reader.salt
    assert salt is not None
    mine = frames.frame_header(b"forged", salt) + b"forged"
    whole = make(tmp_path / "same.lf", b"first", b"body: " + mine + b" end", b"last")
    data = bytearray((tmp_path / "same.lf").read_bytes())
    data[whole[2].offset + 9] ^= 1
    (tmp_path / "same.lf").write_bytes(data)
    assert b"forged" in [message.data for message in read(tmp_path / "same.lf")]


def test_damage_larger_than_the_reader_s_buffer_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    whole = make(path, b"before", bytes(3 << 20), b"after")
    data = bytearray(path.read_bytes())
    data[whole[2].offset + 5] ^= 1  # a length, so that the search goes through all of it
    path.write_bytes(data)
    with LogReader(path) as reader:
        assert [m.data for m in drain(reader)[1:]] == [b"before", b"after"]
        assert (reader.corrupt_frames, reader.corrupt_bytes) == (1, (3 << 20) + frames.FRAME_BYTES)


# ---------------------------------------------------------------------------- files that are none


def test_files_that_cannot_be_read_say_why_in_one_line(tmp_path: Path) -> None:
    make(tmp_path / "good.lf", b"x")
    good = (tmp_path / "good.lf").read_bytes()
    future = bytearray(frames.file_header(7))
    future[8:10] = (2).to_bytes(2, "big")
    future[10:12] = frames._check(2, 7).to_bytes(2, "big")
    for name, data, line in (
        ("foreign", b"%PDF-1.7 and then some more", "not a Livefire file"),
        ("short", b"hello", "not a Livefire file: it has only 5 bytes (was the copy cut off?)"),
        ("capture", b"\xd4\xc3\xb2\xa1" + bytes(40), "not a Livefire file but a capture (use: livefire import)"),
        ("tiny capture", b"\x0a\x0d\x0d\x0a", "not a Livefire file but a capture (use: livefire import)"),
        ("future", bytes(future) + good[16:], "file version 2 is newer than this program reads (1): upgrade livefire"),
        ("spoiled", good[:9] + b"\xff" + good[10:20] + bytes(30), "a Livefire file whose beginning is damaged"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        assert problem(path).startswith(line), name
        assert path.read_bytes() == data
    assert problem(tmp_path / "absent.lf") == "no such file"
    assert problem(tmp_path) == "is a folder, not a Livefire file"
    assert problem(tmp_path / "good.lf" / "x") == "cannot be read: not a directory"
    assert "there is no offset 9999" in problem(tmp_path / "good.lf", offset=9999)


def test_a_file_of_somebody_else_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    make(path, b"x")
    path.chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)  # root may read anything
    try:
        assert problem(path) == "permission denied (recordings are readable by their owner alone)"
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


def test_a_file_cut_anywhere_gives_every_whole_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    whole = make(path, b"one", b"two" * 30, b"three", end=True)
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with LogReader(path) as reader:
            assert drain(reader) == [message for message in whole if message.next_offset <= length]
            assert not reader.ended and reader.corrupt_frames == 0
            read_up_to = max(
                [m.next_offset for m in whole if m.next_offset <= length], default=min(length, 16) // 16 * 16
            )
            assert reader.waiting_bytes == length - read_up_to


def test_a_manifest_that_is_no_manifest_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    message = bytearray(codec.encode((MANIFEST,)))
    message[-1] = 0xC1  # never used in msgpack
    data = bytes(message)
    salt = frames.salt_of(data)
    path.write_bytes(frames.file_header(salt) + frames.frame_header(data, salt) + data)
    with LogReader(path) as reader, pytest.raises(BusError, match="its manifest cannot be read: corrupt"):
        reader.read()


# ---------------------------------------------------------------------------- growing files


def test_a_file_that_grows_byte_by_byte_is_read_as_frames_become_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    whole = make(path, b"one", b"two" * 40, end=True)
    good = path.read_bytes()
    with open(path, "wb", buffering=0) as file:
        reader, found = LogReader(path), []
        for length in range(len(good)):
            file.write(good[length : length + 1])
            got = reader.read()
            assert [m.next_offset for m in got] == [m.next_offset for m in whole if m.next_offset == length + 1]
            found += got
    assert found == whole and reader.ended and reader.corrupt_frames == 0 and reader.waiting_bytes == 0
    assert reader.manifest == MANIFEST
    reader.close()


def test_an_offset_is_kept_while_the_header_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    whole = make(path, b"one", b"two")
    good = path.read_bytes()
    path.write_bytes(good[:7])
    with LogReader(path, offset=whole[1].next_offset) as reader:
        assert reader.read() == [] and reader.manifest is None
        path.write_bytes(good)
        assert reader.read() == whole[2:]
        reader.seek(0)
        assert reader.read() == whole
        assert reader.manifest == MANIFEST


def test_a_reader_that_saw_a_torn_frame_reads_what_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    for torn_at in (1, 8, 16, 17, 40, 114):
        path.unlink(missing_ok=True)
        make(path, b"first")
        with LogReader(path) as reader:
            reader.read()
            salt = reader.salt
            assert salt is not None
            with open(path, "ab") as file:  # a writer killed in the middle of a frame
                file.write((frames.frame_header(b"a" * 100, salt) + b"a" * 100)[:torn_at])
            assert reader.read() == [] and reader.waiting_bytes == torn_at
            with LogWriter(path, MANIFEST) as writer:
                assert writer.cut_bytes == torn_at
                writer.write(b"b" * 30)
                writer.write(b"c" * 300)
            assert [message.data for message in reader.read()] == [b"b" * 30, b"c" * 300]
            assert reader.corrupt_frames == 0


def test_a_reader_that_saw_a_torn_beginning_reads_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    whole = make(path, b"x")
    torn = path.read_bytes()[: whole[0].next_offset - 3]
    for length in (0, 5, 16, 20, len(torn)):
        path.write_bytes(torn[:length])
        with LogReader(path) as reader:
            assert reader.read() == []
            other = Manifest("outcomes", "w0", "run-1", 6, "a later start")
            with LogWriter(path, other) as writer:
                assert writer.cut_bytes == length
                writer.write(b"y")
            assert [message.data for message in reader.read()][1:] == [b"y"]
            assert reader.manifest == other and reader.corrupt_frames == 0


WRITER = """
import sys
from bus.logfile import LogWriter
from wire.records import Manifest
with LogWriter(sys.argv[1], Manifest("outcomes", "w0", "run-1", 5, "test")) as writer:
    print("ready", flush=True)
    sys.stdin.read(1)
    for number in range(int(sys.argv[2])):
        writer.write(number.to_bytes(4, "big") * (1 + number * 7919 % 9000))
    writer.end()
"""


def test_tailing_readers_follow_a_process_that_writes(tmp_path: Path) -> None:
    path, count = tmp_path / "a.lf", 1500
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(count)],
        cwd=Path(__file__).parent.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with child:
        assert child.stdout is not None and child.stdin is not None
        child.stdout.readline()
        readers = [LogReader(path), LogReader(path)]
        found: list[list[int]] = [[], []]
        child.stdin.write(b"g")
        child.stdin.flush()
        polls = 0
        while not all(reader.ended for reader in readers) and (child.poll() is None or polls < 10_000_000):
            polls += 1
            for reader, numbers in zip(readers, found, strict=True):
                for message in reader.read(1 + polls % 64):
                    if message.data[:2] != codec.MAGIC:
                        assert message.data == message.data[:4] * (len(message.data) // 4)
                        numbers.append(int.from_bytes(message.data[:4], "big"))
        assert child.wait(10) == 0
    assert found == [list(range(count))] * 2
    assert all(reader.corrupt_frames == 0 for reader in readers)
    for reader in readers:
        reader.close()


def test_messages_are_handed_out_in_bounded_portions(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    make(path, *([bytes(3 << 20)] * 6))
    with LogReader(path) as reader:
        sizes = []
        while found := reader.read():
            sizes.append(sum(len(message.data) for message in found))
        assert sum(sizes) > 18 << 20 and max(sizes) <= 12 << 20


# ---------------------------------------------------------------------------- streams


def test_a_recording_is_read_through_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    whole = make(path, *(bytes([n % 256]) * (n * 37 % 5000) for n in range(300)), bytes(2 << 20), end=True)
    with subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE) as child:
        stream = child.stdout
        assert stream is not None
        reader = LogReader("-", stream=stream)  # type: ignore[arg-type]
        assert drain(reader) == whole
        assert reader.ended and reader.manifest == MANIFEST
        with pytest.raises(BusError, match="-: a stream cannot be read from the middle"):
            reader.seek(0)
        reader.close()


def test_damage_in_a_stream_is_passed_over_too(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    whole = make(path, b"one", b"two" * 9, b"three", end=True)
    good = path.read_bytes()
    for at in (3, 11, 14, whole[1].offset + 2, whole[2].offset + 20, whole[3].offset + 6):
        damaged = bytearray(good)
        damaged[at] ^= 0x55
        path.write_bytes(damaged)
        with open(path, "rb") as stream:
            reader = LogReader("-", stream=stream)
            assert drain(reader) == [m for m in whole if not m.offset <= at < m.next_offset]
            assert reader.corrupt_frames == 1


def test_a_slow_stream_gives_each_message_when_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    whole = make(path, b"one", b"two")
    data = path.read_bytes()
    for unbuffered in (True, False):
        out, into = os.pipe()
        stream: BinaryIO = os.fdopen(out, "rb", buffering=0) if unbuffered else os.fdopen(out, "rb")  # type: ignore[assignment]
        os.write(into, data[: whole[1].next_offset + 9])  # two frames, and a part of the third
        reader = LogReader("-", stream=stream)
        assert reader.read() == whole[:2]  # without waiting for more
        os.write(into, data[whole[1].next_offset + 9 :])
        os.close(into)
        assert reader.read() == whole[2:]
        assert reader.read() == []
        stream.close()


def test_a_named_pipe_is_a_stream(tmp_path: Path) -> None:
    path, pipe = tmp_path / "a.lf", tmp_path / "pipe"
    whole = make(path, b"one", end=True)
    os.mkfifo(pipe)
    with subprocess.Popen(["sh", "-c", 'cat "$0" > "$1"', str(path), str(pipe)]), LogReader(pipe) as reader:
        assert drain(reader) == whole and reader.ended


def test_a_foreign_stream_says_so() -> None:
    with subprocess.Popen(["echo", "hello, this is no recording"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        reader = LogReader("-", stream=child.stdout)  # type: ignore[arg-type]
        with pytest.raises(BusError, match="-: not a Livefire file"):
            reader.read()


# ---------------------------------------------------------------------------- marks


@pytest.mark.parametrize("front", [b"xx\x01", b"LF\x00", b"LF\x63"])
def test_only_a_batch_of_a_known_version_can_be_an_end_mark(tmp_path: Path, front: bytes) -> None:
    path = tmp_path / "a.lf"
    make(path, front + bytes([RecordType.END]) + bytes(40))
    with LogReader(path) as reader:
        assert len(drain(reader)) == 2 and not reader.ended
    make(tmp_path / "b.lf", b"LF\x01" + bytes([RecordType.END]) + bytes(40))
    with LogReader(tmp_path / "b.lf") as reader:  # negative control
        assert len(drain(reader)) == 2 and reader.ended


def test_a_reader_that_was_forgotten_keeps_no_descriptor(tmp_path: Path) -> None:
    make(tmp_path / "a.lf")
    gc.collect()  # what other tests forgot
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        LogReader(tmp_path / "a.lf").read()
    gc.collect()
    assert len(os.listdir("/dev/fd")) == before
    reader = LogReader(tmp_path / "a.lf")
    assert len(os.listdir("/dev/fd")) == before + 1  # the control
    reader.close()
