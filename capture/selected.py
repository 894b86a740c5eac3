"""`--port`, `--host` and `--not-host` where the kernel's filter cannot look: frames that come in a tunnel's datagrams.

What is not asked for is counted as such (`not_selected`), which the kernel does not do for its filter.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable

from capture.bpf import Network, Selection, networks
from capture.decode import decode
from capture.segment import Fragment
from capture.source import PacketSink
from wire.config import ConfigError

_MAX_REMEMBERED = 1 << 16


class Selected:
    """Says of each frame whether it is wanted; remembers what it said of a direction."""

    def __init__(self, selection: Selection) -> None:
        """Raises ConfigError for a port or address that is none."""
        for port in selection.ports:
            if not 0 < port < 65536:
                raise ConfigError(f"port {port}: ports are 1 to 65535")
        self._ports = frozenset(selection.ports)
        self._hosts, self._not_hosts = networks(selection.hosts), networks(selection.not_hosts)
        self._all = not (self._ports or self._hosts or self._not_hosts)
        self._known: dict[bytes, bool] = {}

    def wants(self, linktype: int, frame: bytes) -> bool:
        """Later fragments have no ports, so all pieces of a packet are judged by its addresses alone."""
        if self._all:
            return True
        found = decode(linktype, frame)
        if isinstance(found, str):
            return True  # what it is gets its own reason
        known = self._known.get(found.key)
        if known is None:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            key, whole = found.key, not isinstance(found, Fragment)
            if isinstance(found, Fragment):
                size = 32 if found.version == 6 else 8
                at = 8 if found.version == 6 else 12
                key = found.header[at : at + size]
            known = self._known[found.key] = self._judge(key, found.version, whole)
        return known

    def _judge(self, key: bytes, version: int, whole: bool) -> bool:
        size = 16 if version == 6 else 4
        ends = [ipaddress.ip_address(key[:size]), ipaddress.ip_address(key[size : 2 * size])]
        if whole and self._ports and not self._ports & set(struct.unpack_from(">HH", key, 2 * size)):
            return False
        if self._hosts and not _in_any(ends, self._hosts):
            return False
        return not _in_any(ends, self._not_hosts)

    def offer(self, take: Callable[..., None], sink: PacketSink, ts_ns: int, frame: bytes, wire_len: int,
              linktype: int, interface: str) -> None:  # fmt: skip
        """Hand the frame to `take` (the sink's `packet`), or count that it was not asked for."""
        if self.wants(linktype, frame):
            take(ts_ns, frame, wire_len, linktype, interface)
            return
        ledger = sink.account.ledger("packets")
        ledger.seen += 1
        ledger.drop("not_selected", intentional=True)


def _in_any(ends: list[ipaddress.IPv4Address | ipaddress.IPv6Address], among: list[Network]) -> bool:
    return any(end in network for end in ends for network in among)
