"""What decoding gives: a TCP segment, a piece of an IP packet, or the next layer to read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Segment(NamedTuple):
    """A TCP segment inside a frame. Addresses and ports are in `key`, which names one direction."""

    key: bytes  # source, destination, ports, then the link; see `decode.peers`
    reverse: bytes
    data: bytes  # the frame, or the packet that fragments made
    tcp_at: int
    end: int  # where the IP packet ends; beyond len(data) when it was cut
    version: int = 4
    nested: bool = False  # in a tunnel: what its packet says holds, whatever the frame's length was on the wire


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
    depth: int = 0  # encapsulations that were opened to get at it


class Step(NamedTuple):
    """The next layer."""

    read: Reader
    at: int
    limit: int
    link: bytes


Result = Step | Segment | Fragment | str  # a reason why there is nothing
#: (bytes, where the layer begins, where what holds it ends, the network it is in)
Reader = Callable[[bytes, int, int, bytes], Result]
