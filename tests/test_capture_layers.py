"""Any nesting of the table's layers around the same TCP segment gives the same segment; and what mirrors cut is counted."""

from __future__ import annotations

import random
import struct

import layers_build as build
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layers_build import ANY, IP_TYPES, LINKS, PACKET_LINKS, PACKETS, Inner
from pcap_build import ACK, Conversation, ethernet, ipv4, ipv6, tcp
from test_capture_pair import answer, get, shown

from capture.assembler import Assembler
from capture.bpf import Selection
from capture.decode import MAX_DEPTH, decode, peers
from capture.layers import LAYERS
from capture.segment import Fragment, Segment
from capture.selected import Selected
from capture.settings import CaptureSettings

SEGMENT = tcp(40000, 80, 7, 9, ACK, b"the same bytes")
PLAIN: dict[int, Inner] = {
    4: (0x0800, ipv4("1.1.1.1", "2.2.2.2", SEGMENT)),
    6: (0x86DD, ipv6("fd01::1", "fd01::2", SEGMENT)),
}
TWO = {"mpls over gre": 2, "nsh over gre": 2, "nsh over vxlan-gpe": 2}  # encapsulations in one
TAGS = ("vlan", "priority tag", "qinq")


def told(found: object) -> tuple[object, ...]:
    assert isinstance(found, Segment), found
    return *peers(found.key, found.version)[:2], found.data[found.tcp_at : found.end]


@st.composite
def nested(draw: st.DrawFn, low: int, high: int, *, tags: bool = True) -> tuple[int, list[str], int, bytes]:
    """(IP version, names from the inside out, link type, frame)."""
    version = draw(st.sampled_from([4, 6]))
    inner, names = PLAIN[version], []
    left = draw(st.integers(low, high))
    while left > 0:
        choice = [name for name in ANY if tags or name not in TAGS]
        choice += list(PACKETS) if inner[0] in IP_TYPES else []
        name = draw(st.sampled_from(choice))
        if TWO.get(name, 1) > left and low <= MAX_DEPTH:
            continue
        inner = (ANY.get(name) or PACKETS[name])(inner)
        left -= TWO.get(name, 1)
        names.append(name)
    links = {**LINKS, **(PACKET_LINKS if inner[0] in IP_TYPES else {})}
    name = draw(st.sampled_from(sorted(links)))
    linktype, data = links[name](inner)
    return version, [*names, name], linktype, data


@given(nested(0, MAX_DEPTH))
@settings(max_examples=200, deadline=None)
def test_any_nesting_gives_the_same_segment(made: tuple[int, list[str], int, bytes]) -> None:
    version, names, linktype, data = made
    found = decode(linktype, data)
    assert told(found) == told(decode(101, PLAIN[version][1])), names


@given(nested(MAX_DEPTH + 1, MAX_DEPTH + 3, tags=False))
@settings(max_examples=40, deadline=None)
def test_deeper_is_a_counted_drop(made: tuple[int, list[str], int, bytes]) -> None:
    _, names, linktype, data = made
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    assembler.packet(1, data, len(data), linktype)
    assert assembler.account.ledger("packets").drops == {"depth": 1}, names
    assert assembler.account.balanced


@given(nested(0, MAX_DEPTH), st.data())
@settings(max_examples=80, deadline=None)
def test_cut_anywhere_is_a_segment_or_a_reason(made: tuple[int, list[str], int, bytes], draw: st.DataObject) -> None:
    _, _, linktype, data = made
    cut = draw.draw(st.integers(0, len(data)))
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    assembler.packet(1, data[:cut], len(data), linktype)
    assembler.finish()
    assert assembler.account.balanced


@given(nested(0, 4), st.binary(min_size=1, max_size=6), st.data())
@settings(max_examples=80, deadline=None)
def test_damage_anywhere_is_never_an_exception(
    made: tuple[int, list[str], int, bytes], noise: bytes, draw: st.DataObject
) -> None:
    _, _, linktype, data = made
    at = draw.draw(st.integers(0, max(0, len(data) - len(noise))))
    data = data[:at] + noise + data[at + len(noise) :]
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    assembler.packet(1, data, len(data), linktype)
    assembler.finish()
    assert assembler.account.balanced


