"""Link frames down to TCP, through what may lie between: tags, labels, tunnels.

One loop over the table of `layers`: each layer names the next one and where it begins. At most MAX_DEPTH encapsulations
are opened (a crafted packet may nest without end); a run of tags, or of labels, is one. Nothing here raises on input;
what cannot be decoded is named by a reason from a closed set: `REASONS`.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from capture.layers import IP, LINKS, NESTS
from capture.segment import Fragment, Segment

MAX_DEPTH: Final = 8
_MAX_STEPS: Final = 12 * MAX_DEPTH

REASONS: Final = (
    "cut", "depth", "encrypted", "link_type", "malformed", "not_ip", "not_tcp", "fragment", "other_interface",
    "other_link", "kernel", "not_selected",
)  # fmt: skip


def decode(
    linktype: int, data: bytes, link: bytes = b"", wire_len: int = 0, depth: int = 0
) -> Segment | Fragment | str:
    """The TCP segment that a frame carries, a fragment, or the reason why there is none.

    `wire_len` is the frame's length before it was cut (0: it was not); `depth`: encapsulations opened before.
    """
    begin = LINKS.get(linktype)
    if begin is None:
        return "link_type"
    read, at = begin
    limit = wire_len if wire_len > len(data) else len(data)
    packets = 0
    try:
        for _ in range(_MAX_STEPS):
            if read in NESTS:
                depth += 1
                if depth > MAX_DEPTH:
                    return "depth"
            if read is IP:
                packets += 1
            found = read(data, at, limit, link)
            if isinstance(found, str):
                return found
            if isinstance(found, Segment):
                return found if packets == 1 else _inner(found, limit)
            if isinstance(found, Fragment):
                return found._replace(depth=depth) if depth else found
            read, at, limit, link = found
    except (struct.error, IndexError):
        return "cut"
    return "depth"


def _inner(found: Segment, limit: int) -> Segment:
    """Of a packet in a packet, cut when it was wrapped perhaps: what is behind the outer one is no part of it."""
    data = found.data
    if found.end > limit and len(data) > limit:
        data = data[:limit]
    return found._replace(data=data, nested=True)


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
