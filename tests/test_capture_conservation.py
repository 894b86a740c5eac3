"""A capture of which it is known how much of each thing is in it: the account tells of each exactly so much."""

from __future__ import annotations

import struct
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pcap_build import ACK, PSH, SYN, Conversation, ethernet, ipv4, ipv6
from test_capture_other import SERVER_HELLO, client_hello
from test_capture_pair import answer, get

from capture import crowd, ends
from capture.assembler import Assembler
from capture.message import Message
from capture.settings import CaptureSettings
from livefire.connections import connections_line
from wire.account import Account

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
LOST = 700  # bytes of a segment that was lost
KINDS = (
    "plain", "reset", "open", "idle", "empty", "replaced", "midstream", "gap", "snaplen", "again", "other_interface",
    "other_link", "tls", "redis", "left_out", "shed", "lost_request", "arp", "udp", "esp", "esp6", "short", "kernel",
)  # fmt: skip


class Known:
    """Packets, and what the account must say of them: `expected[ledger or "notes", name]`."""

    def __init__(self) -> None:
        self.packets: list[tuple[int, bytes, int, str]] = []  # time, frame, length on the wire, interface
        self.expected: Counter[tuple[str, str]] = Counter()
        self.kernel = 0
        self._port = 20000
        self._now = START
        self.balanced_before_its_end = False

    def add(self, kind: str) -> None:
        self._port += 1
        self._now += SECOND
        expected, talk = self.expected, Conversation(("10.0.0.1", self._port), start_ns=self._now)
        path = f"/{kind}/{self._port}"
        ask, tell = get(path), answer(b"x" * 2100)
        if kind == "kernel":
            self.kernel += 1
            return self._drop("packets", "kernel", 1)
        if kind in ("arp", "udp", "esp", "esp6", "short"):
            frame = {
                "arp": ethernet(b"\0" * 46, ethertype=0x0806),
                "udp": ethernet(ipv4("1.1.1.1", "2.2.2.2", b"\0\1\0\2" + b"u" * 30, protocol=17)),
                "esp": ethernet(ipv4("1.1.1.1", "2.2.2.2", b"e" * 60, protocol=50)),
                "esp6": ethernet(ipv6("::1", "::2", b"e" * 60, following=50)),
                "short": ethernet(ipv4("1.1.1.1", "2.2.2.2", b"\0" * 20))[:40],
            }[kind]
            wire = len(frame) + (14 if kind == "short" else 0)
            self.packets.append((self._now, frame, wire, "eth0"))
            why = {"arp": "not_ip", "udp": "not_tcp", "short": "cut"}.get(kind, "encrypted")
            return self._drop("packets", why, 1)
        expected["connections", "seen"] += 1
        interface, how, sent = "eth0", "closed", ask + tell
        messages = 2
        if kind == "empty":
            self._end("empty", talk.open().close(), "closed", 0, 0)
            return self._take(talk)
        if kind in ("tls", "redis"):
            hello, reply = (client_hello(), SERVER_HELLO) if kind == "tls" else (b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n")
            self._end(kind, talk.open().client(hello).server(reply).close(), "closed", len(hello + reply), 0)
            expected["notes", f"other.{kind}.80"] += 1
            if kind == "tls":
                expected["notes", "sni.api.example.com"] += 1
            return self._take(talk)
        if kind == "lost_request":  # its beginning was not seen: an answer to nobody knows what
            self._end("unpaired_response", talk.server(tell).reset(1), "reset", len(tell), 1)
            expected["notes", "connections.midstream"] += 1
            expected["notes", "unpaired"] += 1
            return self._take(talk)
        if kind != "midstream":
            talk.open()
        else:
            expected["notes", "connections.midstream"] += 1
        talk.client(ask).server(tell, mss=LOST).ack(0)
        if kind == "again":
            at, repeated = talk.packets[-3]
            talk.packets.append((at + 1, repeated))
            self._drop("bytes", "duplicate", LOST)
        if kind == "gap":  # the second segment of the answer
            del talk.packets[5]
            sent = sent[LOST:]
            expected["notes", "gap_bytes"] += LOST
            expected["notes", "gaps"] += 1
        if kind == "snaplen":  # of each frame 200 bytes: of three segments of the answer 146
            cut = 3 * (LOST - 146)
            sent = sent[cut:]
            self._drop("bytes", "snaplen", cut)
            expected["notes", "gap_bytes"] += cut
            expected["notes", "gaps"] += 3
            expected["notes", "cut_packets"] += 3
        if kind == "reset":
            talk.reset(0)
            how = "reset"
        elif kind in ("open", "idle"):
            how = kind
        elif kind == "replaced":  # the port is used again, and nobody saw the first one end
            talk.seq = [900_000, 800_000]
            talk.open().client(ask).server(tell).close()
            expected["connections", "seen"] += 1
            expected["connections", "emitted"] += 1
            expected["notes", "connections.closed"] += 1
            how, sent, messages = "replaced", sent * 2, 4
        else:
            talk.close()
        if kind in ("left_out", "shed"):
            self._end("stress" if kind == "left_out" else "max_cpu", talk, how, len(sent), messages)
        else:
            expected["notes", f"connections.{how}"] += 1
            expected["connections", "emitted"] += 1
            self._count("bytes", "emitted", len(sent))
            self._count("messages", "emitted", messages)
        self._take(talk, interface, snaplen=200 if kind == "snaplen" else 0)
        if kind == "other_interface":
            self.packets += [(at + 1, frame, len(frame), "eth1") for at, frame in talk.packets]
            self._drop("packets", "other_interface", len(talk.packets))
        if kind == "other_link":
            for at, frame in talk.packets:
                self.packets.append(
                    (at + 1, frame[:12] + struct.pack(">HH", 0x8100, 7) + frame[12:], len(frame) + 4, "eth0")
                )
            self._drop("packets", "other_link", len(talk.packets))

    def _count(self, ledger: str, name: str, count: int) -> None:
        if count:
            self.expected[ledger, name] += count
            self.expected[ledger, "seen"] += count

    def _drop(self, ledger: str, reason: str, count: int) -> None:
        self._count(ledger, reason, count)

    def _end(self, reason: str, talk: Conversation, how: str, count: int, messages: int) -> None:
        self.expected["notes", f"connections.{how}"] += 1
        self.expected["connections", reason] += 1
        self._drop("bytes", reason, count)
        self._drop("messages", reason, messages)

    def _take(self, talk: Conversation, interface: str = "eth0", *, snaplen: int = 0) -> None:
        self._count("packets", "emitted", len(talk.packets))
        self.packets += [
            (at, frame[:snaplen] if snaplen else frame, len(frame), interface) for at, frame in talk.packets
        ]

    def read(self) -> Assembler:
        assembler = Assembler("r", CaptureSettings(keep_unpaired=False), None, b"key")
        shed = [False]

        def left_out(request: Message) -> str:
            shed[0] = b"/shed/" in request.head
            return "stress" if b"/left_out/" in request.head else ""

        assembler.leave_out = left_out
        assembler.sheds = lambda session: "max_cpu" if shed[0] else ""
        if self.kernel:
            assembler.kernel_dropped(self.kernel)
        for at, frame, wire, interface in sorted(self.packets, key=lambda packet: packet[0]):
            assembler.packet(at, frame, wire, 1, interface)
        self.balanced_before_its_end = assembler.account.balanced
        assembler.finish()
        return assembler


def told(account: Account) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for name, ledger in account.ledgers.items():
        found[name, "seen"] += ledger.seen
        found[name, "emitted"] += ledger.emitted
        found[name, "in_flight"] += ledger.in_flight
        for reason, count in (*ledger.drops.items(), *ledger.intentional.items()):
            found[name, reason] += count
    for name, count in account.notes.items():
        found["notes", name] += count
    return +found


def known(counts: dict[str, int]) -> Known:
    made = Known()
    for _ in range(counts.get("idle", 0)):
        made.add("idle")
    made._now += 400 * SECOND
    for kind in KINDS:
        for _ in range(0 if kind == "idle" else counts.get(kind, 0)):
            made.add(kind)
    made.add("plain")  # time goes on behind the idle ones
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_one_thing_alone(kind: str) -> None:
    made = known({kind: 3})
    account = made.read().account
    assert account.balanced and told(account) == +made.expected


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from(KINDS), st.integers(0, 4)))
def test_each_thing_is_told_exactly(counts: dict[str, int]) -> None:
    made = known(counts)
    account = made.read().account
    assert account.balanced and made.balanced_before_its_end, account.as_json()
    assert told(account) == +made.expected
    ended = sum(account.notes.get(note, 0) for note in ends.NOTES.values())
    assert ended == account.ledger("connections").seen


