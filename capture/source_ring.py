"""Packets from an interface, through a ring that the kernel fills and this process maps (AF_PACKET, TPACKET_V3).

The kernel writes frames into blocks and hands a block over when it is full, or when `retire_ms` have passed:
one system call serves many packets, none is copied by a call of its own. Layouts and rules are those of
linux/if_packet.h and Documentation/networking/packet_mmap.rst.

    block  = u32 version, u32 offset to private, u32 status, u32 packets, u32 offset to the first, u32 length, ...
    packet = u32 next, u32 s, u32 ns, u32 kept bytes, u32 bytes on the wire, u32 status, u16 to the link header,
             u16 to the network header, u32 rx hash, u32 VLAN tci, u16 VLAN tpid, u16, 8 bytes, sockaddr_ll

`any` is all interfaces, also those that come later: a socket that is bound to none, whose packets begin with the IP
header and name their interface. On a bridge or a veth pair a packet passes several times; the assembler takes a
direction from one interface and counts the copies.

Several processes share an interface by fanout: the kernel gives both directions of a connection to the same one, by
their hash, and puts IP fragments together before.

What is lost is known: the kernel counts what it saw and what found no room, and `finish` holds that
against what was read here. The interface is not made promiscuous: only what reaches this host is seen.
"""

from __future__ import annotations

import errno
import mmap
import os
import select
import socket
import struct
import time
from typing import Final

from bus.ports import BusError
from capture import bpf
from capture.source import PacketSink
from capture.steps import Steps
from wire.config import ConfigError

MAX_RING_BYTES: Final = 32 << 20
BLOCK_BYTES: Final = 256 << 10  # more than the largest frame that segmentation offload makes (64 KB)
MIN_BLOCKS: Final = 4

LINKTYPE_ETHERNET: Final = 1
LINKTYPE_RAW: Final = 101

# Constants that the socket module does not have.
_SOL_PACKET = 263
_PACKET_RX_RING = 5
_PACKET_STATISTICS = 6
_PACKET_VERSION = 10
_PACKET_FANOUT = 18
_FANOUT_HASH, _FANOUT_DEFRAG = 0, 0x8000
_PACKET_IGNORE_OUTGOING = 23
_TPACKET_V3 = 2
_ETH_P_ALL = 3
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_ARPHRD_IP = (65534, 519, 768, 769, 776, 778)  # none (tun, WireGuard), raw IP, tunnels: frames begin with the IP header
_PACKET_OUTGOING = 4

_STATUS_KERNEL, _STATUS_USER = 0, 1
_VLAN_VALID, _VLAN_TPID_VALID = 1 << 4, 1 << 6

_BLOCK = struct.Struct("=IIIIIIQ")  # version, private, status, packets, first, length, sequence
_PACKET = struct.Struct("=IIIIIIH")
_VLAN_AT: Final = 32
_VLAN = struct.Struct("=IH")
_STATUS = struct.Struct("=I")
_INDEX_AT: Final = 48 + 4  # of sockaddr_ll, behind the 48 bytes of tpacket3_hdr
_PACKET_TYPE_AT: Final = 48 + 10
_WHERE = struct.Struct("=iHB")  # from _INDEX_AT on: interface, ARPHRD_*, packet type
ANY: Final = "any"
_STATISTICS = struct.Struct("=III")
_REQUEST = struct.Struct("=IIIIIII")


def open_error(interface: str = "lo") -> OSError | None:
    """None when a packet socket can be opened on this interface, else why not. Nothing is captured."""
    family = getattr(socket, "AF_PACKET", None)
    if family is None:
        return OSError(errno.EAFNOSUPPORT, "this system has no AF_PACKET sockets")
    try:
        with socket.socket(family, socket.SOCK_RAW, 0) as sock:
            sock.bind((interface, 0))
    except OSError as error:
        return error
    return None


