"""Link frames down to TCP, through what may lie between: tags, labels, tunnels.

One loop over layers: each names the next layer and where it begins. At most MAX_DEPTH encapsulations are
opened (a crafted packet may nest without end). Nothing here raises on input; what cannot be decoded is named by
a reason from a closed set: `REASONS`.
"""

from __future__ import annotations

import socket
import struct
from typing import Final, NamedTuple

MAX_DEPTH: Final = 8

REASONS: Final = (
    "cut", "depth", "encrypted", "link_type", "malformed", "not_ip", "not_tcp", "fragment", "other_interface",
    "other_link", "kernel",
)  # fmt: skip

_U16 = struct.Struct(">H").unpack_from
_U32 = struct.Struct(">I").unpack_from


class Segment(NamedTuple):
    """A TCP segment inside a frame. Addresses and ports are in `key`, which names one direction."""

    key: bytes  # source, destination, ports, then the link; see `peers`
    reverse: bytes
    data: bytes  # the frame, or the packet that fragments made
    tcp_at: int
    end: int  # where the IP packet ends; beyond len(data) when the frame was cut
    version: int = 4


class Fragment(NamedTuple):
    """A piece of an IP packet."""

    key: bytes  # the same for all pieces of a packet
    header: bytes  # an IP header that fits the whole packet but for its length
    version: int
    offset: int
    more: bool
    data: bytes
    whole: bool  # the piece was captured whole
    link: bytes


# Layers, in one table: what follows an EtherType, a PPP protocol, an IP protocol.
(_ETHERNET, _ETHERTYPE, _IPV4, _IPV6, _MPLS, _PPPOE, _PPP, _GRE, _UDP, _IP, _SNAP) = range(11)

_ETHERTYPES: Final = {
    0x0800: _IPV4, 0x86DD: _IPV6, 0x8847: _MPLS, 0x8848: _MPLS, 0x8864: _PPPOE, 0x6558: _ETHERNET, 0x880B: _PPP,
}  # fmt: skip
_TAGS: Final = frozenset((0x8100, 0x88A8, 0x9100, 0x9200, 0x9300))
_PPP_TYPES: Final = {0x21: _IPV4, 0x57: _IPV6, 0x0281: _MPLS}
_VXLAN, _GENEVE, _GTP, _TEREDO = (4789, 8472), (6081,), (2152,), (3544,)

# LINKTYPE_*: (layer, where it begins). Those with a header of varying length are in `_link`.
_LINKS: Final = {
    1: (_ETHERNET, 0), 101: (_IP, 0), 12: (_IP, 0), 14: (_IP, 0), 228: (_IPV4, 0), 229: (_IPV6, 0),
    113: (_ETHERTYPE, 14), 104: (_ETHERTYPE, 2), 9: (_PPP, 0), 50: (_PPP, 0),
}  # fmt: skip


def decode(linktype: int, data: bytes, link: bytes = b"") -> Segment | Fragment | str:
    """The TCP segment that a frame carries, a fragment, or the reason why there is none."""
    try:
        found = _LINKS.get(linktype) or _link(linktype, data)
        if isinstance(found, str):
            return found
        return _walk(found[0], data, found[1], link)
    except (struct.error, IndexError):
        return "cut"


def _link(linktype: int, data: bytes) -> tuple[int, int] | str:
    if linktype in (0, 108):  # NULL: the family in the order of the host that captured; LOOP: big endian
        family = _U32(data)[0]
        if family > 0xFFFF:
            family = struct.unpack_from("<I", data)[0]
        return (_IPV4, 4) if family == 2 else (_IPV6, 4) if family in (10, 23, 24, 28, 30) else "not_ip"
    if linktype == 276:  # SLL2 begins with the EtherType
        kind = _ETHERTYPES.get(_U16(data)[0])
        return (kind, 20) if kind is not None else "not_ip"
    if linktype in (105, 119, 127, 163, 192):
        return _wireless(linktype, data)
    if linktype == 239:
        return _nflog(data)
    return "link_type"


def _wireless(linktype: int, data: bytes) -> tuple[int, int] | str:
    """IEEE 802.11 data frames, behind radiotap (127), AVS (163), Prism (119), PPI (192) or nothing (105)."""
    at = 0
    if linktype in (127, 192):
        at = struct.unpack_from("<H", data, 2)[0]
    elif linktype == 119:
        at = 144
    elif linktype == 163:
        at = _U32(data, 4)[0]
    control, flags = data[at], data[at + 1]
    if control & 0x0C != 0x08 or control & 0x40:
        return "not_ip"
    if flags & 0x40:
        return "encrypted"
    at += 30 if flags & 3 == 3 else 24
    if control & 0x80:
        at += 2 + (4 if flags & 0x80 else 0)
    return _SNAP, at


