"""What may lie between a link and TCP, from one table: `LAYERS`, at the end.

A row says what a layer is called, who reads it, and what it is named by: a link type (LINKTYPE_*), an EtherType, an IP
protocol, a UDP port, a protocol of PPP. A reader is given the bytes, where its layer begins, where what holds it ends,
and the network it is in (VLAN tags, VNI); it gives the same of the next layer, what was found, or the reason why there
is nothing. Readers raise struct.error and IndexError where bytes are missing.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from capture.segment import Fragment, Reader, Result, Segment, Step

_U16, _U32 = struct.Struct(">H").unpack_from, struct.Struct(">I").unpack_from
_JUMBO: Final = 0xC2
_MAX_TAGS: Final = 64  # each makes what a connection is known by longer

# -- links


def _ethernet(data: bytes, at: int, limit: int, link: bytes) -> Result:
    return _ethertype(data, at + 12, limit, link)


def _ethertype(data: bytes, at: int, limit: int, link: bytes) -> Result:
    kind = _U16(data, at)[0]
    if kind < 0x0600 or kind == 0x8870:  # a length: IEEE 802.3, then LLC
        return Step(_snap, at + 2, limit, link)
    read = _ETHERTYPES.get(kind)
    return Step(read, at + 2, limit, link) if read is not None else "not_ip"


def _snap(data: bytes, at: int, limit: int, link: bytes) -> Result:
    if data[at : at + 3] != b"\xaa\xaa\x03":
        return "not_ip"
    return _ethertype(data, at + 6, limit, link)


def _null(data: bytes, at: int, limit: int, link: bytes) -> Result:
    """The address family: LOOP in network order, NULL in that of the host that captured, whichever it was."""
    family = _U32(data, at)[0]
    if family > 0xFFFF:
        family = struct.unpack_from("<I", data, at)[0]
    return Step(_ip, at + 4, limit, link) if family in (2, 10, 23, 24, 28, 30) else "not_ip"


def _arcnet(data: bytes, at: int, limit: int, link: bytes) -> Result:
    """From the protocol's id on: IP of RFC 1051, and of RFC 1201, which may split a packet."""
    if data[at] == 0xF0:
        return Step(_ip, at + 1, limit, link)
    return Step(_ip, at + 4, limit, link) if data[at] == 0xD4 and not data[at + 1] else "not_ip"


def _sll2(data: bytes, at: int, limit: int, link: bytes) -> Result:
    read = _ETHERTYPES.get(_U16(data, at)[0])  # its first field; tags stand behind the header
    return Step(read, at + 20, limit, link) if read is not None else "not_ip"


def _wireless(data: bytes, at: int, limit: int, link: bytes) -> Result:
    control, flags = data[at], data[at + 1]
    if control & 0x0C != 0x08 or control & 0x40:
        return "not_ip"
    if flags & 0x40:
        return "encrypted"
    at += 30 if flags & 3 == 3 else 24
    if control & 0x80:
        at += 2 + (4 if flags & 0x80 else 0)
    if data[at + 2 : at + 5] == b"\xaa\xaa\x03":
        at += 2  # some cards pad the header to four bytes
    return Step(_snap, at, limit, link)


def _radiotap(data: bytes, at: int, limit: int, link: bytes) -> Result:  # PPI, too
    return _wireless(data, at + struct.unpack_from("<H", data, at + 2)[0], limit, link)


def _avs(data: bytes, at: int, limit: int, link: bytes) -> Result:
    return _wireless(data, at + _U32(data, at + 4)[0], limit, link)


def _nflog(data: bytes, at: int, limit: int, link: bytes) -> Result:
    at += 4
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("<HH", data, at)
        if kind & 0x7FFF == 9:
            return Step(_ip, at + 4, limit, link)
        if length < 4:
            return "malformed"
        at += (length + 3) & ~3
    return "not_ip"


def _pflog(data: bytes, at: int, limit: int, link: bytes) -> Result:
    return Step(_ip, at + ((data[at] + 3) & ~3), limit, link)