class RingSource:
    """One interface. `feed` and `finish` are called by one thread; memory is the ring alone."""

    kernel_times = False  # the wall clock may be set: see `steps`

    def __init__(
        self,
        interface: str,
        selection: bpf.Selection,
        *,
        snaplen: int = bpf.MAX_SNAPLEN,
        ring_bytes: int = MAX_RING_BYTES,
        retire_ms: int = 50,
        fanout: int | None = None,
        steps: Steps | None = None,
    ) -> None:
        """Begins to capture. `fanout` (16 bits) names the group of rings that share this interface. Raises ConfigError
        for an interface or selection that is none, BusError where the kernel refuses."""
        self.interface = interface
        self.read = 0  # frames taken from the ring, also those that were passed over
        self.kernel_seen = 0  # frames that passed the filter, the lost ones too, as the kernel counts
        self.kernel_drops = 0
        self.cut_packets = 0  # frames of which snaplen kept less than was on the wire
        self._retire_ms = retire_ms
        self._steps = steps or Steps()
        self._block = 0
        self._skips_outgoing = False
        self._names: dict[int, str] | None = {} if interface == ANY else None  # of the interfaces that were seen
        try:
            if interface == ANY:
                self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
            else:
                self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except (OSError, AttributeError) as error:
            raise BusError(f"{interface}: packets cannot be captured: {explained(error)}") from None
        try:
            # No packet may pass before all is set up: the filter comes last, and until then there is one that lets
            # nothing in. The kind of link decides which program that is.
            bpf.attach(self._socket, bpf.reject_all())
            self.linktype = LINKTYPE_RAW
            if interface != ANY:
                self._bind(0)
                kind = self._socket.getsockname()[3]
                self.linktype = self._linktype(kind)
                self._skips_outgoing = kind == _ARPHRD_LOOPBACK and not self._ignore_outgoing()
            raw_ip = self.linktype == LINKTYPE_RAW
            program = bpf.compile_filter(selection, snaplen=snaplen, raw_ip=raw_ip)
            self._blocks = self._make_ring(min(ring_bytes, MAX_RING_BYTES) // BLOCK_BYTES)
            self._ring = mmap.mmap(
                self._socket.fileno(), self._blocks * BLOCK_BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
            )
            if interface != ANY:
                self._index = socket.if_nametoindex(interface)
                self._bind(_ETH_P_ALL)
            if fanout is not None:
                group = struct.pack("=I", fanout & 0xFFFF | (_FANOUT_HASH | _FANOUT_DEFRAG) << 16)
                self._socket.setsockopt(_SOL_PACKET, _PACKET_FANOUT, group)
            self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)  # from 0 on
            bpf.attach(self._socket, program)
        except OSError as error:
            self._socket.close()
            raise BusError(f"{interface}: packets cannot be captured: {explained(error)}") from None
        except BaseException:
            self._socket.close()
            raise
        self._was_down = False  # and no packet came since
        self._poll = select.poll()
        self._poll.register(self._socket.fileno(), select.POLLIN | select.POLLERR)

    def _bind(self, protocol: int) -> None:
        try:
            self._socket.bind((self.interface, protocol))
        except OSError as error:
            if error.errno == errno.ENODEV:
                known = ", ".join(name for _, name in socket.if_nameindex())
                raise ConfigError(
                    f"interface {self.interface!r}: there is none of that name (known: {known})"
                ) from None
            raise

    @staticmethod
    def knows(kind: int) -> bool:
        """Whether frames of this link type (ARPHRD_*) can be read."""
        return kind in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK) or kind in _ARPHRD_IP

    def _linktype(self, kind: int) -> int:
        if kind in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK):
            return LINKTYPE_ETHERNET
        if kind in _ARPHRD_IP:
            return LINKTYPE_RAW
        raise ConfigError(
            f"interface {self.interface!r}: its link type {kind} is not known (Ethernet, loopback, tunnels)"
        )

    def _ignore_outgoing(self) -> bool:
        """Packets on a loopback pass twice, out and in: have one of the two (Linux >= 4.20; else `_walk` skips)."""
        try:
            self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            return True
        except OSError:
            return False

    def _make_ring(self, blocks: int) -> int:
        """The number of blocks there was memory for."""
        self._socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
        while True:
            frames = blocks * BLOCK_BYTES // 2048
            request = _REQUEST.pack(BLOCK_BYTES, blocks, 2048, frames, self._retire_ms, 0, 0)
            try:
                self._socket.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
                return blocks
            except OSError as error:
                if error.errno != errno.ENOMEM or blocks // 2 < MIN_BLOCKS:
                    raise
                blocks //= 2

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def ring_bytes(self) -> int:
        return self._blocks * BLOCK_BYTES

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.interface,)

    @property
    def described(self) -> str:
        return f"ring on {self.interface} ({self.ring_bytes >> 20} MB)"

    def feed(self, sink: PacketSink, timeout_s: float) -> int:
        """Wait up to `timeout_s` for a block and hand its packets on; their number, 0 when there are none.

        Raises BusError when the interface is gone.
        """
        if not self._ready():
            self._steps.drained()
            events = self._poll.poll(round(timeout_s * 1000))
            if events and events[0][1] & select.POLLERR:
                self._was_down = True
            if self._was_down:
                self._check_interface()
            if not self._ready():
                return 0
        self._was_down = False
        return self._walk(sink)

    def _ready(self) -> bool:
        status: int = _STATUS.unpack_from(self._ring, self._block * BLOCK_BYTES + 8)[0]
        return bool(status & _STATUS_USER)

    def _check_interface(self) -> None:
        """The kernel tells once that an interface goes down, and not again when it is removed then; so who was told
        looks until there are packets again. By its number: one that has its name may be another."""
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code and code != errno.ENETDOWN:  # an interface that is down may come up again
            raise BusError(f"{self.interface}: capture stopped: {os.strerror(code).lower()}")
        if self.interface == ANY:
            return
        try:
            socket.if_indextoname(self._index)
        except OSError:
            raise BusError(f"{self.interface}: capture stopped: the interface is gone") from None

    def _whose(self, at: int) -> str:
        """With `any`, the interface of the packet at this place; "" for the first pass over a loopback."""
        assert self._names is not None
        index, kind, passes = _WHERE.unpack_from(self._ring, at + _INDEX_AT)
        if kind == _ARPHRD_LOOPBACK and passes == _PACKET_OUTGOING:
            return ""
        name = self._names.get(index)
        if name is None:
            try:
                name = socket.if_indextoname(index)
            except OSError:  # gone by now
                name = f"#{index}"
            self._names[index] = name
        return name

    def _walk(self, sink: PacketSink) -> int:
        ring = self._ring
        base = self._block * BLOCK_BYTES
        packets: int
        first: int
        packets, first = _BLOCK.unpack_from(ring, base)[3:5]
        at = base + first
        given = 0
        time_of = self._steps.look()
        take, interface, linktype, names = sink.packet, self.interface, self.linktype, self._names
        skips, header = self._skips_outgoing, _PACKET.unpack_from
        lane = sink.lane if names is None and linktype == LINKTYPE_ETHERNET and not skips else None
        second = second_ns = 0  # the second before: a product of that size is an object
        for _ in range(packets):
            step: int
            s: int
            ns: int
            kept: int
            wire: int
            status: int
            mac: int
            step, s, ns, kept, wire, status, mac = header(ring, at)
            if s != second:
                second, second_ns = s, s * 1_000_000_000
            at_ns = second_ns + ns
            if time_of is not None:
                at_ns = time_of(at_ns)
            if (
                lane is not None
                and kept >= 54
                and not status & _VLAN_VALID
                and lane.frame(at_ns, ring, at + mac, kept, wire, interface)
            ):
                if kept < wire:
                    self.cut_packets += 1
                given += 1
                at += step
                continue
            if names is not None:
                interface = self._whose(at)
            if interface and not (skips and ring[at + _PACKET_TYPE_AT] == _PACKET_OUTGOING):
                begin = at + mac
                data = ring[begin : begin + kept]
                if kept < wire:
                    self.cut_packets += 1
                if status & _VLAN_VALID:
                    # Put the tag back where it stood on the wire.
                    tci, tpid = _VLAN.unpack_from(ring, at + _VLAN_AT)
                    tag = struct.pack(">HH", tpid if status & _VLAN_TPID_VALID else 0x8100, tci)
                    if names is not None:  # there is no link header: one is made
                        ethertype = b"\x86\xdd" if data[:1] and data[0] >> 4 == 6 else b"\x08\0"
                        take(at_ns, bytes(12) + tag + ethertype + data, wire + 18, 1, interface)
                        given += 1
                        at += step
                        continue
                    data = data[:12] + tag + data[12:]
                    wire += 4
                take(at_ns, data, wire, linktype, interface)
                given += 1
            at += step
        self.read += packets
        _STATUS.pack_into(ring, base + 8, _STATUS_KERNEL)
        self._block = (self._block + 1) % self._blocks
        return given

    def count(self, sink: PacketSink) -> None:
        """Tell `sink` of the packets that the kernel had no room for since the last call.

        The kernel's counters are set to 0 by being read, so nobody else may read them. Its count of packets
        holds the dropped ones too.
        """
        raw = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        seen, dropped, _ = _STATISTICS.unpack(raw)
        self.kernel_seen += seen
        self.kernel_drops += dropped
        if dropped:
            sink.kernel_dropped(dropped)

    def finish(self, sink: PacketSink) -> None:
        """Let nothing more in and hand on what is in the ring.

        What the kernel says it put into the ring and was not read from it counts as seen and as nothing
        else: the ledger of packets does not balance then, and it should not.
        """
        bpf.attach(self._socket, bpf.reject_all())
        # The block being filled is handed over by the kernel's timer, at the latest after twice its interval.
        quiet = 0
        while quiet < 3:
            try:
                taken = self.feed(sink, self._retire_ms / 1000)
            except BusError:  # its interface is gone: what it saw before is here still, or comes with the timer
                time.sleep(self._retire_ms / 1000)
                taken = 0
            quiet = 0 if taken or self._ready() else quiet + 1
        self.count(sink)
        sink.account.ledger("packets").seen += self.kernel_seen - self.kernel_drops - self.read

    def close(self) -> None:
        self._ring.close()
        self._socket.close()


def explained(error: Exception) -> str:
    """Why a packet socket is refused, and what to do, in one line."""
    if isinstance(error, AttributeError):
        return "this system has no AF_PACKET sockets"
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.EPERM, errno.EACCES):
        return "not permitted (CAP_NET_RAW is needed: run as root, or setcap cap_net_raw+ep on the interpreter)"
    if code == errno.EAFNOSUPPORT:
        return "this system has no AF_PACKET sockets"
    if code == errno.ENOMEM:
        return "no memory for the ring"
    return os.strerror(code).lower() if code else str(error)
