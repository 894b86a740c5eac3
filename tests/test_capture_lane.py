"""The fast paths against the general path: the same packets give the same exchanges and the same account."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pcap_build import Conversation, Packet

from capture import known, lane
from capture.assembler import Assembler
from capture.http1 import Reader
from capture.lane import Lane
from capture.settings import CaptureSettings
from mask.masker import Masker
from wire.records import Exchange

Talk = list[tuple[int, bytes]]  # who sends (0: the client), what


def sized(head: bytes, body: bytes) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def request(rng: random.Random, index: int) -> tuple[bytes, bytes]:
    """(method, bytes)."""
    method = rng.choice([b"GET"] * 6 + [b"POST"] * 4 + [b"HEAD", b"DELETE", b"OPTIONS", b"BREW", b"CONNECT", b"PUT"])
    target = b"h:1" if method == b"CONNECT" else rng.choice([b"/%d", b"/%d?a=b&c=%%20", b"/%d#x", b'/%d"<>']) % index
    version = rng.choice([b"1.1"] * 8 + [b"1.0", b"2.5"])
    head = method + b" " + target + b" HTTP/" + version + b"\r\nHost: x\r\n"
    head += rng.choice(
        [b"", b"User-Agent: a\r\n", b"USER-AGENT: b\r\n", b"X-Forwarded-For: 1.2.3.4\r\n", b"X: %d\r\n" % index]
    )
    head += rng.choice(
        [b""] * 8 + [b"Folded: a\r\n b\r\n", b"Bad Name: a\r\n", b"Expect: 100-continue\r\n", b"lone: lf\n"]
    )
    if method in (b"POST", b"PUT"):
        body = rng.randbytes(rng.choice([0, 1, 40, 3000])) if rng.random() < 0.7 else b"GET / HTTP/1.1\r\n\r\n"
        how = rng.random()
        if how < 0.1:
            return method, head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
        if how < 0.15:
            return method, head + b"Content-Length: 4\r\n" + sized(b"", body)
        return method, sized(head, body)
    return method, head + b"\r\n"


def answer(rng: random.Random, method: bytes) -> bytes:
    status = rng.choice([200] * 8 + [204, 304, 404, 500, 101, 999])
    line = b"HTTP/1.%d %d%s\r\n" % (rng.random() < 0.9, status, rng.choice([b" OK", b"", b" ", b" \xc3\xa9"]))
    head = line + rng.choice([b"", b"Server: s\r\n", b"Date: now\r\n", b"A:b\r\nC:\r\n"])
    body = rng.choice([b"", b"x", b"answer" * 20, b"y" * 4000])
    before = b"HTTP/1.1 100 Continue\r\n\r\n" if rng.random() < 0.1 else b""
    if method == b"HEAD" or status in (101, 204, 304):
        return before + head + (b"Content-Length: 7\r\n\r\n" if rng.random() < 0.5 else b"\r\n")
    how = rng.random()
    if how < 0.12:
        return (
            before
            + head
            + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % (len(body) or 1)
            + (body or b"z")
            + b"\r\n0\r\n\r\n"
        )
    if how < 0.15:
        return before + head + b"\r\n" + body  # until close
    return before + sized(head, body)


def conversation(rng: random.Random, number: int) -> list[Packet]:
    talk = Conversation(
        (f"10.0.0.{number + 1}", 40000 + number),
        client_isn=rng.choice([1000, 0xFFFFFF00]),
        server_isn=rng.choice([5000, 0xFFFFFFF0]),
        start_ns=1_700_000_000_000_000_000 + number * 300_000,
    )
    if rng.random() < 0.9:
        talk.open()
    elif rng.random() < 0.5:
        talk.seq = [1001, 5001]
    pipelined = rng.random() < 0.15
    mss = rng.choice([1460, 1460, 1460, 300, 60, 7])
    sends: Talk = []
    for index in range(rng.randrange(1, 6)):
        method, asked = request(rng, index)
        answered = answer(rng, method)
        if rng.random() < 0.3:  # heads and bodies in segments of their own
            for who, data in ((0, asked), (1, answered)):
                head, blank, body = data.partition(b"\r\n\r\n")
                sends += [(who, head + blank), (who, body)]
        elif rng.random() < 0.1:
            sends += [(0, asked[: len(asked) // 2]), (1, answered), (0, asked[len(asked) // 2 :])]  # answered early
        else:
            sends += [(0, asked), (1, answered)]
    if pipelined:
        sends.sort(key=lambda item: item[0])
    for who, data in sends:
        talk.send(who, data, mss=max(mss, len(data) // 40))
        if rng.random() < 0.5:
            talk.ack(1 - who)
    end = rng.random()
    if end < 0.6:
        talk.close()
    elif end < 0.7:
        talk.reset(rng.randrange(2))
    return talk.packets


def traffic(seed: int, *, healthy: bool = False) -> list[Packet]:
    rng = random.Random(seed)
    packets = [packet for number in range(rng.randrange(1, 4)) for packet in conversation(rng, number)]
    packets.sort(key=lambda packet: packet[0])
    if healthy or rng.random() < 0.4:
        return packets
    rate = rng.choice([0.01, 0.1])
    mangled: list[Packet] = []
    for index, (ts_ns, data) in enumerate(packets):
        chance = rng.random()
        if chance < rate:  # lost
            continue
        if chance < 2 * rate:
            mangled.append(packets[rng.randrange(index + 1)])  # once more
        elif chance < 3 * rate and mangled:
            mangled.insert(len(mangled) - rng.randrange(min(4, len(mangled)) + 1), (ts_ns, data))
            continue
        elif chance < 4 * rate:
            broken = bytearray(data)
            broken[rng.randrange(12, len(broken))] ^= 1 << rng.randrange(8)
            data = bytes(broken)
        elif chance < 4.5 * rate:
            ts_ns -= rng.randrange(10_000_000)
        mangled.append((ts_ns, data))
    return mangled


def chosen(seed: int) -> CaptureSettings:
    rng = random.Random(seed)
    if rng.random() < 0.6:
        return CaptureSettings(keep_unpaired=rng.random() < 0.5)
    return CaptureSettings(
        sessions=rng.choice([("cookie:sid", "client"), ("header:X",), ("connection",)]),
        max_body_bytes=rng.choice([0, 10, 2000]),
        max_head_bytes=rng.choice([60, 200]),
        max_total_bytes=rng.choice([50, 3000]),
        max_connection_bytes=rng.choice([100, 5000]),
        max_pipelined=rng.choice([1, 3]),
        history_bytes=rng.choice([10, 1000]),
        keep_unpaired=rng.random() < 0.5,
    )


def assert_same(packets: list[Packet], how: CaptureSettings, snaplen: int = 1 << 18) -> list[Exchange]:
    """What both paths make of it, having compared them after each packet."""
    fast, general = (Assembler("r", how, None, b"k", general=switch) for switch in (False, True))
    found: list[list[Exchange]] = [[], []]
    for ts_ns, data in packets:
        for assembler, exchanges in zip((fast, general), found, strict=True):
            assembler.packet(ts_ns, data[:snaplen], len(data))
            exchanges += assembler.take()
        one, other = fast.account, general.account
        assert (one.ledgers, one.notes, fast.kept) == (other.ledgers, other.notes, general.kept)
        assert one.balanced
    for assembler, exchanges in zip((fast, general), found, strict=True):
        exchanges += assembler.finish()
    assert found[0] == found[1]
    assert fast.account.as_json() == general.account.as_json()
    assert fast.kept == general.kept == 0
    return found[0]


@given(st.integers(0, 1 << 40))
@settings(max_examples=200, deadline=None)
def test_both_paths_read_alike(seed: int) -> None:
    assert_same(traffic(seed), chosen(seed), random.Random(seed).choice([1 << 18] * 9 + [100]))


@given(st.integers(0, 1 << 40), st.sampled_from([1, 5, 33, 536, 1460]))
@settings(max_examples=30, deadline=None)
def test_where_segments_are_cut_changes_nothing(seed: int, mss: int) -> None:
    rng = random.Random(seed)
    sends: Talk = []
    for index in range(4):
        body = rng.randbytes(rng.randrange(200))
        asked = rng.choice(
            [b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % index, sized(b"PUT /%d HTTP/1.1\r\n" % index, body)]
        )
        sends += [(0, asked), (1, sized(b"HTTP/1.1 200 OK\r\nA: %d\r\n" % rng.randrange(2), body))]

    def read(mss: int) -> list[tuple[Any, ...]]:
        talk = Conversation().open()
        for who, data in sends:
            talk.send(who, data, mss=mss).ack(1 - who)
        exchanges = assert_same(talk.close().packets, CaptureSettings())
        return [(e.exchange_id, e.session_id, e.request, e.response, e.mode, e.faults) for e in exchanges]

    assert len(read(mss)) == 4
    assert read(mss) == read(1 << 14)


@pytest.mark.patches
def test_healthy_traffic_takes_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    read = {"general": 0, "looked at": 0, "plain": 0}

    def counted(of: type, name: str, what: str) -> None:
        method = getattr(of, name)

        def calls(*arguments: Any) -> Any:
            read[what] += 1
            return method(*arguments)

        monkeypatch.setattr(of, name, calls)

    talk = Conversation().open()
    for index in range(20):
        talk.client(sized(b"PUT /%d HTTP/1.1\r\n" % index, b"b" * 2000)).ack(1)
        talk.server(sized(b"HTTP/1.1 201 Made\r\nDate: %d\r\n" % index, b"a" * 2000)).ack(0)
    packets = talk.close().packets
    assert len(assert_same(packets, CaptureSettings())) == 20
    counted(Reader, "feed", "general")
    counted(Lane, "take", "looked at")
    counted(Assembler, "plain", "plain")
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    for ts_ns, data in packets:
        assembler.packet(ts_ns, data, len(data))
    # The beginning of a connection is looked at from all sides, and nothing after it.
    assert read == {"general": 0, "looked at": 1, "plain": 20}


@given(st.integers(0, 1 << 40))
@settings(max_examples=60, deadline=None)
def test_both_paths_mask_alike(seed: int) -> None:
    rng = random.Random(seed)
    talk = Conversation().open()
    for index in range(rng.randrange(1, 6)):
        fields = b"".join(
            rng.choice(
                [b"Cookie: sid=%032x\r\n" % rng.getrandbits(128), b"X-Own: %d\r\n" % index, b"Authorization: Bearer abc\r\n",
                 b"Content-Type: application/json\r\n", b"Date: now\r\n", b"Content-Type: text/plain\r\n"]
            )
            for _ in range(rng.randrange(4))
        )  # fmt: skip
        body = rng.choice([b"", b'{"password": "%d", "n": 1}' % index, b"mail anna@example.org", b"\0\1"])
        line = rng.choice([b"GET /%d?token=secret-%d HTTP/1.1\r\n", b"POST /%d/u-%d HTTP/1.1\r\n"]) % (index, index)
        talk.client(sized(line + fields, body))
        if rng.random() < 0.8:
            talk.ack(1)
        cut = rng.choice([1 << 14, 100])
        talk.send(1, sized(b"HTTP/1.1 200 OK\r\n" + fields, body), mss=cut).ack(0)
    fast, general = (
        Assembler("r", CaptureSettings(), Masker(b"k" * 32), b"k", general=switch) for switch in (False, True)
    )
    for ts_ns, data in talk.close().packets:
        fast.packet(ts_ns, data, len(data))
        general.packet(ts_ns, data, len(data))
    assert fast.finish() == general.finish()
    assert fast.account.as_json() == general.account.as_json()


@pytest.mark.patches
def test_heads_that_never_repeat_are_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "MAX_CACHED", 8)
    monkeypatch.setattr(known, "_REST", 20)
    talk = Conversation().open()
    for index in range(60):
        own = b"Trace: %d\r\n" % index if index < 40 else b""
        talk.client(sized(b"PUT /%d HTTP/1.1\r\n" % index + own, b"GET / HTTP/1.1\r\n\r\n"))
        talk.server(sized(b"HTTP/1.1 200 OK\r\n" + own, b"ok")).ack(0)
    packets = talk.close().packets
    assert len(assert_same(packets, CaptureSettings())) == 60
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    rests = []
    for ts_ns, data in packets:
        assembler.packet(ts_ns, data, len(data))
        heads = assembler.lane._requests
        rests.append(heads.rest)
        assert len(heads.facts) <= 8
    assert max(rests) == 20
    assert rests[-1] == 0


@pytest.mark.patches
@pytest.mark.parametrize("name", ["_BODILESS", "_REQUEST_LINE", "_STATUS_LINE"])
def test_a_difference_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison sees a fast path that is wrong: about bodies, about methods, about status codes."""
    import re

    wrong = {
        "_BODILESS": (200,),
        "_REQUEST_LINE": re.compile(rb"([A-Z]+) \S+ HTTP/\d\.\d\r\n"),
        "_STATUS_LINE": re.compile(rb"HTTP/1\.[01] (\d\d\d)[^\r]*\r\n"),
    }
    monkeypatch.setattr(lane, name, wrong[name])
    with pytest.raises(AssertionError):
        for seed in range(400):
            assert_same(traffic(seed), CaptureSettings())


def test_every_sign_in_a_start_line_is_read_alike() -> None:
    for sign in range(256):
        talk = Conversation().open()
        for index in range(3):
            own = bytes((sign,)) if index else b""
            talk.client(b"GET /a" + own + b"?b" + own + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            talk.server(sized(b"HTTP/1.1 200 a" + own + b"b\r\nServer: s\r\n", b"ok"))
        assert_same(talk.close().packets, CaptureSettings())
