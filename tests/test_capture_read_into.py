"""Frames that go straight into a sink are those that `frames` gives, wherever reads of the file end."""

from __future__ import annotations

import gzip
import io
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pcap_build import enhanced, interface, pcap, section

from capture.frames import Buffer, Frame
from capture.merged import in_time_order, read_into
from capture.source_pcap import CHUNK, PORTION, PcapSource
from wire.compiled import compiled

T0 = 1_700_000_000_000_001_000


class Dribble:
    """A file of which each read gives at most so many bytes."""

    def __init__(self, data: bytes, most: int) -> None:
        self._file, self._most = io.BytesIO(data), most

    def read(self, size: int = -1) -> bytes:
        return self._file.read(self._most if size < 0 else min(size, self._most))

    def close(self) -> None:
        self._file.close()


class Seen:
    """A sink that reads some frames where they stand and leaves others, as an assembler does."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.in_place = 0
        self.lane = None if compiled() else self  # compiled, none but a lane can stand for one

    def run(self, buffer: bytes, at: int, *_: object) -> tuple[int, int]:
        return 0, at

    def frame(self, ts_ns: int, buffer: Buffer, at: int, caught: int, wire_len: int, interface: str) -> bool:
        data = buffer[at : at + caught]
        assert len(data) == caught >= 54
        if data[0] & 1:
            return False
        self.in_place += 1
        self.frames.append((ts_ns, data, wire_len, 1, interface))
        return True

    def packet(self, ts_ns: int, data: bytes, wire_len: int, linktype: int = 1, interface: str = "") -> None:
        self.frames.append((ts_ns, data, wire_len, linktype, interface))


def capture(rng: random.Random, count: int, *, odd: bool = False) -> bytes:
    """Frames of all lengths around the shortest that is read in place; `odd`: in pcapng, or of another link type."""
    packets = [(T0 + rng.randrange(50) * 1000, rng.randbytes(rng.choice((0, 1, 53, 54, 55, 90)))) for _ in range(count)]
    if odd and rng.random() < 0.5:
        blocks = (enhanced(data, ts_ns // 1000) for ts_ns, data in packets)
        return section() + interface(name="eth0") + b"".join(blocks)
    order, nanoseconds = rng.choice("<>"), rng.random() < 0.5
    snaplen = rng.choice((60, 262144))
    file = pcap(packets, order=order, nanoseconds=nanoseconds, linktype=101 if odd else 1, snaplen=snaplen)
    longer_than_said = struct.pack(order + "IIII", T0 // 10**9, 0, 60, 7) + rng.randbytes(60)
    return file + longer_than_said


def both(files: list[bytes], most: int, step: int) -> tuple[list[Frame], Seen, list[dict[str, int]], int]:
    """What `frames` gives of them, read at once; what a sink gets; the faults of the second; how many it was told."""
    expected = [f for f in in_time_order([PcapSource("x", stream=io.BytesIO(data)) for data in files]) if f is not None]
    sources, seen = [PcapSource("x", stream=Dribble(data, most)) for data in files], Seen()
    told = sum(read_into(sources, seen, step, lambda: None))
    return expected, seen, [source.faults for source in sources], told


def test_a_record_may_straddle_two_reads_at_each_of_its_bytes() -> None:
    rng = random.Random(3)
    for cut in (0, 1, 15, 16, 40):
        whole = capture(rng, 6)
        file = whole[: len(whole) - cut]
        for most in range(1, len(file) + 1):
            expected, seen, faults, told = both([file], most, 4)
            assert seen.frames == expected
            assert told == len(expected)
            assert faults == [both([file], len(file), 4)[2][0]]
    assert expected and (seen.in_place or compiled()), "no frame was read where it stands"


@given(st.integers(0, 1 << 32), st.integers(1, 4), st.integers(1, 400), st.integers(1, 20))
@settings(max_examples=150, deadline=None)
def test_several_files_are_one_however_they_are_read(seed: int, count: int, most: int, step: int) -> None:
    rng = random.Random(seed)
    files = [capture(rng, rng.randrange(12), odd=rng.random() < 0.3) for _ in range(count)]
    packed = [gzip.compress(data) if rng.random() < 0.2 else data for data in files]
    expected, seen, faults, told = both(packed, most, step)
    assert seen.frames == expected
    assert told == len(expected) == sum(len([*PcapSource("x", stream=io.BytesIO(data)).frames()]) for data in files)
    assert not any(faults)


@pytest.mark.parametrize("several", [False, True])
def test_a_portion_has_no_more_than_a_mebibyte_however_long_frames_are(several: bool) -> None:
    """What waits for the end of a portion is in memory: of 512 joined frames it was 30 MB."""
    file = pcap([(T0 + number * 1000, bytes(60_000)) for number in range(60)])
    sources = [PcapSource("x", stream=io.BytesIO(file)) for _ in range(1 + several)]
    portions = [*read_into(sources, Seen(), 512, lambda: None)]
    assert sum(portions) == 60 * len(sources)
    assert max(portions) * 60_000 < PORTION + CHUNK + 60_000
