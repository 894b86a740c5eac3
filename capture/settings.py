"""What can be set of capturing, with defaults that suit one busy host."""

from __future__ import annotations

from typing import Literal

import msgspec

_MIB = 1 << 20
MAX_BODY_BYTES = 24 * _MIB  # two bodies and their heads fit in the 64 MiB of a batch


class CaptureSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How packets become exchanges. Sizes in bytes, times in ns."""

    #: Where the session of an exchange comes from; the first that is there holds. `jwt`, `cookie:NAME`, `header:NAME`,
    #: `client+agent`, `client`, `connection`.
    sessions: tuple[str, ...] = ("jwt", "client+agent")
    max_body_bytes: int = 16 * _MIB  # of one body; what is beyond is counted, not kept
    max_head_bytes: int = 256 << 10
    max_connection_bytes: int = 4 * _MIB  # of one direction that wait for a hole to be filled
    max_total_bytes: int = 256 * _MIB  # of all connections together; beyond it whole exchanges are shed
    max_connections: int = 200_000  # the longest idle one makes room
    max_pipelined: int = 1024  # requests of one connection that wait for answers; the oldest makes room
    history_bytes: int = 256 << 10  # of one direction, kept while its exchange is open, to tell overlaps that differ
    hole_ns: int = 5_000_000_000  # how long a hole may be filled by a retransmission
    acked_hole_ns: int = 100_000_000  # the same where the peer has acknowledged it: it was lost here, not there
    idle_ns: int = 300_000_000_000  # a connection without packets for so long is over
    closed_ns: int = 5_000_000_000  # how long a closed one is remembered, for its late packets
    #: Keep answers whose request was never seen, as exchanges with an empty request. Unset: imports do; recordings,
    #: whose readers ask when a request began, do not.
    keep_unpaired: bool | None = None
    batch_bytes: int = 256 << 10  # written when so much waits
    batch_ns: int = 500_000_000  # or so long after the last write

    def __post_init__(self) -> None:
        if not 0 <= self.max_body_bytes <= MAX_BODY_BYTES:
            raise ValueError(f"max_body_bytes lies between 0 and {MAX_BODY_BYTES}: an exchange must fit in one batch")


class RecordSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is recorded live, and how long."""

    to: str
    interfaces: tuple[str, ...] = ()  # empty: all that carry traffic
    ports: tuple[int, ...] = ()
    hosts: tuple[str, ...] = ()
    not_hosts: tuple[str, ...] = ()
    for_ns: int = 0  # 0: until it is stopped
    proxies: tuple[tuple[str, str], ...] = ()  # (listen, upstream), each "ip:port"; none: the wire is recorded
    buffer_s: float = 2.0  # of traffic that may wait for the disk
    max_disk_bytes: int = 0  # 0: as much as there is
    scale: float = 1.0  # the share of production that passes here
    capture: CaptureSettings = msgspec.field(default_factory=CaptureSettings)
    #: `given`: the proxies that are named, else the ring; `auto`: the ring where it is permitted, else the proxies.
    source: Literal["given", "auto", "ring", "proxy"] = "given"
    keep_stress: bool = False  # record marked stress traffic too