@pytest.mark.parametrize("selection", [Selection(hosts=("1.1.1.1",)), Selection(ports=(80,), not_hosts=("9.9.9.9",))])
def test_a_piece_whose_header_is_cut_is_no_fragment(selection: Selection) -> None:
    """A datagram that anybody may send to a port for VXLAN: it must not end the recorder."""
    wants, whole = Selected(selection).wants, ipv4("1.1.1.1", "2.2.2.2", SEGMENT, fragment=0x2000)
    for length in range(len(whole)):
        frame = build.MACS + b"\x08\0" + whole[:length]
        assert wants(1, frame)
        if length < 20:
            assert decode(1, frame) == "cut"
    assert isinstance(decode(1, build.MACS + b"\x08\0" + whole), Fragment)


def test_tags_without_end_are_a_drop_and_no_key_of_their_length() -> None:
    inner = b"\x08\0" + PLAIN[4][1]
    assert isinstance(decode(1, build.MACS + b"\x81\0\0\1" * 64 + inner), Segment)
    assert decode(1, build.MACS + b"\x81\0\0\1" * 65 + inner) == "depth"


def test_every_layer_of_the_table_is_wrapped_somewhere() -> None:
    """So a row that is added asks for its wrapping here."""
    # Those without one are below, one by one.
    without = {"802.11 avs", "arcnet", "pflog", "macsec", "esp", "teredo", "vn-tag, hsr", "cisco metadata"}
    wrapped = {
        "ethernet", "ethertype", "llc", "cooked v2", "loopback", "802.11", "802.11 radiotap", "nflog", "frame relay",
        "ppp", "pppoe", "vlan", "802.1ah", "mpls", "ip", "ip in ip", "gre, erspan", "etherip", "udp", "vxlan",
        "vxlan-gpe", "geneve", "gtp", "tzsp", "l2tp", "ayiya", "nsh",
    }  # fmt: skip
    assert {layer.name for layer in LAYERS} == wrapped | without


@pytest.mark.parametrize(
    ("linktype", "data"),
    [
        (163, struct.pack(">II", 0, 16) + b"\0" * 8 + b"\x08\1" + b"\0" * 22 + b"\xaa\xaa\3\0\0\0\x08\0" + PLAIN[4][1]),
        (117, b"\x3d" + b"\0" * 63 + PLAIN[4][1]),
        (1, build.MACS + b"\x88\xe5\0\0\0\0\0\1\x08\0" + PLAIN[4][1]),
        (1, build.MACS + b"\x89\x26\0\0\0\0\x08\0" + PLAIN[4][1]),
        (1, build.MACS + b"\x89\x09\1\1\0\1\0\x10\x08\0" + PLAIN[4][1]),
        (1, build.frame(build.gre(0, 0x8909, b"", b"\x08\0\1\1\0\1\0\x10" + PLAIN[4][1]))),
        (100, b"\xaa\xaa\3\0\0\0\x08\0" + PLAIN[4][1]),
        (276, b"\x81\0" + b"\0" * 18 + b"\0\5\x08\0" + PLAIN[4][1]),
        (113, b"\0" * 14 + b"\x81\0\0\5\x08\0" + PLAIN[4][1]),
        (219, b"\0\1\1\x40" + PLAIN[4][1]),
        (51, b"\x11\0\0\1\0\xff\0\x21" + PLAIN[4][1]),
        (129, b"\xbe\x50\x09\x08\xf0" + PLAIN[4][1]),
        (129, b"\x50\xbe\xf0\x53\xd4\0\1\x6b" + PLAIN[4][1]),
        (7, b"\xbe\x50\xf0" + PLAIN[4][1]),
    ],
)
def test_other_links(linktype: int, data: bytes) -> None:
    assert told(decode(linktype, data)) == told(decode(101, PLAIN[4][1]))


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (b"\x0f\xc2\2\1", ""),
        (b"\x2f\xc2\2\1", "not_ip"),  # of nodes for each other
        (b"\x4f\xc2\2\1", "not_ip"),  # a version that nobody knows
        (b"\x0f\xc2\2\x09", "not_ip"),
        (b"\x0f\xc1\2\1", "malformed"),
        (b"\x0f\xc0\2\4", "malformed"),  # itself again, for ever
    ],
)
def test_a_network_service_header(start: bytes, reason: str) -> None:
    found = decode(1, build.MACS + b"\x89\x4f" + start + b"\0\0\1\xff" + PLAIN[4][1])
    assert found == reason if reason else told(found) == told(decode(101, PLAIN[4][1]))


