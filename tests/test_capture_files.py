"""Files of captures as they are found: rotated, overlapping, cut off, of several sections; and one line for each fault."""

from __future__ import annotations

import gzip
import io
import os
import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pcap_build import Conversation, Packet, block, enhanced, interface, obsolete, pcap, section, simple
from test_capture_pair import answer, get

from capture.app import import_files
from capture.assembler import Assembler
from capture.frames import Frame
from capture.merged import in_time_order, read_into
from capture.settings import CaptureSettings
from capture.show import exchange_json, in_order
from capture.source_pcap import PcapSource
from wire.config import ConfigError

T0 = 1_700_000_000_000_000_000


def talks(count: int = 6) -> list[Packet]:
    """Conversations that overlap in time."""
    packets: list[Packet] = []
    for index in range(count):
        talk = Conversation(("10.0.0.1", 2000 + index), start_ns=T0 + index * 3_000_000).open()
        talk.client(get(f"/{index}")).server(answer(b"x" * 3000)).close()
        packets += talk.packets
    return sorted(packets, key=lambda packet: packet[0])


def exchanges(sources: list[PcapSource]) -> list[dict[str, object]]:
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    for frame in in_time_order(sources):
        if frame is not None:
            assembler.packet(*frame)
    found = [exchange_json(exchange) for exchange in in_order(assembler.finish())]
    assert assembler.account.balanced
    return found


def pcapng(packets: list[Packet], order: str = "<") -> bytes:
    return section(order) + interface(order, resolution=9) + b"".join(enhanced(data, ts, order) for ts, data in packets)