def _frame_relay(data: bytes, at: int, limit: int, link: bytes) -> Result:
    while not data[at] & 1:  # the address has an end mark (Q.922)
        at += 1
    at += 2 + (data[at + 2] == 0)
    protocol = data[at]
    if protocol == 0x80:
        return _ethertype(data, at + 4, limit, link)
    return Step(_ip, at + 1, limit, link) if protocol in (0xCC, 0x8E) else "not_ip"


# -- tags, labels, sessions


def _tags(data: bytes, at: int, limit: int, link: bytes) -> Result:
    for _ in range(_MAX_TAGS):
        high, low = data[at] & 0x0F, data[at + 1]
        if high or low:  # 0: a priority, no network of its own
            link += b"v" + bytes((high, low))
        if _ETHERTYPES.get(_U16(data, at + 2)[0]) is not _tags:
            return _ethertype(data, at + 2, limit, link)
        at += 4
    return "depth"


def _tag_of_four(data: bytes, at: int, limit: int, link: bytes) -> Result:
    return _ethertype(data, at + 4, limit, link)


def _metadata(data: bytes, at: int, limit: int, link: bytes) -> Result:
    """Cisco's: version, length, options, group; the EtherType stands behind them."""
    return _ethertype(data, at + 6, limit, link)


def _service(data: bytes, at: int, limit: int, link: bytes) -> Result:
    """RFC 8300. The path is no part of what a connection is known by: its answers come on another one."""
    flags, size = data[at], (data[at + 1] & 0x3F) * 4
    read = {1: _ip, 2: _ip, 3: _ethernet, 4: _service, 5: _mpls}.get(data[at + 3])
    if flags & 0xE0 or read is None:  # another version, or what nodes of the chain tell each other
        return "not_ip"
    return Step(read, at + size, limit, link) if size >= 8 else "malformed"


def _backbone(data: bytes, at: int, limit: int, link: bytes) -> Result:
    """IEEE 802.1ah: flags and 24 bits of a service, then the customer's frame."""
    return Step(_ethernet, at + 4, limit, link + b"n" + data[at + 1 : at + 4])


def _macsec(data: bytes, at: int, limit: int, link: bytes) -> Result:
    if data[at] & 0x0C:
        return "encrypted"
    return _ethertype(data, at + 6 + (8 if data[at] & 0x20 else 0), limit, link)


def _mpls(data: bytes, at: int, limit: int, link: bytes) -> Result:
    while not data[at + 2] & 1:
        at += 4
    at += 4
    nibble = data[at] >> 4
    # What follows is not named. An address of Ethernet may begin as IP does, and as the control word of a pseudo-wire
    # (RFC 4385): its EtherType decides.
    if _is_packet(data, at, limit):
        return Step(_ip, at, limit, link)
    if nibble == 0 and (not _is_frame(data, at) or _is_frame(data, at + 4)):
        at += 4
    return Step(_ethernet, at, limit, link)


def _is_frame(data: bytes, at: int) -> bool:
    return len(data) >= at + 14 and _U16(data, at + 12)[0] in _ETHERTYPES


def _is_packet(data: bytes, at: int, limit: int) -> bool:
    version = data[at] >> 4
    if version not in (4, 6) or not _is_frame(data, at):
        return version in (4, 6)
    length = _U16(data, at + 4)[0] + 40 if version == 6 else _U16(data, at + 2)[0]
    return bool(length <= limit - at)


def _pppoe(data: bytes, at: int, limit: int, link: bytes) -> Result:
    return Step(_ppp, at + 6, limit, link) if data[at + 1] == 0 else "not_ip"


def _ppp(data: bytes, at: int, limit: int, link: bytes) -> Result:
    if data[at] in (0x0F, 0x8F) and data[at + 1] == 0:
        return _ethertype(data, at + 2, limit, link)  # Cisco's HDLC on the same links
    if data[at] == 0xFF and data[at + 1] == 3:
        at += 2
    short = data[at] & 1  # protocol field compression (RFC 1661 section 6.5)
    read = _PPP.get(data[at] if short else _U16(data, at)[0])
    return Step(read, at + (1 if short else 2), limit, link) if read is not None else "not_ip"


# -- IP


def _ip(data: bytes, at: int, limit: int, link: bytes) -> Result:
    version = data[at] >> 4
    if version == 4:
        return _ipv4(data, at, limit, link)
    return _ipv6(data, at, limit, link) if version == 6 else "malformed"


