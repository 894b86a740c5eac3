"""Packets through scapy, where there are no AF_PACKET sockets: macOS, the BSDs, Windows with Npcap.

Scapy is GPL-2.0-only, so it is no dependency: whoever wants it installs `livefire[scapy]`. Only its sockets are used,
not its dissection, which takes 200 us a packet. A system call a packet and a filter that looks at each frame here:
good for some thousands of packets a second. What the system had no room for, it is asked for: scapy is not told.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from bus.ports import BusError
from capture.bpf import Selection, attach, compile_filter
from capture.selected import Selected
from capture.source import PacketSink
from capture.steps import Steps
from wire.config import ConfigError

_MAX_FRAME: Final = 1 << 18
_A_TURN: Final = 500
_DRAIN: Final = 10_000
#: LINKTYPE_* of the layers that scapy names.
_LINKTYPES: Final = {"Ether": 1, "Loopback": 0, "CookedLinux": 113, "CookedLinuxV2": 276, "IP": 101, "IPv6": 101}
_LOOPBACKS: Final = ("lo",)
RECEIVE_BYTES: Final = 8 << 20
_SO_RCVBUFFORCE: Final = 33
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6
_PACKET_IGNORE_OUTGOING: Final = 23
_STATISTICS: Final = struct.Struct("=II")  # struct tpacket_stats: packets, drops


class ScapySource:
    """Called by one thread; what waits is in the system's buffers."""

    kernel_times = False  # the wall clock may be set: see `steps`

    def __init__(self, interfaces: Sequence[str], selection: Selection) -> None:
        """No interfaces: scapy's default one. Raises ConfigError where scapy or an interface is not there, or it may
        not listen."""
        self._selected = Selected(selection)
        self._steps = Steps()
        try:
            import scapy.all  # noqa: F401 - sets its sockets up for this system
            from scapy.config import conf
            from scapy.error import Scapy_Exception
        except ImportError:
            raise ConfigError("--engine scapy: scapy is not installed: pip install 'livefire[scapy]'") from None
        self._sockets: dict[str, Any] = {}
        for name in interfaces or (str(conf.iface),):
            # On Linux a loopback packet passes twice, out and in; of sockets that also send, scapy skips the first.
            make = conf.L2socket if name in _LOOPBACKS else conf.L2listen
            try:
                self._sockets[name] = make(iface=name, promisc=False)
            except (OSError, ValueError, Scapy_Exception) as error:
                self.close()
                raise ConfigError(f"interface {name!r}: scapy cannot listen there: {error}") from None
            if sys.platform == "linux":  # so that the buffer, which is small, holds what is wanted alone
                attach(self._sockets[name].ins, compile_filter(selection))
                _widen(self._sockets[name].ins, loopback=name in _LOOPBACKS)
        self._lost = {name: _lost(sock) for name, sock in self._sockets.items()}

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self._sockets)

    @property
    def described(self) -> str:
        return f"scapy on {', '.join(self._sockets)}"

    def feed(self, sink: PacketSink, timeout_s: float) -> int:
        """Raises BusError when an interface is gone."""
        every = list(self._sockets.values())
        ready = every[0].select(every, timeout_s)
        return sum(self._read(name, sock, sink) for name, sock in self._sockets.items() if sock in ready)

    def _read(self, name: str, sock: Any, sink: PacketSink) -> int:
        count = 0
        take, offer = sink.packet, self._selected.offer
        time_of = self._steps.look()
        while count < _A_TURN:
            try:
                layer, data, at = sock.recv_raw(_MAX_FRAME)
            except BlockingIOError:
                break
            except OSError as error:
                raise BusError(f"{name}: capture stopped: {error}") from None
            count += 1
            if data is not None:
                linktype = _LINKTYPES.get(getattr(layer, "__name__", ""), 1)
                ts_ns = round((time.time() if at is None else float(at)) * 1e9)  # noqa: TID251 - no stamp of its own
                if time_of is not None:
                    ts_ns = time_of(ts_ns)
                offer(take, sink, ts_ns, data, len(data), linktype, name)
            if sock not in sock.select([sock], 0):
                break
        return count

    def count(self, sink: PacketSink) -> None:
        """Tell `sink` of the packets that the system had no room for since the last call."""
        for name, sock in self._sockets.items():
            lost = _lost(sock)
            dropped = lost if sys.platform == "linux" else (lost - self._lost[name]) & 0xFFFFFFFF
            self._lost[name] = lost
            if dropped:
                sink.kernel_dropped(dropped)

    def finish(self, sink: PacketSink) -> None:
        read = 0
        while read < _DRAIN and (taken := self.feed(sink, 0.05)):
            read += taken

    def close(self) -> None:
        for sock in self._sockets.values():
            with contextlib.suppress(OSError):
                sock.close()


def _widen(sock: socket.socket, *, loopback: bool) -> None:
    """As it comes it has room for some fifty packets of a kilobyte."""
    for option in (socket.SO_RCVBUF, _SO_RCVBUFFORCE):  # the second passes the system's bound, where permitted
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BYTES)
    if loopback:  # scapy would skip them; the kernel would count them where there is no room
        with contextlib.suppress(OSError):  # since Linux 4.20
            sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)


def _lost(sock: Any) -> int:
    """What the system had no room for: on Linux since it was last asked, elsewhere since the socket was opened."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            raw = sock.ins.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
            return int(_STATISTICS.unpack(raw)[1])
    if hasattr(sock, "get_stats"):  # macOS, BSD
        return int(sock.get_stats()[1] or 0)
    if hasattr(sock, "pcap_fd"):  # Npcap
        from scapy.libs.winpcapy import byref, pcap_stat, pcap_stats

        told = pcap_stat()
        if pcap_stats(sock.pcap_fd.pcap, byref(told)) == 0:
            return int(told.ps_drop)
    return 0