@given(st.integers(0, 10_000), st.integers(1, 5), st.booleans())
@settings(max_examples=25, deadline=None)
def test_several_files_are_as_one(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, side_by_side: bool
) -> None:
    """Files that follow each other, or that overlap; in any order, of any kind, gzipped or not."""
    rng = random.Random(seed)
    folder = tmp_path_factory.mktemp("files")
    packets = talks()
    parts: list[list[Packet]] = [[] for _ in range(count)]
    for index, packet in enumerate(packets):
        parts[rng.randrange(count) if side_by_side else index * count // len(packets)].append(packet)
    paths = []
    for index, part in enumerate(parts):
        data = (
            pcap(part, order=rng.choice("<>"), nanoseconds=True)
            if rng.random() < 0.5
            else pcapng(part, rng.choice("<>"))
        )
        path = folder / f"{index}.cap"
        path.write_bytes(gzip.compress(data) if rng.random() < 0.3 else data)
        paths.append(path)
    rng.shuffle(paths)
    whole = folder / "whole"
    whole.write_bytes(pcap(packets, nanoseconds=True))
    assert len(exchanges([PcapSource(whole)])) == 6
    # A section of pcapng names its interface, and a connection is taken from one; so names are made equal.
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    for frame in in_time_order([PcapSource(path) for path in paths]):
        if frame is not None:
            assembler.packet(*frame[:4])
    assert [exchange_json(e) for e in in_order(assembler.finish())] == exchanges([PcapSource(whole)])


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("at", [3, 11, 20])
def test_where_a_file_ends_another_of_another_interface_goes_on(overlap: bool, at: int) -> None:
    """A pcapng names its interface and a pcap does not: what were copies until then is all there is after it."""
    packets = talks()
    rest = packets if overlap else packets[at:]
    files = [pcapng(packets[:at]), pcap(rest, nanoseconds=True)]
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    sources = [PcapSource("x", stream=io.BytesIO(data)) for data in files]
    assert sum(read_into(sources, assembler, 7, assembler.source_over)) == at + len(rest)
    found = assembler.finish()
    assert assembler.account.balanced
    made = [(e.exchange_id, e.request, e.response, e.faults) for e in in_order(found)]
    whole = Assembler("r", CaptureSettings(), None, b"k")
    for ts_ns, data in packets:
        whole.packet(ts_ns, data, len(data))
    assert made == [(e.exchange_id, e.request, e.response, e.faults) for e in in_order(whole.finish())]


def test_a_thousand_files_that_follow_each_other_are_not_open_at_once(tmp_path: Path) -> None:
    packets = talks()
    paths = []
    for index in range(300):
        path = tmp_path / f"{index}.pcap"
        path.write_bytes(pcap([(T0 + index * 10**9 + k, packets[0][1]) for k in range(3)], nanoseconds=True))
        paths.append(path)
    before = len(os.listdir("/proc/self/fd"))
    sources = [PcapSource(path) for path in paths]
    merged = in_time_order(sources)
    times, most = [], 0
    for frame in merged:
        assert frame is not None
        times.append(frame[0])
        most = max(most, len(os.listdir("/proc/self/fd")) - before)
    assert len(times) == 900 and times == sorted(times)
    assert most <= 3


def test_import_says_each_fault_in_one_line_and_counts_it(tmp_path: Path) -> None:
    packets = talks()
    whole, cut, zeros = tmp_path / "a.pcap", tmp_path / "b.pcap", tmp_path / "c.pcap"
    whole.write_bytes(pcap(packets[:30]))
    cut.write_bytes(pcap(packets[30:])[:-7])
    zeros.write_bytes(pcap(packets[:1]) + b"\0" * 4096)
    lines: list[str] = []
    account = import_files([whole, cut, zeros], tmp_path / "x.lf", say=lines.append)
    assert account.balanced
    assert account.notes["input_cut"] == 2
    assert len(lines) == 2
    assert any("b.pcap: was cut off" in line for line in lines)
    assert any(f"c.pcap: ends in zeros from byte {24 + 16 + len(packets[0][1])}; 1 packets" in line for line in lines)


def test_a_record_of_no_bytes_is_a_packet_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(pcap([(T0, b"")]) + struct.pack("<IIII", 5, 6, 0, 60) + pcap(talks())[24:])
    account = import_files([path], tmp_path / "x.lf")
    assert account.ledger("packets").drops["cut"] == 2
    assert account.balanced


def frames(data: bytes) -> tuple[list[Frame], PcapSource]:
    source = PcapSource("x", stream=io.BytesIO(data))
    return [frame for frame in source.frames() if frame is not None], source


@pytest.mark.parametrize("order", ["<", ">"])
def test_offset_and_resolution_of_an_interface(order: str) -> None:
    data = section(order) + interface(order, name="a", resolution=6, offset_s=1_700_000_000)
    data += interface(order, name="b", resolution=0x80 | 20, offset_s=-5) + interface(order, name="c", resolution=0)
    data += (
        enhanced(b"a" * 20, 7, order)
        + enhanced(b"b" * 20, 9 << 20, order, number=1)
        + enhanced(b"c" * 20, 3, order, number=2)
    )
    data += enhanced(b"d" * 20, 1 << 63, order, number=2)  # beyond any calendar: as late as can be written
    found, source = frames(data)
    assert [frame[0] for frame in found] == [1_700_000_000_000_007_000, 4_000_000_000, 3_000_000_000, (1 << 63) - 1]
    assert source.faults == {}


def test_all_blocks_of_packets_in_sections_of_either_order() -> None:
    """Blocks that hold none are passed over; such as nobody knows are counted."""
    data = b""
    for order in "<><":
        data += section(order) + interface(order, snaplen=30)
        data += block(order, 4, b"\0" * 8) + block(order, 5, b"\0" * 20) + block(order, 10, b"TLSK" + b"\0" * 8)
        data += enhanced(b"e" * 20, 1, order) + obsolete(b"o" * 20, 2, order) + simple(b"s" * 20, order)
        data += block(order, 3, struct.pack(order + "I", 99) + b"S" * 30)  # cut at the interface's snaplen
        data += block(order, 0x77, b"???") + block(order, 0xBAD, b"\0\0\0\0")
    found, source = frames(data)
    assert [(frame[1][:1], len(frame[1]), frame[2]) for frame in found] == [
        (b"e", 20, 20), (b"o", 20, 20), (b"s", 20, 20), (b"S", 30, 99),
    ] * 3  # fmt: skip
    assert source.faults == {"unknown_block": 3}
    assert source.lines == []


@pytest.mark.parametrize(
    ("begin", "hint"),
    [(b"snoop\0\0\0", "editcap"), (b"\x28\xb5\x2f\xfd", "zstdcat"), (b"PK\3\4", "unzip"), (b"\xfd7zXZ\0", "xzcat")],
)
def test_what_else_a_file_may_be_is_said_with_what_to_do(tmp_path: Path, begin: bytes, hint: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(begin + b"\0" * 100)
    with pytest.raises(ConfigError, match=hint) as told:
        PcapSource(path)
    assert "\n" not in str(told.value)
