"""Builds packets and pcap files for tests: a conversation is written, not captured."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
Packet = tuple[int, bytes]  # ts_ns, Ethernet frame


def ethernet(ip: bytes, *, vlan: Sequence[int] = (), ethertype: int = 0) -> bytes:
    kind = ethertype or (0x86DD if ip[0] >> 4 == 6 else 0x0800)
    tags = b"".join(struct.pack(">HH", 0x8100, tag) for tag in vlan)
    return b"\x02\0\0\0\0\2\x02\0\0\0\0\1" + tags + struct.pack(">H", kind) + ip


def ipv4(source: str, target: str, payload: bytes, *, protocol: int = 6, ident: int = 0, fragment: int = 0) -> bytes:
    return (
        struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), ident, fragment, 64, protocol, 0)
        + socket.inet_aton(source)
        + socket.inet_aton(target)
        + payload
    )


def ipv6(source: str, target: str, payload: bytes, *, following: int = 6) -> bytes:
    return (
        struct.pack(">IHBB", 6 << 28, len(payload), following, 64)
        + socket.inet_pton(socket.AF_INET6, source)
        + socket.inet_pton(socket.AF_INET6, target)
        + payload
    )


def tcp(sport: int, dport: int, seq: int, ack: int, flags: int, payload: bytes = b"") -> bytes:
    return (
        struct.pack(">HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, 0x50, flags, 0xFFFF, 0, 0) + payload
    )


class Conversation:
    """A TCP connection, packet by packet; `packets` is what a capture of it holds."""

    def __init__(
        self,
        client: tuple[str, int] = ("10.0.0.1", 40000),
        server: tuple[str, int] = ("10.0.0.2", 80),
        *,
        client_isn: int = 1000,
        server_isn: int = 5000,
        start_ns: int = 1_700_000_000_000_000_000,
        step_ns: int = 1_000_000,
        vlan: Sequence[int] = (),
    ) -> None:
        self.ends = (client, server)
        self.seq = [client_isn, server_isn]
        self.now_ns = start_ns
        self.step_ns = step_ns
        self.vlan = vlan
        self.packets: list[Packet] = []

    def raw(self, side: int, seq: int, ack: int, flags: int, payload: bytes = b"") -> Packet:
        (source, sport), (target, dport) = self.ends[side], self.ends[1 - side]
        segment = tcp(sport, dport, seq, ack, flags, payload)
        packet = ipv6(source, target, segment) if ":" in source else ipv4(source, target, segment)
        self.now_ns += self.step_ns
        made = (self.now_ns, ethernet(packet, vlan=self.vlan))
        self.packets.append(made)
        return made

    def open(self) -> Conversation:
        self.raw(0, self.seq[0], 0, SYN)
        self.seq[0] += 1
        self.raw(1, self.seq[1], self.seq[0], SYN | ACK)
        self.seq[1] += 1
        self.raw(0, self.seq[0], self.seq[1], ACK)
        return self

    def send(self, side: int, payload: bytes, *, mss: int = 1460) -> Conversation:
        for at in range(0, len(payload), mss):
            part = payload[at : at + mss]
            self.raw(side, self.seq[side], self.seq[1 - side], PSH | ACK, part)
            self.seq[side] += len(part)
        return self

    def client(self, payload: bytes, *, mss: int = 1460) -> Conversation:
        return self.send(0, payload, mss=mss)

    def server(self, payload: bytes, *, mss: int = 1460) -> Conversation:
        return self.send(1, payload, mss=mss)

    def ack(self, side: int) -> Conversation:
        self.raw(side, self.seq[side], self.seq[1 - side], ACK)
        return self

    def close(self) -> Conversation:
        for side in (0, 1):
            self.raw(side, self.seq[side], self.seq[1 - side], FIN | ACK)
            self.seq[side] += 1
        self.raw(0, self.seq[0], self.seq[1], ACK)
        return self

    def reset(self, side: int) -> Conversation:
        self.raw(side, self.seq[side], self.seq[1 - side], RST | ACK)
        return self


def pcap(
    packets: Iterable[Packet], *, order: str = "<", nanoseconds: bool = False, linktype: int = 1, snaplen: int = 262144
) -> bytes:
    magic = 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
    out = [struct.pack(order + "IHHIIII", magic, 2, 4, 0, 0, snaplen, linktype)]
    unit = 1 if nanoseconds else 1000
    for ts_ns, data in packets:
        caught = data[:snaplen]
        out.append(struct.pack(order + "IIII", ts_ns // 10**9, ts_ns % 10**9 // unit, len(caught), len(data)) + caught)
    return b"".join(out)


def block(order: str, kind: int, body: bytes) -> bytes:
    body += b"\0" * (-len(body) % 4)
    size = len(body) + 12
    return struct.pack(order + "II", kind, size) + body + struct.pack(order + "I", size)


def section(order: str = "<") -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(
    order: str = "<",
    *,
    linktype: int = 1,
    name: str = "",
    resolution: int | None = None,
    offset_s: int | None = None,
    snaplen: int = 0,
) -> bytes:
    body = struct.pack(order + "HHI", linktype, 0, snaplen)
    if name:
        text = name.encode()
        body += struct.pack(order + "HH", 2, len(text)) + text + b"\0" * (-len(text) % 4)
    if resolution is not None:
        body += struct.pack(order + "HHB3x", 9, 1, resolution)
    if offset_s is not None:
        body += struct.pack(order + "HHq", 14, 8, offset_s)
    return block(order, 1, body + struct.pack(order + "HH", 0, 0))


def enhanced(data: bytes, ticks: int, order: str = "<", *, number: int = 0, wire_len: int | None = None) -> bytes:
    body = struct.pack(order + "IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(data), wire_len or len(data))
    return block(order, 6, body + data)


def simple(data: bytes, order: str = "<") -> bytes:
    return block(order, 3, struct.pack(order + "I", len(data)) + data)


def obsolete(data: bytes, ticks: int, order: str = "<", *, number: int = 0) -> bytes:
    body = struct.pack(order + "HHIIII", number, 0, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data))
    return block(order, 2, body + data)


def write(path: Path, packets: Iterable[Packet]) -> Path:
    path.write_bytes(pcap(packets))
    return path
