"""Wraps packets in what may lie between a link and TCP; each can be put around each.

What is wrapped is an EtherType and what follows it; so everything can stand in everything that carries it.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from pcap_build import ipv4, ipv6

Inner = tuple[int, bytes]  # EtherType, and what follows it
Wrap = Callable[[Inner], Inner]
MACS = b"\x02\0\0\0\0\2\x02\0\0\0\0\1"
IP_TYPES = (0x0800, 0x86DD)


def frame(inner: Inner) -> bytes:
    kind, data = inner
    return MACS + struct.pack(">H", kind) + data


def outer(payload: bytes, protocol: int) -> Inner:
    return 0x0800, ipv4("9.9.9.1", "9.9.9.2", payload, protocol=protocol)


def outer6(payload: bytes, protocol: int) -> Inner:
    """With extension headers: hop-by-hop, routing, destination options."""
    options = bytes((60, 0)) + b"\0" * 6 + bytes((43, 1)) + b"\0" * 14 + bytes((protocol, 0)) + b"\0" * 6
    return 0x86DD, ipv6("fd00::1", "fd00::2", options + payload, following=0)


def udp(payload: bytes, port: int) -> bytes:
    return struct.pack(">HHHH", 33333, port, 8 + len(payload), 0) + payload


def gre(flags: int, kind: int, fields: bytes, payload: bytes) -> Inner:
    return outer(struct.pack(">HH", flags, kind) + fields + payload, 47)


def service(inner: Inner) -> bytes:
    """A network service header, with a variable-length context, around what it names, else around a frame."""
    kind = {0x0800: 1, 0x86DD: 2, 0x894F: 4, 0x8847: 5}.get(inner[0], 3)
    return b"\x0f\xc4\2" + bytes((kind,)) + b"\0\0\1\xff" + b"\1" * 8 + (frame(inner) if kind == 3 else inner[1])


#: Around anything.
ANY: dict[str, Wrap] = {
    "vlan": lambda i: (0x8100, struct.pack(">HH", 0x2005, i[0]) + i[1]),
    "priority tag": lambda i: (0x8100, struct.pack(">HH", 0xE000, i[0]) + i[1]),
    "qinq": lambda i: (0x88A8, struct.pack(">HHHH", 6, 0x8100, 7, i[0]) + i[1]),
    "nsh": lambda i: (0x894F, service(i)),
    "nsh over gre": lambda i: gre(0, 0x894F, b"", service(i)),
    "nsh over vxlan-gpe": lambda i: outer(udp(b"\x0c\0\0\4\0\0\x07\0" + service(i), 4790), 17),
    "802.1ah": lambda i: (0x88E7, b"\0\0\1\2" + frame(i)),
    "mpls pseudo-wire": lambda i: (0x8847, b"\0\1\0\x40\0\2\1\x40" + b"\0\0\0\7" + frame(i)),
    "mpls pseudo-wire, no control word": lambda i: (0x8847, b"\0\2\1\x40" + frame(i)),
    "gre": lambda i: gre(0, i[0], b"", i[1]),
    "gre, checksum, key and number": lambda i: gre(0xB000, i[0], b"\0" * 4 + b"\0\0\0\1" * 2, i[1]),
    "gre ethernet": lambda i: gre(0x2000, 0x6558, b"\0\0\5\0", frame(i)),
    "gre aruba": lambda i: gre(0, 0x8210, b"", b"\x88\1" + b"\0" * 24 + b"\xaa\xaa\3\0\0\0" + struct.pack(">H", i[0]) + i[1]),
    "erspan i": lambda i: gre(0, 0x88BE, b"", frame(i)),
    "erspan ii": lambda i: gre(0x1000, 0x88BE, b"\0\0\0\1", b"\x10\5\0\1\0\0\0\0" + frame(i)),
    "erspan iii": lambda i: gre(0x1000, 0x22EB, b"\0\0\0\1", b"\x20\5\0\1" + b"\0" * 8 + frame(i)),
    "erspan iii, platform": lambda i: gre(0x1000, 0x22EB, b"\0\0\0\1", b"\x20\5" + b"\0" * 9 + b"\1" + b"\0" * 8 + frame(i)),
    "vxlan": lambda i: outer(udp(b"\x08\0\0\0\0\0\x07\0" + frame(i), 4789), 17),
    "vxlan over ipv6": lambda i: outer6(udp(b"\x08\0\0\0\0\0\x08\0" + frame(i), 8472), 17),
    "vxlan-gpe": lambda i: outer(udp(b"\x0c\0\0\3\0\0\x07\0" + frame(i), 4790), 17),
    "geneve": lambda i: outer(udp(b"\0\0\x65\x58\0\0\x09\0" + frame(i), 6081), 17),
    "geneve with options": lambda i: outer(udp(struct.pack(">BBH", 3, 0, i[0]) + b"\0\0\x09\0" + b"\1" * 12 + i[1], 6081), 17),
    "etherip": lambda i: outer(b"\x30\0" + frame(i), 97),
    "tzsp": lambda i: outer(udp(b"\1\0\0\1\0\x0a\2xx\1" + frame(i), 37008), 17),
}  # fmt: skip
#: Around IP packets alone.
PACKETS: dict[str, Wrap] = {
    "mpls": lambda i: (0x8847, b"\0\1\0\x40\0\2\1\x40" + i[1]),
    "mpls over gre": lambda i: gre(0, 0x8847, b"", b"\0\2\1\x40" + i[1]),
    "mpls over udp": lambda i: outer(udp(b"\0\2\1\x40" + i[1], 6635), 17),
    "pppoe": lambda i: (0x8864, struct.pack(">BBHH", 0x11, 0, 1, len(i[1]) + 2) + _ppp(i)),
    "pptp": lambda i: gre(0x3081, 0x880B, struct.pack(">HHII", len(i[1]), 1, 1, 1), b"\xff\x03" + _ppp(i)),
    "gtp": lambda i: outer(udp(b"\x30\xff" + struct.pack(">HI", len(i[1]), 7) + i[1], 2152), 17),
    "gtp with extension headers": lambda i: outer(
        udp(b"\x34\xff" + struct.pack(">HI", len(i[1]) + 16, 7) + b"\0\0\0\x85" + b"\1\0\0\x32\2" + b"\0" * 6 + b"\0" + i[1], 2152), 17
    ),
    "ip in ip": lambda i: outer(i[1], 4 if i[0] == 0x0800 else 41),
    "ip in ipv6": lambda i: outer6(i[1], 4 if i[0] == 0x0800 else 41),
    "ayiya": lambda i: outer(udp(bytes((0x41, 0x52, 0x11, 4 if i[0] == 0x0800 else 41)) + b"\0" * 40 + i[1], 5072), 17),
    "l2tp": lambda i: outer(udp(b"\x40\2" + struct.pack(">HHH", len(i[1]) + 12, 1, 1) + b"\xff\3" + _ppp(i), 1701), 17),
    "authentication header": lambda i: outer(bytes((4 if i[0] == 0x0800 else 41, 4)) + b"\0" * 22 + i[1], 51),
}  # fmt: skip
#: Links: what carries an EtherType, and what carries IP alone.
LINKS: dict[str, Callable[[Inner], tuple[int, bytes]]] = {
    "ethernet": lambda i: (1, frame(i)),
    "ethernet, padded": lambda i: (1, frame(i) + b"\xee" * 9),
    "ethernet, llc": lambda i: (1, MACS + struct.pack(">H", 8 + len(i[1]) & 0x3FF) + b"\xaa\xaa\3\0\0\0" + struct.pack(">H", i[0]) + i[1]),
    "cooked": lambda i: (113, b"\0" * 14 + struct.pack(">H", i[0]) + i[1]),
    "cooked v2": lambda i: (276, struct.pack(">H", i[0]) + b"\0" * 18 + i[1]),
    "chdlc": lambda i: (104, b"\x0f\0" + struct.pack(">H", i[0]) + i[1]),
    "802.11": lambda i: (127, b"\0\0\x08\0\0\0\0\0\x08\x01" + b"\0" * 22 + b"\xaa\xaa\3\0\0\0" + struct.pack(">H", i[0]) + i[1]),
    "802.11 qos, padded": lambda i: (105, b"\x88\x01" + b"\0" * 24 + b"\0\0\xaa\xaa\3\0\0\0" + struct.pack(">H", i[0]) + i[1]),
    "frame relay": lambda i: (107, b"\x18\x41\3\0\x80\0\0\0" + struct.pack(">H", i[0]) + i[1]),
}  # fmt: skip
PACKET_LINKS: dict[str, Callable[[Inner], tuple[int, bytes]]] = {
    "raw": lambda i: (101, i[1]),
    "raw, one version": lambda i: (228 if i[0] == 0x0800 else 229, i[1]),
    "null": lambda i: (0, struct.pack("<I", 2 if i[0] == 0x0800 else 30) + i[1]),
    "null, other order": lambda i: (0, struct.pack(">I", 2 if i[0] == 0x0800 else 24) + i[1]),
    "loop": lambda i: (108, struct.pack(">I", 2 if i[0] == 0x0800 else 24) + i[1]),
    "ppp": lambda i: (9, _ppp(i)),
    "ppp, framed": lambda i: (50, b"\xff\3" + _ppp(i)),
    "nflog": lambda i: (239, b"\2\0\0\0" + struct.pack("<HH", 5, 3) + b"x\0\0\0" + struct.pack("<HH", 4 + len(i[1]), 9) + i[1]),
}  # fmt: skip


def _ppp(inner: Inner) -> bytes:
    return (b"\0\x21" if inner[0] == 0x0800 else b"\0\x57") + inner[1]


def fragments(packet: bytes, size: int, rng: random.Random | None = None) -> list[bytes]:
    """An IP packet in pieces of `size` payload bytes (a multiple of 8); shuffled with `rng`."""
    version = packet[0] >> 4
    header = packet[:20] if version == 4 else packet[:40]
    payload = packet[len(header) :]
    out = []
    for at in range(0, len(payload), size):
        part = payload[at : at + size]
        more = at + size < len(payload)
        if version == 4:
            middle = struct.pack(">HHH", 20 + len(part), 77, (0x2000 if more else 0) | at // 8)
            out.append(header[:2] + middle + header[8:] + part)
        else:
            extension = struct.pack(">BBHI", header[6], 0, at | more, 77)
            out.append(header[:4] + struct.pack(">HB", len(part) + 8, 44) + header[7:] + extension + part)
    if rng is not None:
        rng.shuffle(out)
    return out
