"""Readers of pcap and pcapng: every order and unit, streams, and files that were cut off."""

from __future__ import annotations

import gzip
import io
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pcap_build import Conversation, enhanced, interface, obsolete, pcap, section, simple

from capture.frames import Frame
from capture.merged import in_time_order
from capture.source_pcap import PcapSource, digest_of
from wire.config import ConfigError

T0 = 1_700_000_000_123_456_789
PACKETS = [(T0, b"\1" * 60), (T0 + 5_000, b"\2" * 61), (T0 + 9_999_000, b"\3" * 62)]


def frames(data: bytes) -> tuple[list[Frame], PcapSource]:
    source = PcapSource("x", stream=io.BytesIO(data))
    return [frame for frame in source.frames() if frame is not None], source


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nanoseconds", [False, True])
def test_pcap(order: str, nanoseconds: bool) -> None:
    found, source = frames(pcap(PACKETS, order=order, nanoseconds=nanoseconds, snaplen=61))
    unit = 1 if nanoseconds else 1000
    assert found == [(ts // unit * unit, data[:61], len(data), 1, "") for ts, data in PACKETS]
    assert source.faults == {}


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng(order: str) -> None:
    data = section(order)
    data += interface(order, name="eth0", resolution=9) + interface(order, linktype=101)
    data += interface(order, name="odd", resolution=0x80 | 10)
    data += enhanced(b"a" * 60, T0, order, wire_len=99)
    data += enhanced(b"b" * 61, T0 // 1000, order, number=1)
    data += enhanced(b"c" * 62, 5 << 10, order, number=2)
    data += obsolete(b"d" * 63, T0, order) + simple(b"e" * 64, order)
    found, source = frames(data)
    assert found == [
        (T0, b"a" * 60, 99, 1, "eth0"),
        (T0 // 1000 * 1000, b"b" * 61, 61, 101, "1"),
        (5_000_000_000, b"c" * 62, 62, 1, "odd"),
        (T0, b"d" * 63, 63, 1, "eth0"),
        (T0, b"e" * 64, 64, 1, "eth0"),
    ]
    assert source.faults == {}


def test_sections_begin_anew_and_unknown_blocks_are_passed_over() -> None:
    data = section() + interface(name="a") + enhanced(b"x" * 20, 1) + section(">") + interface(">", name="b")
    data += b"\0\0\x0b\xad\0\0\0\x10zzzz\0\0\0\x10" + enhanced(b"y" * 20, 2, ">")
    found, _ = frames(data)
    assert [(f[1][:1], f[4]) for f in found] == [(b"x", "a"), (b"y", "b")]


def test_gzip(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap.gz"
    path.write_bytes(gzip.compress(pcap(PACKETS)))
    assert len([f for f in PcapSource(path).frames()]) == 3


def test_of_a_gzip_that_is_cut_off_all_whole_packets_come(tmp_path: Path) -> None:
    """Also of one that is shorter than what is read at once."""
    rng, path = random.Random(5), tmp_path / "x.pcap.gz"
    packed = gzip.compress(pcap([(T0 + n * 1000, rng.randbytes(80)) for n in range(400)]))
    for keep, least in ((len(packed) // 2, 190), (len(packed) - 9, 399), (200, 1)):
        path.write_bytes(packed[:keep])
        source = PcapSource(path)
        assert least <= len([frame for frame in source.frames() if frame is not None]) <= 400
        assert any("cannot be read on" in line and "cut off" in line for line in source.lines)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_a_cut_file_gives_what_is_whole_and_says_so(draw: st.DataObject) -> None:
    ng = section() + interface(name="a") + b"".join(enhanced(data, ts // 1000) for ts, data in PACKETS)
    whole = draw.draw(st.sampled_from([pcap(PACKETS), ng]))
    cut = draw.draw(st.integers(len(section()) if whole is ng else 24, len(whole) - 1))
    expected = [f for f in frames(whole)[0]]
    found, source = frames(whole[:cut])
    assert found == expected[: len(found)]
    assert len(found) < len(expected)
    if source.faults:
        assert source.faults == {"cut": 1}
        assert len(source.lines) == 1


@given(
    st.binary(min_size=4, max_size=300), st.sampled_from([b"", pcap(PACKETS)[:24], section(), section() + interface()])
)
@settings(max_examples=150, deadline=None)
def test_any_bytes_end_in_frames_or_one_line(data: bytes, start: bytes) -> None:
    try:
        found, _ = frames(start + data)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert all(len(frame[1]) <= frame[2] for frame in found)


def test_damage_is_told_with_its_place() -> None:
    data = pcap(PACKETS[:1]) + b"\xff" * 32
    found, source = frames(data)
    assert len(found) == 1
    assert source.faults == {"damaged": 1}
    assert "byte 100" in source.lines[0]


@pytest.mark.parametrize(
    ("content", "hint"), [(b"", "is empty"), (b"GET / HTTP", "not a capture"), (b"LIVEFIRE" * 4, "Livefire")]
)
def test_what_is_no_capture(tmp_path: Path, content: bytes, hint: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=hint):
        PcapSource(path)


@pytest.mark.parametrize("whole", [pcap(PACKETS)[:24], pcap(PACKETS, order=">")[:24], section(), section(">")])
def test_a_file_that_ends_in_its_header_is_no_empty_capture(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "x"
    for cut in range(4, len(whole)):
        for data in (whole[:cut], gzip.compress(whole[:cut])):
            path.write_bytes(data)
            with pytest.raises(ConfigError, match=f"x: is cut off in its header, after {cut} bytes"):
                PcapSource(path)
    assert frames(whole)[0] == [] and not frames(whole)[1].faults


def test_absent_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        PcapSource(tmp_path / "no")
    with pytest.raises(ConfigError, match="is a folder"):
        PcapSource(tmp_path)


def test_several_files_in_time_order(tmp_path: Path) -> None:
    talk = Conversation().open().close()
    one, two = tmp_path / "a.pcap", tmp_path / "b.pcap"
    one.write_bytes(pcap(talk.packets[1::2]))
    two.write_bytes(pcap(talk.packets[::2]))
    merged = [frame for frame in in_time_order([PcapSource(one), PcapSource(two)]) if frame is not None]
    assert [frame[1] for frame in merged] == [data for _, data in talk.packets]
    assert digest_of(one) != digest_of(two)
