"""A kernel filter for what is worth recording: classic BPF, made here, so that no library is needed.

A frame passes when it is TCP over IPv4 or IPv6, carries the TCP header (an unfragmented packet or a first
fragment), one of its ports is wanted, one of its addresses is wanted, and none of them is unwanted.

    Ethernet   the outer VLAN tag is no part of the data (the kernel strips it into the frame's metadata);
               one more tag inside (802.1Q, 802.1ad) is looked through
    raw        frames that begin with the IP header (tun, WireGuard)
    IPv6       looked through: one of hop-by-hop, routing or destination options, and a first Fragment header

Instructions are `struct sock_filter` (Linux Documentation/networking/filter.rst). A conditional jump
reaches 255 instructions, `ja` any distance, so a far target is reached by way of a `ja`.
"""

from __future__ import annotations

import array
import ipaddress
import socket
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from wire.config import ConfigError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS
MAX_SNAPLEN: Final = 1 << 18
SO_ATTACH_FILTER: Final = 26  # not in the socket module

# BPF_CLASS | BPF_SIZE | BPF_MODE or BPF_OP | BPF_SRC of linux/filter.h
LD_W_ABS: Final = 0x20
LD_H_ABS: Final = 0x28
LD_B_ABS: Final = 0x30
LD_H_IND: Final = 0x48  # A = half word at [X + k]
LDX_IMM: Final = 0x01
LDX_MSH: Final = 0xB1  # X = 4 * ([k] & 0xf): the length of an IPv4 header
AND_K: Final = 0x54
ADD_K: Final = 0x04
LSH_K: Final = 0x64
JA: Final = 0x05
JEQ_K: Final = 0x15
JSET_K: Final = 0x45
TAX: Final = 0x07
TXA: Final = 0x87
RET_K: Final = 0x06

_ETH_IPV4, _ETH_IPV6 = 0x0800, 0x86DD
_ETH_VLANS = (0x8100, 0x88A8)
_TCP = 6
_FRAGMENT = 44
_OPTIONS = (0, 43, 60)  # hop-by-hop, routing, destination options: (length + 1) * 8 bytes each


class Instruction(NamedTuple):
    code: int
    jt: int
    jf: int
    k: int