def test_one_more_or_less_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = dict.fromkeys(KINDS, 1)
    for kind in ("arp", "esp", "kernel", "tls", "gap", "other_interface", "open"):
        made = known(counts)
        account = made.read().account
        made.add(kind)
        assert told(account) != +made.expected
    monkeypatch.setattr(crowd, "ended", lambda connection, ledgers: None)
    assert not known(counts).read().account.balanced


def test_a_direction_that_passes_elsewhere_from_now_on_is_taken_from_there() -> None:
    """A bond fails over: after a second's silence what comes on the other interface is no copy. A copy that follows at
    once still is one."""
    talk = Conversation().open().client(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n").server(answer(b"ok")).ack(0)
    first = len(talk.packets)
    talk.now_ns += 2 * SECOND
    talk.client(b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n").server(answer(b"ok")).close()
    assembler = Assembler("r", CaptureSettings(), None, b"key")
    for number, (at, frame) in enumerate(talk.packets):
        one, other = ("eth0", "eth1") if number < first else ("eth2", "eth1")
        assembler.packet(at, frame, len(frame), 1, one)
        assembler.packet(at + 1, frame, len(frame), 1, other)
    found = assembler.finish()
    assert [e.request.head.split()[1] for e in found] == [b"/1", b"/2"]
    ledger = assembler.account.ledger("packets")
    assert (ledger.emitted, ledger.drops) == (len(talk.packets), {"other_interface": len(talk.packets)})
    assert assembler.account.balanced


def test_those_that_make_room_are_told_and_what_goes_on_is_met_again() -> None:
    assembler = Assembler("r", CaptureSettings(max_connections=10), None, b"key")
    talks = [Conversation(("10.0.0.1", 20000 + n), start_ns=START + n * SECOND).open() for n in range(30)]
    for talk in talks:
        for at, frame in talk.client(get("/a")).server(answer(b"b")).packets:
            assembler.packet(at, frame, len(frame))
    for talk in talks[-3:]:  # known still
        for at, frame in talk.close().packets[-3:]:
            assembler.packet(at, frame, len(frame))
    first = talks[0].raw(0, talks[0].seq[0], talks[0].seq[1], PSH | ACK, get("/more"))
    assembler.packet(START + 40 * SECOND, first[1], len(first[1]))
    assembler.finish()
    account = assembler.account
    assert account.balanced and account.ledger("connections").seen == 31 == account.ledger("connections").emitted
    assert {name: count for name, count in account.notes.items() if name.startswith("connections.")} == {
        "connections.evicted": 20, "connections.closed": 3, "connections.open": 8, "connections.midstream": 1,
    }  # fmt: skip
    assert account.notes["evicted_connections"] == 20
    assert connections_line(account) == (
        "31 connections = 3 closed + 20 let go for room + 8 open at the end; 1 of them met in the middle"
    )


def test_what_a_killed_recorder_had_open_is_told() -> None:
    made = known({"open": 2})
    assembler = Assembler("r", CaptureSettings(), None, b"key")
    for at, frame, wire, interface in made.packets:
        assembler.packet(at, frame, wire, 1, interface)
    account = assembler.account
    assert account.balanced and account.ledger("connections").in_flight == 2
    assert connections_line(account) == "3 connections = 1 closed + 2 still open"
    ledger = account.ledger("connections")
    ledger.in_flight, ledger.drops["crash"] = 0, 2
    assert connections_line(account) == "3 connections = 1 closed + 2 lost with a killed recorder"
    assert connections_line(Account()) == ""


def test_a_flood_of_half_open_ones_is_told() -> None:
    assembler = Assembler("r", CaptureSettings(max_connections=100), None, b"key")
    for number in range(1000):
        talk = Conversation(("10.0.0.1", 20000 + number), start_ns=START + number)
        at, frame = talk.raw(0, 1000, 0, SYN)
        assembler.packet(at, frame, len(frame))
    assembler.finish()
    ledger = assembler.account.ledger("connections")
    assert (ledger.seen, ledger.intentional) == (1000, {"empty": 1000})
    evicted = assembler.account.notes["connections.evicted"]
    assert evicted + assembler.account.notes["connections.open"] == 1000 and evicted >= 900
