"""Link layers and tunnels: the same exchange, wrapped in each."""

from __future__ import annotations

import random
import struct

import pytest
from pcap_build import Conversation, ethernet, ipv4, ipv6, tcp
from test_capture_pair import answer, get, shown

from capture.assembler import Assembler
from capture.decode import decode, peers
from capture.segment import Segment
from capture.settings import CaptureSettings

Wrap = tuple[int, bytes]


def _gre(inner: bytes, kind: int, flags: int = 0, rest: bytes = b"") -> bytes:
    return ethernet(ipv4("9.9.9.1", "9.9.9.2", struct.pack(">HH", flags, kind) + rest + inner, protocol=47))


def _udp(inner: bytes, port: int) -> bytes:
    payload = struct.pack(">HHHH", 33333, port, 8 + len(inner), 0) + inner
    return ethernet(ipv4("9.9.9.1", "9.9.9.2", payload, protocol=17))


def wraps(frame: bytes) -> dict[str, Wrap]:
    ip = frame[14:]
    return {
        "raw ip": (101, ip),
        "null": (0, struct.pack("<I", 2) + ip),
        "null, other order": (0, struct.pack(">I", 2) + ip),
        "loop": (108, struct.pack(">I", 2) + ip),
        "sll": (113, b"\0" * 14 + b"\x08\0" + ip),
        "sll2": (276, b"\x08\0" + b"\0" * 18 + ip),
        "vlan": (1, frame[:12] + b"\x81\0\0\x05" + frame[12:]),
        "qinq": (1, frame[:12] + b"\x88\xa8\0\x05\x81\0\0\x06" + frame[12:]),
        "padded": (1, frame + b"\0" * 7),
        "chdlc": (104, b"\x0f\0\x08\0" + ip),
        "pppoe": (1, frame[:12] + b"\x88\x64\x11\0\0\1" + struct.pack(">H", len(ip) + 2) + b"\0\x21" + ip),
        "mpls": (1, frame[:12] + b"\x88\x47\0\1\0\x40\0\2\1\x40" + ip),
        "gre": (1, _gre(ip, 0x0800)),
        "gre with key": (1, _gre(ip, 0x0800, 0x2000, b"\0\0\0\1")),
        "gre ethernet": (1, _gre(frame, 0x6558)),
        "erspan": (1, _gre(frame, 0x88BE, 0x1000, b"\0\0\0\1" + b"\0" * 8)),
        "vxlan": (1, _udp(b"\x08\0\0\0\0\0\x07\0" + frame, 4789)),
        "geneve": (1, _udp(b"\0\0\x65\x58\0\0\x07\0" + frame, 6081)),
        "gtp": (1, _udp(b"\x30\xff" + struct.pack(">HI", len(ip), 7) + ip, 2152)),
        "ip in ip": (1, ethernet(ipv4("9.9.9.1", "9.9.9.2", ip, protocol=4))),
        "ip in ipv6": (1, ethernet(ipv6("fe80::1", "fe80::2", ip, following=4))),
        "802.11": (127, b"\0\0\x08\0\0\0\0\0" + b"\x08\x01" + b"\0" * 22 + b"\xaa\xaa\x03\0\0\0\x08\0" + ip),
        "nflog": (239, b"\2\0\0\0" + struct.pack("<HH", 5, 3) + b"x\0\0\0" + struct.pack("<HH", 4 + len(ip), 9) + ip),
    }


NAMES = list(wraps(ethernet(ipv4("1.1.1.1", "2.2.2.2", b"x" * 30))))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_exchange_in_each_wrapping(name: str) -> None:
    talk = Conversation().open().client(get("/1")).server(answer(b"one")).close()
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    for ts_ns, frame in talk.packets:
        linktype, data = wraps(frame)[name]
        assembler.packet(ts_ns, data, len(data), linktype)
    assert shown(assembler.finish()) == [(b"/1", 200, b"one")]
    assert assembler.account.balanced
    assert assembler.account.ledger("packets").emitted == len(talk.packets)


@pytest.mark.parametrize("name", NAMES)
def test_cut_anywhere_is_a_reason(name: str) -> None:
    frame = ethernet(ipv4("1.1.1.1", "2.2.2.2", tcp(1, 2, 3, 4, 16, b"payload")))
    linktype, data = wraps(frame)[name]
    for cut in range(len(data)):
        assembler = Assembler("r", CaptureSettings(), None, b"k")
        assembler.packet(1, data[:cut], len(data), linktype)
        assembler.finish()
        assert assembler.account.balanced


def test_ipv6_with_extension_headers() -> None:
    inner = tcp(40000, 80, 1, 0, 2)
    hop = bytes((43, 0)) + b"\0" * 6
    routing = bytes((60, 0)) + b"\0" * 6
    options = bytes((6, 1)) + b"\0" * 14
    found = decode(1, ethernet(ipv6("2001:db8::1", "::ffff:1.2.3.4", hop + routing + options + inner, following=0)))
    assert isinstance(found, Segment)
    assert peers(found.key, found.version) == ("[2001:db8::1]:40000", "[::ffff:102:304]:80", "")


def test_nesting_has_an_end() -> None:
    packet = ipv4("1.1.1.1", "2.2.2.2", tcp(1, 2, 3, 4, 16, b"x"))
    for _ in range(40):
        packet = ipv4("1.1.1.1", "2.2.2.2", packet, protocol=4)
    assert decode(101, packet) == "depth"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
def test_fragments(version: int, order: str) -> None:
    request = get("/frag", extra="X: " + "y" * 2000 + "\r\n")
    talk = Conversation() if version == 4 else Conversation(("fd00::1", 1), ("fd00::2", 80))
    talk.open().client(request, mss=5000).server(answer(b"ok")).close()
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    for ts_ns, frame in talk.packets:
        if len(frame) < 1500:
            assembler.packet(ts_ns, frame, len(frame))
            continue
        pieces = _fragments(frame[14:], version)
        if order == "backward":
            pieces.reverse()
        elif order == "shuffled":
            random.Random(1).shuffle(pieces)
        for piece in pieces:
            data = ethernet(piece)
            assembler.packet(ts_ns, data, len(data))
            assert assembler.account.balanced
    assert shown(assembler.finish()) == [(b"/frag", 200, b"ok")]
    assert assembler.account.balanced


def _fragments(packet: bytes, version: int, size: int = 800) -> list[bytes]:
    payload = packet[20:] if version == 4 else packet[40:]
    out = []
    for at in range(0, len(payload), size):
        part = payload[at : at + size]
        more = at + size < len(payload)
        if version == 4:
            header = packet[:2] + struct.pack(">HHH", 20 + len(part), 77, (0x2000 if more else 0) | at // 8)
            out.append(header + packet[8:20] + part)
        else:
            extension = struct.pack(">BBHI", 6, 0, at | more, 77)
            header = packet[:4] + struct.pack(">HB", len(part) + 8, 44) + packet[7:40]
            out.append(header + extension + part)
    return out


def test_a_lost_fragment_is_counted() -> None:
    packet = ipv4("1.1.1.1", "2.2.2.2", tcp(1, 80, 1, 0, 16, b"x" * 2000))
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    for piece in _fragments(packet, 4)[:-1]:
        data = ethernet(piece)
        assembler.packet(1, data, len(data))
    assert assembler.account.ledger("packets").in_flight == 2
    assembler.finish()
    assert assembler.account.ledger("packets").drops == {"fragment": 2}
    assert assembler.account.balanced