def _nflog(data: bytes) -> tuple[int, int] | str:
    at = 4
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("<HH", data, at)
        if kind & 0x7FFF == 9:
            return _IP, at + 4
        if length < 4:
            return "malformed"
        at += (length + 3) & ~3
    return "not_ip"


def _walk(layer: int, data: bytes, at: int, link: bytes) -> Segment | Fragment | str:
    for _ in range(MAX_DEPTH * 3):
        if layer in (_ETHERNET, _ETHERTYPE):
            at += 12 if layer == _ETHERNET else 0
            ethertype = _U16(data, at)[0]
            while ethertype in _TAGS:
                link += b"v" + bytes((data[at + 2] & 0x0F, data[at + 3]))
                at += 4
                ethertype = _U16(data, at)[0]
            at += 2
            if ethertype < 0x0600:  # a length: IEEE 802.3, then LLC
                layer = _SNAP
                continue
            following = _ETHERTYPES.get(ethertype)
            if following is None:
                return "not_ip"
            layer = following
        elif layer in (_IPV4, _IPV6, _IP):
            version = data[at] >> 4
            if version == 4:
                result = _ipv4(data, at, link)
            elif version == 6:
                result = _ipv6(data, at, link)
            else:
                return "malformed"
            if not isinstance(result, tuple) or isinstance(result, Segment | Fragment):
                return result
            layer, at = result
            if layer == _UDP:
                inner = _udp(data, at, link)
                if isinstance(inner, str):
                    return inner
                layer, at, link = inner
        elif layer == _SNAP:
            if data[at : at + 3] != b"\xaa\xaa\x03":
                return "not_ip"
            at += 6
            layer = _ETHERTYPE
        elif layer == _MPLS:
            while not data[at + 2] & 1:
                at += 4
            at += 4
            nibble = data[at] >> 4
            if nibble in (4, 6):
                layer = _IP
            else:  # a pseudo-wire, with a control word (RFC 4385) where its first nibble is 0
                at += 4 if nibble == 0 else 0
                layer = _ETHERNET
        elif layer == _PPPOE:
            at += 6
            layer = _PPP
        elif layer == _PPP:
            at += 2 if data[at] == 0xFF and data[at + 1] == 3 else 0
            short = data[at] & 1  # protocol field compression (RFC 1661 section 6.5)
            following = _PPP_TYPES.get(data[at] if short else _U16(data, at)[0])
            if following is None:
                return "not_ip"
            at += 1 if short else 2
            layer = following
        elif layer == _GRE:
            step = _gre(data, at)
            if isinstance(step, str):
                return step
            layer, at = step
    return "depth"


def _ipv4(data: bytes, at: int, link: bytes) -> Segment | Fragment | str | tuple[int, int]:
    header = (data[at] & 15) * 4
    if header < 20:
        return "malformed"
    length, _, flags = struct.unpack_from(">HHH", data, at + 2)
    end = at + length if length else len(data)  # 0: segmentation offload
    body = at + header
    if end < body:
        return "malformed"
    protocol = data[at + 9]
    if flags & 0x3FFF:
        return Fragment(
            data[at + 4 : at + 6] + data[at + 9 : at + 10] + data[at + 12 : at + 20] + link,
            data[at : at + 6] + b"\0\0" + data[at + 8 : body],
            4, (flags & 0x1FFF) * 8, bool(flags & 0x2000), data[body:end], len(data) >= end, link,
        )  # fmt: skip
    if protocol == 6:
        ports = data[body : body + 4]
        source, target = data[at + 12 : at + 16], data[at + 16 : at + 20]
        if len(ports) < 4:
            return "cut"
        return Segment(source + target + ports + link, target + source + ports[2:] + ports[:2] + link, data, body, end)
    return _protocol(protocol, data, body)


