"""The kernel filter against a plain predicate: on a small interpreter, and on the kernel itself.

A filter may be attached to any socket: on a datagram socket pair it judges whatever bytes are sent, so the
kernel's verdict on invented frames needs no privilege.
"""

from __future__ import annotations

import ipaddress
import random
import socket
import struct
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.bpf import Instruction, Selection, attach, compile_filter, networks, reject_all
from wire.config import ConfigError

V4 = ["10.0.0.1", "10.0.0.2", "10.1.2.3", "192.168.7.7"]
V6 = ["fd00::1", "fd00::2", "fd00:0:0:1::1", "2001:db8::9"]
PORTS = [80, 443, 8080, 9090]


# ---------------------------------------------------------------------------- the interpreter


def run(program: list[Instruction], data: bytes) -> int:
    """What classic BPF says: the number of bytes to keep, 0 to reject. A load outside of the data rejects."""
    a = x = at = 0
    while True:
        code, jt, jf, k = program[at]
        at += 1
        if code in (0x20, 0x28, 0x30, 0x48):
            where, size = (k + x if code == 0x48 else k), {0x20: 4, 0x28: 2, 0x30: 1, 0x48: 2}[code]
            if where + size > len(data):
                return 0
            a = int.from_bytes(data[where : where + size], "big")
        elif code == 0x01:
            x = k
        elif code == 0xB1:
            if k >= len(data):
                return 0
            x = 4 * (data[k] & 0xF)
        elif code == 0x54:
            a &= k
        elif code == 0x04:
            a = (a + k) & 0xFFFFFFFF
        elif code == 0x64:
            a = (a << k) & 0xFFFFFFFF
        elif code == 0x07:
            x = a
        elif code == 0x87:
            a = x
        elif code == 0x05:
            at += k
        elif code == 0x15:
            at += jt if a == k else jf
        elif code == 0x45:
            at += jt if a & k else jf
        elif code == 0x06:
            return k
        else:
            raise AssertionError(f"an instruction this program should not have: {code:#x}")


# ---------------------------------------------------------------------------- the predicate


def wanted(selection: Selection, data: bytes, raw_ip: bool = False) -> bool:
    packet = memoryview(data)
    if not raw_ip:
        if len(packet) < 14:
            return False
        ethertype = struct.unpack(">H", packet[12:14])[0]
        packet = packet[14:]
        if ethertype in (0x8100, 0x88A8):
            if len(packet) < 4:
                return False
            ethertype = struct.unpack(">H", packet[2:4])[0]
            packet = packet[4:]
        if ethertype not in (0x0800, 0x86DD):
            return False
        version = 4 if ethertype == 0x0800 else 6
    else:
        if not packet:
            return False
        version = packet[0] >> 4
    if version == 4:
        if len(packet) < 20 or packet[9] != 6 or struct.unpack(">H", packet[6:8])[0] & 0x1FFF:
            return False
        ends = [ipaddress.ip_address(bytes(packet[12:16])), ipaddress.ip_address(bytes(packet[16:20]))]
        segment = packet[(packet[0] & 15) * 4 :]
    elif version == 6:
        if len(packet) < 40:
            return False
        ends = [ipaddress.ip_address(bytes(packet[8:24])), ipaddress.ip_address(bytes(packet[24:40]))]
        following, segment = packet[6], packet[40:]
        if following == 44:
            if len(segment) < 4 or struct.unpack(">H", segment[2:4])[0] >> 3:
                return False
            following, segment = segment[0], segment[8:]
        elif following in (0, 43, 60):
            if len(segment) < 2:
                return False
            following, segment = segment[0], segment[8 * (segment[1] + 1) :]
        if following != 6:
            return False
    else:
        return False
    if selection.ports:
        # A frame cut between its two ports may be told by the first alone.
        known = [struct.unpack(">H", segment[at : at + 2])[0] for at in (0, 2) if len(segment) >= at + 2]
        if not set(known) & set(selection.ports):
            return False
    if selection.hosts and not any(end in network for end in ends for network in networks(selection.hosts)):
        return False
    return not any(end in network for end in ends for network in networks(selection.not_hosts))


# ---------------------------------------------------------------------------- invented frames


@st.composite
def frames(draw: st.DrawFn, raw_ip: bool = False) -> bytes:
    version = draw(st.sampled_from([4, 6]))
    protocol = draw(st.sampled_from([6, 6, 6, 6, 17, 1, 44]))
    ports = struct.pack(">HH", draw(st.sampled_from([*PORTS, 5, 50000])), draw(st.sampled_from([*PORTS, 50001])))
    segment = ports + draw(st.binary(max_size=24))
    if version == 4:
        source, target = (ipaddress.ip_address(draw(st.sampled_from(V4))).packed for _ in range(2))
        words = draw(st.sampled_from([5, 5, 5, 6, 15]))
        fragment = draw(st.sampled_from([0, 0, 0, 0x4000, 0x2000, 0x2001, 7]))
        head = struct.pack(">BBHHHBBH", 0x40 | words, 0, 40, 1, fragment, 64, protocol, 0)
        packet = head + source + target + bytes(4 * (words - 5)) + segment
    else:
        source, target = (ipaddress.ip_address(draw(st.sampled_from(V6))).packed for _ in range(2))
        extension = draw(st.sampled_from([None, None, 0, 43, 60, 44, 51]))
        if extension == 44:
            offset = draw(st.sampled_from([0, 1, 8, 9]))
            between = struct.pack(">BBHI", protocol, 0, offset, 7)
        elif extension is not None:
            length = draw(st.integers(0, 3))
            between = bytes((protocol, length)) + bytes(8 * (length + 1) - 2)
        else:
            between = b""
        following = protocol if extension is None else extension
        packet = struct.pack(">IHBB", 6 << 28, 40, following, 64) + source + target + between + segment
    if not raw_ip:
        tags = draw(st.sampled_from([b"", b"", b"\x81\x00\x00\x07", b"\x88\xa8\x00\x09", b"\x81\x00\x00\x07" * 2]))
        ethertype = draw(st.sampled_from([None, None, None, None, b"\x08\x06", b"\x86\xdd", b"\x08\x00"]))
        packet = bytes(12) + tags + (ethertype or (b"\x08\x00" if version == 4 else b"\x86\xdd")) + packet
    return packet