def test_both_directions_of_a_connection_whose_service_paths_differ_are_one() -> None:
    talk = Conversation().open().client(get("/1")).server(answer(b"hi")).close()
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    for number, (ts_ns, packet) in enumerate(talk.packets):
        data = build.MACS + b"\x89\x4f\x0f\xc2\2\1\0\0" + bytes((1 + number % 2, 255)) + packet[14:]
        assembler.packet(ts_ns, data, len(data))
    assert shown(assembler.finish()) == [(b"/1", 200, b"hi")]


@pytest.mark.parametrize("header", [b"\xd4\x01\1\x6b", b"\xd5\0\1\x6b", b"\xf1"])
def test_a_packet_that_arcnet_split_or_that_is_no_ip_is_told(header: bytes) -> None:
    assert decode(129, b"\x50\xbe\xf0\x53" + header + PLAIN[4][1]) == "not_ip"


def test_teredo() -> None:
    inner = PLAIN[6][1]
    for before in (b"", b"\0\0" + b"\0" * 6, b"\0\1\0\0" + b"\0" * 9 + b"\0\0" + b"\0" * 6):
        kind, data = build.outer(build.udp(before + inner, 3544), 17)
        assert told(decode(1, build.frame((kind, data)))) == told(decode(101, inner))


@pytest.mark.parametrize(
    "data", [b"\x88\xe5\x0c" + b"\0" * 40, b"\x08\0" + ipv4("1.1.1.1", "2.2.2.2", b"x", protocol=50)]
)
def test_what_is_encrypted_is_called_so(data: bytes) -> None:
    assert decode(1, build.MACS + data) == "encrypted"


@pytest.mark.parametrize("name", ["vxlan", "gre ethernet", "vxlan over ipv6", "ip in ip"])
@pytest.mark.parametrize("inside", [False, True])
def test_fragments_of_the_outer_packet_and_of_the_inner_one(name: str, inside: bool) -> None:
    wrap = ANY.get(name) or PACKETS[name]
    talk = Conversation().open().client(get("/1")).server(answer(b"z" * 3000), mss=5000).close()
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    rng = random.Random(7)
    count = 0
    for ts_ns, packet in talk.packets:
        inners = build.fragments(packet[14:], 1208, rng) if inside else [packet[14:]]
        for inner in inners:
            kind, data = wrap((0x0800, inner))
            for piece in build.fragments(data, 304, rng):
                whole = build.frame((kind, piece))
                assembler.packet(ts_ns, whole, len(whole))
                count += 1
                assert assembler.account.balanced
    assert shown(assembler.finish()) == [(b"/1", 200, b"z" * 3000)]
    packets = assembler.account.ledger("packets")
    assert (packets.seen, packets.emitted) == (count, count)


def test_fragments_that_overlap_with_different_bytes_are_not_believed() -> None:
    packet = ipv4("1.1.1.1", "2.2.2.2", tcp(1, 80, 1, 0, ACK, b"x" * 1600))
    pieces = build.fragments(packet, 808)
    other = pieces[1][:-1] + b"!"
    for order, drops in (([0, 1, 3, 2], {"fragment": 4}), ([1, 1, 2, 0], {})):
        assembler = Assembler("r", CaptureSettings(), None, b"k")
        for index in order:
            data = ethernet([*pieces, other][index])
            assembler.packet(1, data, len(data))
        assembler.finish()
        assert assembler.account.ledger("packets").drops == drops
        assert assembler.account.balanced