def _ip_in_ip(data: bytes, at: int, limit: int, link: bytes) -> Result:
    return Step(_ip, at, limit, link)


def _ipv4(data: bytes, at: int, limit: int, link: bytes) -> Result:
    header = (data[at] & 15) * 4
    if header < 20:
        return "malformed"
    length, _, flags = struct.unpack_from(">HHH", data, at + 2)
    end = at + length if length else limit  # 0: segmentation offload
    body = at + header
    if end < body:
        return "malformed"
    protocol = data[at + 9]
    if flags & 0x3FFF:
        if len(data) < body:
            return "cut"
        piece = data[body : min(end, limit)]
        return Fragment(
            data[at + 4 : at + 6] + data[at + 9 : at + 10] + data[at + 12 : at + 20] + link,
            data[at : at + 6] + b"\0\0" + data[at + 8 : body],
            4, (flags & 0x1FFF) * 8, bool(flags & 0x2000), piece, len(piece) == end - body, link,
        )  # fmt: skip
    while protocol == 51:  # authentication header
        protocol, body = data[body], body + 8 + data[body + 1] * 4
    if protocol == 6:
        ports = data[body : body + 4]
        source, target = data[at + 12 : at + 16], data[at + 16 : at + 20]
        if len(ports) < 4:
            return "cut"
        return Segment(source + target + ports + link, target + source + ports[2:] + ports[:2] + link, data, body, end)
    read = _PROTOCOLS.get(protocol)
    return Step(read, body, min(end, limit), link) if read is not None else "not_tcp"