class Selection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to record. Empty tuples ask for nothing in particular."""

    ports: tuple[int, ...] = ()
    hosts: tuple[str, ...] = ()  # addresses or networks ("10.0.0.0/8"); one end must lie in one of them
    not_hosts: tuple[str, ...] = ()  # neither end may lie in one of them


def compile_filter(selection: Selection, *, snaplen: int = MAX_SNAPLEN, raw_ip: bool = False) -> list[Instruction]:
    """The program that keeps at most `snaplen` bytes of each frame that is wanted.

    Raises ConfigError for a port, address or snaplen that is none, and when the selection is too long for the kernel.
    """
    if not 64 <= snaplen <= MAX_SNAPLEN:
        raise ConfigError(f"snaplen {snaplen}: 64 to {MAX_SNAPLEN} bytes of each packet can be kept")
    for port in selection.ports:
        if not 0 < port < 65536:
            raise ConfigError(f"port {port}: ports are 1 to 65535")
    hosts, not_hosts = networks(selection.hosts), networks(selection.not_hosts)
    program = _Program()
    if raw_ip:
        program.op(LD_B_ABS, 0)
        program.op(AND_K, 0xF0)
        program.jump(JEQ_K, 0x40, yes="ipv4@0")
        program.jump(JEQ_K, 0x60, yes="ipv6@0", no="reject")
        bases: tuple[int, ...] = (0,)
    else:
        for at, base in ((12, 14), (16, 18)):
            program.label(f"ethertype@{at}")
            program.op(LD_H_ABS, at)
            program.jump(JEQ_K, _ETH_IPV4, yes=f"ipv4@{base}")
            program.jump(JEQ_K, _ETH_IPV6, yes=f"ipv6@{base}")
            if at == 12:
                program.jump(JEQ_K, _ETH_VLANS[0], yes="ethertype@16")
                program.jump(JEQ_K, _ETH_VLANS[1], yes="ethertype@16")
            program.go("reject")
        bases = (14, 18)
    for base in bases:
        _ipv4(program, base, hosts, not_hosts)
        _ipv6(program, base, hosts, not_hosts)
    _ports(program, selection.ports)
    program.label("accept")
    program.op(RET_K, snaplen)
    program.label("reject")
    program.op(RET_K, 0)
    instructions = program.assemble()
    if len(instructions) > MAX_INSTRUCTIONS:
        raise ConfigError(
            f"{len(selection.ports)} ports and {len(hosts) + len(not_hosts)} hosts are too many for a kernel filter: "
            "name networks (10.0.0.0/8) instead of hosts, or leave the ports out"
        )
    return instructions


def networks(texts: Sequence[str]) -> list[Network]:
    """Addresses and networks of their texts; an IPv6 address may stand in brackets. Raises ConfigError."""
    found: list[Network] = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text.strip("[]"), strict=False))
        except ValueError:
            raise ConfigError(f"host {text!r}: write an address (10.0.0.1, ::1) or a network (10.0.0.0/8)") from None
    return found


def attach(sock: socket.socket, program: Sequence[Instruction]) -> None:
    """Give the socket its filter; the kernel checks it first. Raises OSError."""
    code = array.array("B", b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    address, _ = code.buffer_info()
    # struct sock_fprog { unsigned short len; struct sock_filter *filter; }, with the pointer's own alignment
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program), address))


def reject_all() -> list[Instruction]:
    """Lets nothing more in: what is in the ring already can then be read to its end."""
    return [Instruction(RET_K, 0, 0, 0)]


# ---------------------------------------------------------------------------- parts of the program


def _ipv4(program: _Program, base: int, hosts: list[Network], not_hosts: list[Network]) -> None:
    program.label(f"ipv4@{base}")
    program.op(LD_B_ABS, base + 9)
    program.jump(JEQ_K, _TCP, no="reject")
    program.op(LD_H_ABS, base + 6)
    program.jump(JSET_K, 0x1FFF, yes="reject")  # a later fragment has no TCP header
    _addresses(program, f"v4@{base}", 4, (base + 12, base + 16), hosts, not_hosts)
    program.op(LDX_MSH, base)
    program.op(TXA, 0)
    program.op(ADD_K, base)
    program.op(TAX, 0)
    program.go("ports")


def _ipv6(program: _Program, base: int, hosts: list[Network], not_hosts: list[Network]) -> None:
    program.label(f"ipv6@{base}")
    _addresses(program, f"v6@{base}", 6, (base + 8, base + 24), hosts, not_hosts)
    program.op(LDX_IMM, base + 40)
    program.op(LD_B_ABS, base + 6)
    program.jump(JEQ_K, _TCP, yes="ports")
    program.jump(JEQ_K, _FRAGMENT, yes=f"fragment@{base}")
    for number in _OPTIONS:
        program.jump(JEQ_K, number, yes=f"options@{base}")
    program.go("reject")

    program.label(f"fragment@{base}")
    program.op(LD_H_ABS, base + 42)
    program.jump(JSET_K, 0xFFF8, yes="reject")
    program.op(LDX_IMM, base + 48)
    program.op(LD_B_ABS, base + 40)
    program.jump(JEQ_K, _TCP, yes="ports", no="reject")

    program.label(f"options@{base}")
    program.op(LD_B_ABS, base + 40)
    program.jump(JEQ_K, _TCP, no="reject")
    program.op(LD_B_ABS, base + 41)
    program.op(LSH_K, 3)
    program.op(ADD_K, base + 48)
    program.op(TAX, 0)
    program.go("ports")


def _addresses(
    program: _Program, name: str, version: int, at: tuple[int, int], hosts: list[Network], not_hosts: list[Network]
) -> None:
    """Go on behind this when the addresses at these two places are wanted."""
    unwanted = [network for network in not_hosts if network.version == version]
    for number, network in enumerate(unwanted):
        for place in at:
            _in_network(program, place, network, yes="reject", no=f"{name}-not-{number}-{place}")
            program.label(f"{name}-not-{number}-{place}")
    wanted = [network for network in hosts if network.version == version]
    if not hosts:
        return
    for number, network in enumerate(wanted):
        for place in at:
            _in_network(program, place, network, yes=f"{name}-wanted", no=f"{name}-host-{number}-{place}")
            program.label(f"{name}-host-{number}-{place}")
    program.go("reject")
    program.label(f"{name}-wanted")


def _in_network(program: _Program, place: int, network: Network, *, yes: str, no: str) -> None:
    address, mask = network.network_address.packed, network.netmask.packed
    for offset in range(0, len(address), 4):
        (word,) = struct.unpack_from(">I", address, offset)
        (bits,) = struct.unpack_from(">I", mask, offset)
        if not bits:
            break
        program.op(LD_W_ABS, place + offset)
        if bits != 0xFFFFFFFF:
            program.op(AND_K, bits)
        program.jump(JEQ_K, word, no=no)
    program.go(yes)


def _ports(program: _Program, ports: tuple[int, ...]) -> None:
    """X is where the TCP header begins."""
    program.label("ports")
    if not ports:
        program.go("accept")
        return
    for offset in (0, 2):
        program.op(LD_H_IND, offset)
        for port in ports:
            program.jump(JEQ_K, port, yes="accept")
    program.go("reject")


class _Program:
    """Instructions whose jumps name labels. A jump without a label falls through."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, str, str]] = []  # code, k, label if true (or of ja), label if false
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def op(self, code: int, k: int) -> None:
        self._code.append((code, k, "", ""))

    def go(self, label: str) -> None:
        self._code.append((JA, 0, label, ""))

    def jump(self, code: int, k: int, *, yes: str = "", no: str = "") -> None:
        self._code.append((code, k, yes, no))

    def assemble(self) -> list[Instruction]:
        """Each named branch of a conditional becomes a `ja` behind it, which no distance is too far for."""
        starts, at = [], 0
        for code, _, yes, no in self._code:
            starts.append(at)
            at += 1 if code == JA else 1 + bool(yes) + bool(no)
        starts.append(at)
        out: list[Instruction] = []
        for code, k, yes, no in self._code:
            if code == JA:
                out.append(Instruction(JA, 0, 0, self._distance(starts, yes, len(out))))
                continue
            if not yes and not no:
                out.append(Instruction(code, 0, 0, k))
                continue
            # [test] [ja yes]? [ja no]? next
            out.append(Instruction(code, 0 if yes else 1, (1 if yes else 0), k))
            for label in filter(None, (yes, no)):
                out.append(Instruction(JA, 0, 0, self._distance(starts, label, len(out))))
        return out

    def _distance(self, starts: list[int], label: str, at: int) -> int:
        return starts[self._labels[label]] - at - 1