def test_fragments_are_bounded_in_bytes() -> None:
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    for ident in range(250):
        packet = ipv4("1.1.1.1", "2.2.2.2", b"x" * 65000, protocol=6, ident=ident, fragment=0x2000)
        assembler.packet(1, ethernet(packet), len(packet) + 14)
    assert assembler.account.ledger("packets").in_flight < 140
    assert assembler.account.balanced


@pytest.mark.parametrize("mtu", [1500, 9001])
def test_a_mirror_that_truncates(mtu: int) -> None:
    """AWS: a mirrored packet that does not fit in VXLAN is cut, and the outer headers speak of what is left."""
    body = b"b" * 20_000
    talk = Conversation().open().client(get("/1")).server(answer(body), mss=8897).ack(0)
    talk.client(get("/2")).server(answer(b"two")).close()
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    lost = 0
    for ts_ns, packet in talk.packets:
        cut = packet[: mtu - 50]
        lost += len(packet) - len(cut)
        kind, data = build.outer(build.udp(b"\x08\0\0\0\0\0\x07\0" + cut, 4789), 17)
        whole = (
            build.frame((kind, data)) + b"\xfe" * 4
        )  # what stands behind the outer packet is no part of the inner one
        assembler.packet(ts_ns, whole, len(whole))
        assert assembler.account.balanced
    first, second = assembler.finish()
    assert (first.response.missing_bytes if first.response else None) == lost
    assert bool(lost) == (mtu == 1500)
    assert second.response is not None and second.response.body == b"two" and not second.response.missing_bytes
    assert assembler.account.ledger("bytes").drops.get("snaplen", 0) == lost
    assert assembler.account.notes.get("cut_packets", 0) == (3 if mtu == 1500 else 0)
    assert assembler.account.balanced


@pytest.mark.parametrize("version", [4, 6])
def test_segments_of_an_offload_beyond_64_kb(version: int) -> None:
    """The length in the header is 0, or (IPv6) in a jumbo option; nothing but the capture's own length tells."""
    talk = Conversation() if version == 4 else Conversation(("fd00::1", 5), ("fd00::2", 80))
    body = bytes(range(256)) * 500
    talk.open().client(get("/1"))
    at = len(talk.packets)
    segment = tcp(80, talk.ends[0][1], talk.seq[1], talk.seq[0], ACK, answer(body))
    if version == 4:
        packet = ipv4("10.0.0.2", "10.0.0.1", b"")
        packet = packet[:2] + b"\0\0" + packet[4:] + segment
    else:
        jumbo = bytes((6, 0, 0xC2, 4)) + struct.pack(">I", 8 + len(segment))
        packet = ipv6("fd00::2", "fd00::1", b"", following=0)
        packet = packet[:4] + b"\0\0" + packet[6:] + jumbo + segment
    talk.packets.insert(at, (talk.now_ns + 1, ethernet(packet)))
    for linktype in (1, 276):
        assembler = Assembler("r", CaptureSettings(), None, b"k")
        for ts_ns, data in talk.packets:
            if linktype == 276:
                data = data[12:14] + b"\0" * 18 + data[14:]
            assembler.packet(ts_ns, data, len(data), linktype)
        assert shown(assembler.finish()) == [(b"/1", 200, body)]
        assert assembler.account.balanced


def test_a_connection_that_goes_on_on_another_interface_is_followed() -> None:
    """Files of several interfaces one after the other, links of a bond; but copies of its packets are still copies."""
    talk = Conversation().open().client(get("/1")).server(answer(b"one"))
    at = len(talk.packets)
    talk.now_ns += 2_000_000_000
    talk.client(get("/2")).server(answer(b"two")).close()
    for copies in (False, True):
        assembler = Assembler("r", CaptureSettings(), None, b"k")
        for index, (ts_ns, packet) in enumerate(talk.packets):
            names = ("a", "b") if copies else ("a" if index < at else "b",)
            for name in names:
                assembler.packet(ts_ns, packet, len(packet), 1, name)
        assert shown(assembler.finish()) == [(b"/1", 200, b"one"), (b"/2", 200, b"two")]
        drops = assembler.account.ledger("packets").drops
        assert drops == ({"other_interface": len(talk.packets)} if copies else {})
        assert assembler.account.balanced