selections = st.builds(
    Selection,
    ports=st.lists(st.sampled_from(PORTS), max_size=3, unique=True).map(tuple),
    hosts=st.lists(st.sampled_from([*V4, *V6, "10.0.0.0/8", "fd00::/63", "0.0.0.0/0"]), max_size=3).map(tuple),
    not_hosts=st.lists(st.sampled_from([*V4, *V6, "192.168.0.0/16", "2001:db8::/32"]), max_size=2).map(tuple),
)


@given(selections, frames())
@settings(max_examples=400, deadline=None)
def test_ethernet_as_the_predicate(selection: Selection, frame: bytes) -> None:
    assert run(compile_filter(selection), frame) == (1 << 18 if wanted(selection, frame) else 0)


@given(selections, frames(raw_ip=True))
@settings(max_examples=200, deadline=None)
def test_raw_ip_as_the_predicate(selection: Selection, frame: bytes) -> None:
    assert bool(run(compile_filter(selection, raw_ip=True), frame)) == wanted(selection, frame, raw_ip=True)


@pytest.mark.skipif(sys.platform != "linux", reason="classic BPF is attached to sockets on Linux alone")
@given(selections, st.lists(frames().filter(len), min_size=1, max_size=8))
@settings(max_examples=80, deadline=None)
def test_the_kernel_as_the_predicate(selection: Selection, sent: list[bytes]) -> None:
    assert passed_by_the_kernel(compile_filter(selection), sent) == [f for f in sent if wanted(selection, f)]


@pytest.mark.skipif(sys.platform != "linux", reason="classic BPF is attached to sockets on Linux alone")
@given(selections, st.lists(st.builds(lambda f, n: f[: n % len(f) + 1], frames(), st.integers(0, 200)), min_size=1))
@settings(max_examples=80, deadline=None)
def test_the_kernel_as_the_interpreter_on_frames_cut_anywhere(selection: Selection, sent: list[bytes]) -> None:
    sent = sent[:8]
    program = compile_filter(selection)
    assert passed_by_the_kernel(program, sent) == [frame for frame in sent if run(program, frame)]


def passed_by_the_kernel(program: list[Instruction], sent: list[bytes]) -> list[bytes]:
    """A rejected datagram is tossed without a word to its sender."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        attach(theirs, program)
        theirs.setblocking(False)
        for frame in sent:
            ours.send(frame)
        got = []
        try:
            while True:
                got.append(theirs.recv(1 << 16))
        except BlockingIOError:
            return got


@pytest.mark.skipif(sys.platform != "linux", reason="classic BPF is attached to sockets on Linux alone")
def test_the_kernel_keeps_snaplen_bytes_and_can_be_closed() -> None:
    frame = bytes(12) + b"\x08\x00" + struct.pack(">BBHHHBBH", 0x45, 0, 40, 1, 0, 64, 6, 0) + bytes(200)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        theirs.setblocking(False)
        attach(theirs, compile_filter(Selection(), snaplen=96))
        ours.send(frame)
        assert theirs.recv(1000) == frame[:96]
        attach(theirs, reject_all())
        ours.send(frame)
        with pytest.raises(BlockingIOError):
            theirs.recv(1000)


def test_a_broken_filter_is_noticed() -> None:
    """The comparison itself: one instruction of the filter turned must show on some frame."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    selection = Selection(ports=(80,), hosts=("10.0.0.1",))
    program = compile_filter(selection)
    tests = [at for at, i in enumerate(program) if i.code == 0x15 and i.k == 80]
    at = rng.choice(tests)
    broken = [*program[:at], program[at]._replace(k=81), *program[at + 1 :]]
    packet = struct.pack(">BBHHHBBH", 0x45, 0, 40, 1, 0, 64, 6, 0) + ipaddress.ip_address("10.0.0.1").packed * 2
    frames = [bytes(12) + b"\x08\x00" + packet + struct.pack(">HH", *p) + bytes(16) for p in ((80, 5), (5, 80))]
    assert all(run(program, frame) for frame in frames)
    assert not all(run(broken, frame) for frame in frames)


def test_many_ports_are_reached_by_long_jumps() -> None:
    selection = Selection(ports=tuple(range(1000, 1600)), hosts=("fd00::1", "10.0.0.0/8"))
    program = compile_filter(selection)
    packet = struct.pack(">BBHHHBBH", 0x45, 0, 40, 1, 0, 64, 6, 0) + ipaddress.ip_address("10.0.0.1").packed * 2
    for port in (999, 1000, 1599, 1600):
        frame = bytes(12) + b"\x08\x00" + packet + struct.pack(">HH", 7, port) + bytes(16)
        assert bool(run(program, frame)) == wanted(selection, frame)


@pytest.mark.parametrize(
    ("selection", "says"),
    [
        (Selection(ports=(0,)), "port 0"),
        (Selection(ports=(70000,)), "port 70000"),
        (Selection(hosts=("storefront",)), "host 'storefront'"),
        (Selection(ports=tuple(range(1, 3000))), "too many"),
    ],
)
def test_bad_selections_say_what_is_wrong(selection: Selection, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        compile_filter(selection)