def _ipv6(data: bytes, at: int, link: bytes) -> Segment | Fragment | str | tuple[int, int]:
    length = _U16(data, at + 4)[0]
    following = data[at + 6]
    body = at + 40
    end = body + length if length else len(data)  # 0: a jumbogram, or segmentation offload
    addresses = data[at + 8 : at + 40]
    for _ in range(16):
        if following in (0, 43, 60, 135, 139, 140):  # hop-by-hop, routing, destination, mobility, HIP, shim6
            following, body = data[body], body + 8 + data[body + 1] * 8
        elif following == 51:  # authentication header
            following, body = data[body], body + 8 + data[body + 1] * 4
        elif following == 44:
            where, ident = struct.unpack_from(">HI", data, body + 2)
            if where & 0xFFF9:
                return Fragment(
                    struct.pack(">I", ident) + addresses + link,
                    data[at : at + 6] + data[body : body + 1] + data[at + 7 : at + 40],
                    6, where & 0xFFF8, bool(where & 1), data[body + 8 : end], len(data) >= end, link,
                )  # fmt: skip
            following, body = data[body], body + 8  # an atomic fragment (RFC 6946)
        else:
            break
    if following == 6:
        ports = data[body : body + 4]
        if len(ports) < 4:
            return "cut"
        reverse = addresses[16:] + addresses[:16] + ports[2:] + ports[:2] + link
        return Segment(addresses + ports + link, reverse, data, body, end, 6)
    return _protocol(following, data, body)


def _protocol(protocol: int, data: bytes, at: int) -> str | tuple[int, int]:
    if protocol == 17:
        return _UDP, at
    if protocol == 47:
        return _GRE, at
    if protocol in (4, 41):
        return _IP, at
    if protocol == 137:
        return _MPLS, at
    if protocol == 97:  # EtherIP
        return _ETHERNET, at + 2
    if protocol == 51:
        return _protocol(data[at], data, at + 8 + data[at + 1] * 4)
    return "not_tcp"


def _gre(data: bytes, at: int) -> str | tuple[int, int]:
    flags, kind = struct.unpack_from(">HH", data, at)
    at += 4 + (4 if flags & 0xC000 else 0) + (4 if flags & 0x2000 else 0) + (4 if flags & 0x1000 else 0)
    if flags & 7 == 1 and flags & 0x80:
        at += 4
    if kind == 0x88BE:  # ERSPAN: type I has no header of its own, and no sequence number
        return _ETHERNET, at + (8 if flags & 0x1000 else 0)
    if kind == 0x22EB:
        return _ETHERNET, at + 12 + (8 if data[at + 11] & 1 else 0)
    following = _ETHERTYPES.get(kind)
    return (following, at) if following is not None else "not_ip"


def _udp(data: bytes, at: int, link: bytes) -> str | tuple[int, int, bytes]:
    source, target = struct.unpack_from(">HH", data, at)
    at += 8
    if target in _VXLAN:
        return _ETHERNET, at + 8, link + b"n" + data[at + 4 : at + 7]
    if target in _GENEVE:
        following = _ETHERTYPES.get(_U16(data, at + 2)[0])
        if following is None:
            return "not_ip"
        return following, at + 8 + (data[at] & 0x3F) * 4, link + b"n" + data[at + 4 : at + 7]
    if target in _GTP and data[at] & 0xF0 == 0x30 and data[at + 1] == 255:
        flags, inner = data[at], at + 8
        if flags & 7:
            inner += 4
            if flags & 4:
                kind = data[inner - 1]
                while kind:
                    size = data[inner] * 4
                    if not size:
                        return "malformed"
                    inner += size
                    kind = data[inner - 1]
        return _IP, inner, link
    if source in _TEREDO or target in _TEREDO:
        if data[at : at + 2] == b"\0\1":  # authentication (RFC 4380 section 5.1.1)
            at += 13 + data[at + 2] + data[at + 3]
        if data[at : at + 2] == b"\0\0":
            at += 8
        return (_IPV6, at, link) if data[at] >> 4 == 6 else "not_tcp"
    return "not_tcp"


def peers(key: bytes, version: int) -> tuple[str, str, str]:
    """Source and destination as `ip:port` (IPv6 in brackets), and the link in hex ("" where there is none) of a key."""
    size = 16 if version == 6 else 4
    if version == 6:
        source, target = f"[{_ipv6_text(key[:16])}]", f"[{_ipv6_text(key[16:32])}]"
    else:
        source, target = socket.inet_ntoa(key[:4]), socket.inet_ntoa(key[4:8])
    sport, dport = struct.unpack_from(">HH", key, 2 * size)
    return f"{source}:{sport}", f"{target}:{dport}", key[2 * size + 4 :].hex()


def _ipv6_text(address: bytes) -> str:
    """Hexadecimal throughout: the dotted tail of mapped addresses is written by some versions of Python only."""
    text = socket.inet_ntop(socket.AF_INET6, address)
    if "." in text:
        start, _, _ = text.rpartition(":")
        text = f"{start}:{int.from_bytes(address[12:14], 'big'):x}:{int.from_bytes(address[14:], 'big'):x}"
    return text