def _ipv6(data: bytes, at: int, limit: int, link: bytes) -> Result:
    length = _U16(data, at + 4)[0]
    following = data[at + 6]
    body = at + 40
    end = body + length if length else limit  # 0: a jumbogram, or segmentation offload
    addresses = data[at + 8 : at + 40]
    for _ in range(16):
        if following in (0, 43, 60, 135, 139, 140):  # hop-by-hop, routing, destination, mobility, HIP, shim6
            if not length and following == 0 and data[body + 2] == _JUMBO:
                end = at + 40 + _U32(data, body + 4)[0]  # RFC 2675
            following, body = data[body], body + 8 + data[body + 1] * 8
        elif following == 51:  # authentication header
            following, body = data[body], body + 8 + data[body + 1] * 4
        elif following == 44:
            where, ident = struct.unpack_from(">HI", data, body + 2)
            if where & 0xFFF9:
                piece = data[body + 8 : min(end, limit)]
                return Fragment(
                    struct.pack(">I", ident) + addresses + link,
                    data[at : at + 6] + data[body : body + 1] + data[at + 7 : at + 40],
                    6, where & 0xFFF8, bool(where & 1), piece, len(piece) == end - body - 8, link,
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
    read = _PROTOCOLS.get(following)
    return Step(read, body, min(end, limit), link) if read is not None else "not_tcp"


def _encrypted(data: bytes, at: int, limit: int, link: bytes) -> Result:
    return "encrypted"


# -- tunnels


def _gre(data: bytes, at: int, limit: int, link: bytes) -> Result:
    flags, kind = struct.unpack_from(">HH", data, at)
    at += 4 + (4 if flags & 0xC000 else 0) + (4 if flags & 0x2000 else 0) + (4 if flags & 0x1000 else 0)
    if flags & 7 == 1 and flags & 0x80:
        at += 4
    if flags & 0x4000:  # source routes (RFC 1701), up to an empty one
        while data[at + 3] or _U16(data, at)[0]:
            at += 4 + data[at + 3]
        at += 4
    if kind == 0x88BE:  # ERSPAN: type I has no header of its own, and no sequence number
        return Step(_ethernet, at + (8 if flags & 0x1000 else 0), limit, link)
    if kind == 0x22EB:  # type III, which may carry packets without their frame
        word = _U16(data, at + 10)[0]
        at += 12 + (8 if word & 1 else 0)
        return Step(_ip if word >> 10 & 0x1F == 2 else _ethernet, at, limit, link)
    if kind == 0x883E:  # WCCP: version 2 has a header of four bytes
        return Step(_ip, at if data[at] >> 4 == 4 else at + 4, limit, link)
    if kind == 0x8909:  # Cisco's metadata, with the EtherType before the rest
        kind, at = _U16(data, at)[0], at + 8
    if 0x8200 <= kind < 0x8400:  # what an access point of Aruba sends its controller: frames of 802.11
        return Step(_wireless, at, limit, link)
    read = _ETHERTYPES.get(kind)
    return Step(read, at, limit, link) if read is not None else "not_ip"


def _ether_ip(data: bytes, at: int, limit: int, link: bytes) -> Result:
    return _ethertype(data, at + 14, limit, link)


def _udp(data: bytes, at: int, limit: int, link: bytes) -> Result:
    source, target = struct.unpack_from(">HH", data, at)
    read = _PORTS.get(target) or _PORTS.get(source)
    return Step(read, at + 8, limit, link) if read is not None else "not_tcp"


def _vxlan(data: bytes, at: int, limit: int, link: bytes) -> Result:
    return Step(_ethernet, at + 8, limit, link + b"n" + data[at + 4 : at + 7])


def _vxlan_gpe(data: bytes, at: int, limit: int, link: bytes) -> Result:
    read = {0: _ethernet, 1: _ip, 2: _ip, 3: _ethernet, 4: _service, 5: _mpls}.get(data[at + 3] if data[at] & 4 else 0)
    return Step(read, at + 8, limit, link + b"n" + data[at + 4 : at + 7]) if read is not None else "not_ip"


def _geneve(data: bytes, at: int, limit: int, link: bytes) -> Result:
    read = _ETHERTYPES.get(_U16(data, at + 2)[0])
    if read is None:
        return "not_ip"
    return Step(read, at + 8 + (data[at] & 0x3F) * 4, limit, link + b"n" + data[at + 4 : at + 7])


def _gtp(data: bytes, at: int, limit: int, link: bytes) -> Result:
    flags = data[at]
    if flags & 0xF0 != 0x30 or data[at + 1] != 255:
        return "not_tcp"
    at += 8
    if flags & 7:
        at += 4
        if flags & 4:  # extension headers: the last byte of each names the next one
            while data[at - 1]:
                if not data[at]:
                    return "malformed"
                at += data[at] * 4
    return Step(_ip if _is_packet(data, at, limit) else _ethernet, at, limit, link)


def _teredo(data: bytes, at: int, limit: int, link: bytes) -> Result:
    if data[at : at + 2] == b"\0\1":  # authentication (RFC 4380 section 5.1.1)
        at += 13 + data[at + 2] + data[at + 3]
    if data[at : at + 2] == b"\0\0":
        at += 8
    return Step(_ip, at, limit, link) if data[at] >> 4 == 6 else "not_tcp"


def _ayiya(data: bytes, at: int, limit: int, link: bytes) -> Result:
    """Lengths of identity (a power of two) and signature (words), hash, operation (1: forward), what follows."""
    if data[at + 2] & 0x0F != 1 or data[at + 3] not in (4, 41):
        return "not_tcp"
    return Step(_ip, at + 8 + (1 << (data[at] >> 4)) + 4 * (data[at + 1] >> 4), limit, link)


def _tzsp(data: bytes, at: int, limit: int, link: bytes) -> Result:
    if data[at] != 1 or _U16(data, at + 2)[0] != 1:
        return "not_tcp"
    at += 4
    while data[at] != 1:  # tags up to the end mark; 0 is padding
        at += 2 + data[at + 1] if data[at] else 1
    return Step(_ethernet, at + 1, limit, link)


def _l2tp(data: bytes, at: int, limit: int, link: bytes) -> Result:
    flags = _U16(data, at)[0]
    if flags & 0x8000 or flags & 15 != 2:
        return "not_tcp"  # its control, or another version
    at += 6 + (2 if flags & 0x4000 else 0) + (4 if flags & 0x0800 else 0)
    if flags & 0x0200:
        at += 2 + _U16(data, at)[0]
    return Step(_ppp, at, limit, link)


_NO_LINKS: Final[Mapping[int, int]] = {}


class Layer(NamedTuple):
    """A row of the table."""

    name: str
    read: Reader
    links: Mapping[int, int] = _NO_LINKS  # link types, and where this layer begins on each
    ethertypes: tuple[int, ...] = ()
    protocols: tuple[int, ...] = ()  # of IP
    ports: tuple[int, ...] = ()  # of UDP
    ppp: tuple[int, ...] = ()
    nests: bool = False  # counts for how deep a packet is


LAYERS: Final = (
    Layer("ethernet", _ethernet, {1: 0, 240: 4, 241: 12}, (0x6558,), (143,)),
    Layer("ethertype", _ethertype, {113: 14, 104: 2, 205: 3, 138: 16}),
    Layer("llc", _snap, {100: 0, 10: 13}),
    Layer("cooked v2", _sll2, {276: 0}),
    Layer("arcnet", _arcnet, {129: 4, 7: 2}),
    Layer("loopback", _null, {0: 0, 108: 0}),
    Layer("802.11", _wireless, {105: 0, 119: 144}),
    Layer("802.11 radiotap", _radiotap, {127: 0, 192: 0}),
    Layer("802.11 avs", _avs, {163: 0}),
    Layer("nflog", _nflog, {239: 0}),
    Layer("pflog", _pflog, {117: 0}),
    Layer("frame relay", _frame_relay, {107: 0}),
    Layer("ppp", _ppp, {9: 0, 50: 0, 204: 1, 166: 1}, (0x880B,)),
    Layer("pppoe", _pppoe, {51: 0}, (0x8864,), nests=True),
    Layer("vlan", _tags, _NO_LINKS, (0x8100, 0x88A8, 0x9100, 0x9200, 0x9300), nests=True),
    Layer("vn-tag, hsr", _tag_of_four, _NO_LINKS, (0x8926, 0x892F)),
    Layer("cisco metadata", _metadata, _NO_LINKS, (0x8909,)),
    Layer("nsh", _service, _NO_LINKS, (0x894F,), nests=True),
    Layer("802.1ah", _backbone, _NO_LINKS, (0x88E7,), nests=True),
    Layer("macsec", _macsec, _NO_LINKS, (0x88E5,)),
    Layer("mpls", _mpls, {219: 0}, (0x8847, 0x8848), (137,), (6635,), (0x0281, 0x0283), nests=True),
    Layer("ip", _ip, {101: 0, 12: 0, 14: 0, 228: 0, 229: 0, 109: 12, 226: 24}, (0x0800, 0x86DD), (), (), (0x21, 0x57)),
    Layer("ip in ip", _ip_in_ip, _NO_LINKS, (), (4, 41, 94), nests=True),
    Layer("esp", _encrypted, _NO_LINKS, (), (50,)),
    Layer("gre, erspan", _gre, _NO_LINKS, (), (47,), (4754,), nests=True),
    Layer("etherip", _ether_ip, _NO_LINKS, (), (97,), nests=True),
    Layer("udp", _udp, _NO_LINKS, (), (17,)),
    Layer("vxlan", _vxlan, _NO_LINKS, (), (), (4789, 8472), nests=True),
    Layer("vxlan-gpe", _vxlan_gpe, _NO_LINKS, (), (), (4790,), nests=True),
    Layer("geneve", _geneve, _NO_LINKS, (), (), (6081,), nests=True),
    Layer("gtp", _gtp, _NO_LINKS, (), (), (2152,), nests=True),
    Layer("teredo", _teredo, _NO_LINKS, (), (), (3544,), nests=True),
    Layer("ayiya", _ayiya, _NO_LINKS, (), (), (5072,), nests=True),
    Layer("tzsp", _tzsp, _NO_LINKS, (), (), (37008,), nests=True),
    Layer("l2tp", _l2tp, _NO_LINKS, (), (), (1701,), nests=True),
)

LINKS: Final = {kind: (layer.read, at) for layer in LAYERS for kind, at in layer.links.items()}
NESTS: Final = frozenset(layer.read for layer in LAYERS if layer.nests)
IP: Final = _ip
_ETHERTYPES: Final = {kind: layer.read for layer in LAYERS for kind in layer.ethertypes}
_PROTOCOLS: Final = {kind: layer.read for layer in LAYERS for kind in layer.protocols}
_PORTS: Final = {kind: layer.read for layer in LAYERS for kind in layer.ports}
_PPP: Final = {kind: layer.read for layer in LAYERS for kind in layer.ppp}
