"""What can be set of capturing, with defaults that suit one busy host."""

from __future__ import annotations

from typing import Literal

import msgspec

from bus.spool import MIN_SPOOL_BYTES

_MIB = 1 << 20
MIN_MEMORY_BYTES = 128 * _MIB  # of a recorder: the program (60 MB), the ring (32 MB), and what there is to hold
#: What is encoded while a core's cache holds it still takes a seventh less of the recorder.
FILE_BATCH_BYTES = 256 << 10
BUS_BATCH_BYTES = _MIB  # a message of a bus costs who cleanses it 1 ms, whatever its length
MAX_BODY_BYTES = 24 * _MIB  # two bodies and their heads fit in the 64 MiB of a batch
BUS_BODY_BYTES = 3 * _MIB + _MIB // 2  # the same for the 8 MB of a message between machines


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
    #: Written when so much waits. 0: `FILE_BATCH_BYTES`, and to a bus `BUS_BATCH_BYTES`.
    batch_bytes: int = 0
    batch_ns: int = 500_000_000  # or so long after the last write

    def __post_init__(self) -> None:
        if not 0 <= self.max_body_bytes <= MAX_BODY_BYTES:
            raise ValueError(f"max_body_bytes lies between 0 and {MAX_BODY_BYTES}: an exchange must fit in one batch")


class SampleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which part of what passes is recorded. Nothing given: all of it."""

    share: float = 1.0  # of the sessions, by hash: part of the recording's scale
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()  # patterns: /orders/{id}, /static/**
    headers: tuple[tuple[str, str], ...] = ()  # (name, value)
    cookies: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"a sample is a share of the sessions above 0 and at most 1, not {self.share}")

    @property
    def without_values(self) -> SampleSettings:
        """As it may be told to who reads the recording: of headers and cookies only the names."""
        return msgspec.structs.replace(
            self,
            headers=tuple((name, "") for name, _ in self.headers),
            cookies=tuple((name, "") for name, _ in self.cookies),
        )


class RecordSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is recorded live, and how long."""

    to: str  # a file; "" = the streams of a bus
    interfaces: tuple[str, ...] = ()  # empty: all that carry traffic
    ports: tuple[int, ...] = ()
    hosts: tuple[str, ...] = ()
    not_hosts: tuple[str, ...] = ()
    for_ns: int = 0  # 0: until it is stopped
    #: Instead of the wire, one kind of these.
    proxies: tuple[tuple[str, str], ...] = ()  # (listen, upstream), each "ip:port"
    mirrors: tuple[str, ...] = ()  # addresses that gateways send copies of requests to, "ip:port"
    vxlan: tuple[str, ...] = ()  # addresses that frames come to in UDP, "ip:port"
    geneve: tuple[str, ...] = ()
    socket: str = ""  # the path of a unix socket that services hand bytes to
    buffer_s: float = 2.0  # of traffic that may wait for the disk
    max_disk_bytes: int = 0  # 0: as much as there is; then recording stops, or the oldest segments go
    #: With one of these `to` is a folder of segments.
    rotate_bytes: int = 0  # a new segment after so much
    rotate_ns: int = 0  # or after this time
    keep_last_ns: int = 0  # segments that are older are removed
    #: Several recorders share the interfaces, by the hash of a connection, and the folder.
    processes: int = 1
    process: int = 0  # which of them this is
    fanout: int = 0  # names their group, to the kernel
    scale: float = 1.0  # the share of production that passes where this recording is made, by all its recorders
    capture: CaptureSettings = msgspec.field(default_factory=CaptureSettings)
    #: `given`: the listeners that are named, else the ring; `auto`: the ring where it is permitted, else the proxies.
    source: Literal["given", "auto", "ring", "proxy", "scapy"] = "given"
    keep_stress: bool = False  # record marked stress traffic too
    #: Over a bus: which one, the recording's name there, this recorder's own, and those of all that take part.
    bus: str = ""
    recording: str = ""
    agent: str = ""
    agents: tuple[str, ...] = ()
    spool: str = ""  # the folder where what the bus cannot take now waits
    spool_max_bytes: int = 512 * _MIB
    bus_buffer_s: float = 10.0  # of traffic that may wait in memory while a call to the bus has not come back
    sample: SampleSettings = msgspec.field(default_factory=SampleSettings)
    #: What recording may cost; 0: no bound. Beyond it whole sessions are shed.
    max_cpu: float = 0.0  # of one core
    max_memory_bytes: int = 0
    max_rate: float = 0.0  # bytes a second to the file or the bus
    kill_file: str = ""  # recording stops when it is there
    user: str = ""  # who goes on when all sockets are open; "" = who began

    @property
    def segmented(self) -> bool:
        """Whether `to` is a folder."""
        return bool(self.rotate_bytes or self.rotate_ns or self.keep_last_ns or self.processes > 1)

    @property
    def bounded(self) -> bool:
        """Whether there is a bound to what recording may cost."""
        return bool(self.max_cpu or self.max_memory_bytes or self.max_rate)

    def __post_init__(self) -> None:
        if bool(self.to) == bool(self.bus):
            raise ValueError("a recording goes either to a file (to) or to a bus (bus, recording, agent)")
        if self.bus and (self.segmented or self.max_disk_bytes):
            raise ValueError("segments and a budget of disk are of a folder (to); a bus has a spool (spool_max_bytes)")
        if self.bus and not (self.recording and self.agent and self.spool):
            raise ValueError("a recording on a bus needs a name (recording), this recorder's (agent), and a spool")
        if self.max_memory_bytes and self.max_memory_bytes < MIN_MEMORY_BYTES:
            raise ValueError(
                f"max_memory_bytes is {self.max_memory_bytes}: at least {MIN_MEMORY_BYTES}; "
                "the program and the ring take 96 MiB of it"
            )
        if self.spool_max_bytes < MIN_SPOOL_BYTES:
            raise ValueError(f"spool_max_bytes is {self.spool_max_bytes}: at least {MIN_SPOOL_BYTES}")
