"""The kernel filter against libpcap's compiler: 1,000 random selections decide alike on the same packets.

Frames are of the kinds that both look at in the same way: libpcap looks through no VLAN tag and no IPv6 extension
header by itself (`test_capture_bpf` holds those against a plain predicate), and asks of ports alone whether a packet
is a later fragment.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import ipaddress
import random
import struct
from collections.abc import Sequence

import pytest

from capture.bpf import Instruction, Selection, compile_filter

FILTERS, FRAMES = 1000, 40
_name = ctypes.util.find_library("pcap") or "libpcap.so.0.8"
try:
    _pcap: ctypes.CDLL | None = ctypes.CDLL(_name)
except OSError:
    _pcap = None
pytestmark = pytest.mark.skipif(_pcap is None, reason="needs libpcap (apt-get install libpcap0.8)")

HOSTS = [*(f"10.0.{n}.{m}" for n in range(3) for m in range(1, 4)), "192.168.7.7", "255.255.255.255", "0.0.0.0"]
HOSTS6 = ["fd00::1", "fd00::2", "fd00:0:0:1::1", "2001:db8::9", "::1"]
NETS = ["10.0.0.0/8", "10.0.1.0/24", "10.0.2.0/31", "192.168.0.0/16", "0.0.0.0/1"]
NETS6 = ["fd00::/64", "fd00::/16", "2001:db8::/32", "fd00::/127"]
PORTS = [80, 443, 8080, 9090, 1, 65535]


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


class Theirs:
    """A filter that libpcap compiled; not optimised, as that changes the verdict of some (1.10.3)."""

    def __init__(self, text: str) -> None:
        assert _pcap is not None
        _pcap.pcap_open_dead.restype = ctypes.c_void_p
        self._handle = ctypes.c_void_p(_pcap.pcap_open_dead(1, 1 << 18))
        self._program = Program()
        done = _pcap.pcap_compile(self._handle, ctypes.byref(self._program), text.encode(), 0, 0xFFFFFFFF)
        if done:
            _pcap.pcap_geterr.restype = ctypes.c_char_p
            assert _pcap.pcap_geterr(self._handle) == b"expression rejects all packets", text
        self._rejects_all = bool(done)

    def passes(self, frame: bytes) -> bool:
        return not self._rejects_all and judged(self._program.instructions, frame)

    def close(self) -> None:
        assert _pcap is not None
        if not self._rejects_all:
            _pcap.pcap_freecode(ctypes.byref(self._program))
        _pcap.pcap_close(self._handle)


def judged(instructions: int, frame: bytes) -> bool:
    assert _pcap is not None
    return bool(_pcap.bpf_filter(ctypes.c_void_p(instructions), frame, len(frame), len(frame)))


def ours_passes(program: Sequence[Instruction], frames: Sequence[bytes]) -> list[bool]:
    """Ours, run by their interpreter."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    return [judged(ctypes.addressof(code), frame) for frame in frames]


def theirs_of(selection: Selection) -> str:
    parts = ["tcp", "(ip6 or ip[6:2] & 0x1fff = 0)"]
    if selection.ports:
        parts.append("(" + " or ".join(f"port {port}" for port in selection.ports) + ")")
    if selection.hosts:
        parts.append("(" + " or ".join(f"net {network(host)}" for host in selection.hosts) + ")")
    parts += [f"not net {network(host)}" for host in selection.not_hosts]
    return " and ".join(parts)


def network(text: str) -> str:
    return str(ipaddress.ip_network(text))


def some_selection(rng: random.Random) -> Selection:
    def some(of: Sequence[str], most: int) -> tuple[str, ...]:
        return tuple(rng.sample(of, rng.randint(0, most)))

    places = [*HOSTS, *HOSTS6, *NETS, *NETS6]
    return Selection(tuple(rng.sample(PORTS, rng.randint(0, 4))), some(places, 4), some(places, 3))


def some_frame(rng: random.Random) -> bytes:
    protocol = rng.choice([6] * 8 + [17, 1, 132])
    source, target = (rng.choice([*PORTS, 5, 50000]) for _ in range(2))
    segment = struct.pack(">HH", source, target) + rng.randbytes(rng.randint(16, 40))
    if rng.random() < 0.6:
        words = rng.choice([5, 5, 5, 6, 15])
        fragment = rng.choice([0, 0, 0, 0, 0x4000, 0x2000, 0x2001, 7, 0x1FFF])
        head = struct.pack(">BBHHHBBH", 0x40 | words, 0, words * 4 + len(segment), 1, fragment, 64, protocol, 0)
        ends = b"".join(ipaddress.ip_address(rng.choice(HOSTS)).packed for _ in range(2))
        packet, ethertype = head + ends + rng.randbytes(4 * (words - 5)) + segment, 0x0800
    else:
        ends = b"".join(ipaddress.ip_address(rng.choice(HOSTS6)).packed for _ in range(2))
        packet = struct.pack(">IHBB", 6 << 28, len(segment), protocol, 64) + ends + segment
        ethertype = 0x86DD
    return bytes(12) + struct.pack(">H", rng.choice([ethertype] * 9 + [0x0806])) + packet


def test_random_filters_decide_as_libpcap() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    frames = [some_frame(rng) for _ in range(FRAMES * 20)]
    passed = 0
    for _ in range(FILTERS):
        selection = some_selection(rng)
        text = theirs_of(selection)
        theirs = Theirs(text)
        chosen = rng.sample(frames, FRAMES)
        verdicts = [theirs.passes(frame) for frame in chosen]
        theirs.close()
        assert ours_passes(compile_filter(selection), chosen) == verdicts, text
        passed += sum(verdicts)
    assert FILTERS < passed < FILTERS * FRAMES * 0.9  # or nothing was compared


def test_a_filter_of_another_port_is_noticed() -> None:
    """The comparison itself: ours for port 81 against theirs for port 80."""
    frame = bytes(12) + b"\x08\0" + struct.pack(">BBHHHBBH", 0x45, 0, 60, 1, 0, 64, 6, 0) + bytes(8)
    frame += struct.pack(">HH", 80, 5) + bytes(36)
    theirs = Theirs(theirs_of(Selection(ports=(80,))))
    assert theirs.passes(frame)
    theirs.close()
    assert ours_passes(compile_filter(Selection(ports=(80,))), [frame]) == [True]
    assert ours_passes(compile_filter(Selection(ports=(81,))), [frame]) == [False]
