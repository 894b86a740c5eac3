"""Whole conversations, mangled: the exchanges stay the same, or only those that were touched are marked."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pcap_build import Conversation, Packet
from test_capture_pair import answer, assembled, get, shown

from capture.assembler import Assembler
from capture.settings import CaptureSettings
from wire.records import Exchange, Fault

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nT: v\r\n\r\n"


def conversation(*, mss: int = 1460, client_isn: int = 1000, server_isn: int = 5000, ack: bool = True) -> Conversation:
    talk = Conversation(client_isn=client_isn, server_isn=server_isn).open()
    for number in range(3):
        talk.client(get(f"/{number}", extra=f"X: {'y' * 40}\r\n"), mss=mss).server(answer(b"%d" % number * 50), mss=mss)
        if ack:
            talk.ack(0)
    talk.client(b"POST /p HTTP/1.1\r\nContent-Length: 30\r\n\r\n" + b"p" * 30, mss=mss).server(CHUNKED, mss=mss)
    if ack:
        talk.ack(0)
    talk.client(get("/last"), mss=mss).server(answer(b"last"), mss=mss)
    return talk.close()


EXPECTED = [
    (b"/0", 200, b"0" * 50), (b"/1", 200, b"1" * 50), (b"/2", 200, b"2" * 50), (b"/p", 200, b"hello world"),
    (b"/last", 200, b"last"),
]  # fmt: skip


@pytest.mark.parametrize("mss", [1, 2, 3, 5, 11, 64, 1460])
def test_segmentation_changes_nothing(mss: int) -> None:
    found, _ = assembled(conversation(mss=mss))
    assert shown(found) == EXPECTED
    assert all(e.faults == () for e in found)
    assert found[3].response is not None
    assert found[3].response.trailers == b"T: v\r\n"
    assert found[3].response.body_bytes == 11


def test_every_single_boundary() -> None:
    stream = get("/0") + b"POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    answers = answer(b"zero") + CHUNKED
    for cut in range(1, max(len(stream), len(answers))):
        talk = Conversation().open()
        talk.client(stream[:cut]).client(stream[cut:]).server(answers[:cut]).server(answers[cut:])
        found, _ = assembled(talk.close())
        assert shown(found) == [(b"/0", 200, b"zero"), (b"/p", 200, b"hello world")], cut
        assert found[1].request.body == b"abc"


@given(st.integers(0, 1 << 30), st.sampled_from([7, 40, 200]))
@settings(max_examples=60, deadline=None)
def test_reordered_and_duplicated_and_wrapped(seed: int, mss: int) -> None:
    rng = random.Random(seed)
    isns = rng.choice([(1, 1), (0xFFFFFFFF - 100, 0xFFFFFFFF - 60), (0xFFFFFFFF, 0xFFFFFFF0)])
    talk = conversation(mss=mss, client_isn=isns[0], server_isn=isns[1])
    body = talk.packets[3:]
    body += [rng.choice(body) for _ in range(5)]
    times = [ts for ts, _ in talk.packets]
    times += [times[-1] + i for i in range(1, 6)]
    mixed = [data for _, data in talk.packets[:3]]
    order = sorted(enumerate(body), key=lambda item: item[0] + rng.random() * 6)
    mixed += [data for _, (_, data) in order]
    talk.packets = list(zip(times, mixed, strict=True))
    found, _ = assembled(talk)
    assert sorted(shown(found)) == sorted(EXPECTED), seed
    assert all(Fault.GAP not in e.faults and Fault.AMBIGUOUS not in e.faults for e in found)


@given(st.integers(0, 1 << 30), st.sampled_from([20, 60, 1460]))
@settings(max_examples=100, deadline=None)
def test_lost_segments_touch_no_other_exchange(seed: int, mss: int) -> None:
    rng = random.Random(seed)
    talk = conversation(mss=mss)
    whole, _ = assembled(talk)
    payload = [i for i, (_, data) in enumerate(talk.packets) if len(data) > 54]
    lost = set(rng.sample(payload, min(len(payload), rng.choice([1, 1, 2, 3]))))
    lost_bytes = sum(len(talk.packets[i][1]) - 54 for i in lost)
    owner = _owners(talk)
    touched = {owner[i] for i in lost}
    talk.packets = [packet for i, packet in enumerate(talk.packets) if i not in lost]
    found, assembler = assembled(talk)
    assert assembler.account.notes.get("gap_bytes", 0) == lost_bytes, seed
    wanted = {e.exchange_id: e for e in whole}
    by_path = {e.request.head.split(b" ")[1]: e for e in found}
    for index, e in enumerate(whole):
        path = e.request.head.split(b" ")[1]
        if index in touched:
            continue
        assert path in by_path, (seed, path)
        assert shown([by_path[path]]) == shown([e]), (seed, path)
        assert by_path[path].faults == (), (seed, path)
    for e in found:
        same = wanted.get(e.exchange_id)
        assert same is not None, seed
        if e.response is not None and Fault.GAP not in e.faults and Fault.UNFINISHED not in e.faults:
            assert shown([e]) == shown([same]), seed
        assert e.request.missing_bytes + (e.response.missing_bytes if e.response else 0) <= lost_bytes


def _owners(talk: Conversation) -> dict[int, int]:
    """Which exchange each packet belongs to: they follow each other, so a request's first bytes begin the next."""
    owner: dict[int, int] = {}
    current = -1
    for index, (_, data) in enumerate(talk.packets):
        payload = data[54:]
        from_client = data[26:30] == bytes((10, 0, 0, 1))
        was_client = index > 0 and owner.get(-1, 0) == 1
        if payload and from_client and not was_client:
            current += 1
        if payload:
            owner[-1] = 1 if from_client else 0
        owner[index] = max(current, 0)
    return owner


def test_missing_bytes_of_a_body_are_exact() -> None:
    talk = Conversation().open().client(get("/")).server(answer(b"a" * 1000), mss=100).ack(0).close()
    index = 10
    gone = len(talk.packets[index][1]) - 54
    del talk.packets[index]
    (e,), _ = assembled(talk)
    assert e.response is not None
    assert e.response.missing_bytes == gone
    assert e.response.body_bytes + gone == 1000
    assert e.faults == (Fault.GAP,)


def feed(packets: list[Packet], assembler: Assembler, snaplen: int) -> list[Exchange]:
    for ts_ns, data in packets:
        assembler.packet(ts_ns, data[:snaplen], len(data))
    return assembler.finish()


@pytest.mark.parametrize("snaplen", [20, 40, 60, 96, 128, 300])
def test_snaplen_cuts_balance(snaplen: int) -> None:
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    feed(conversation().packets, assembler, snaplen)
    assert assembler.account.balanced, assembler.account.as_json()
    ledger = assembler.account.ledger("bytes")
    if snaplen in (60, 96):
        assert ledger.drops["snaplen"] > 0


@given(st.binary(max_size=400), st.sampled_from([0, 1, 12, 101, 113, 127, 239, 276, 9, 104, 12345]))
@settings(max_examples=200, deadline=None)
def test_no_frame_raises(data: bytes, linktype: int) -> None:
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    assembler.packet(1, data, len(data) + 3, linktype)
    assembler.finish()
    assert assembler.account.balanced


@given(st.integers(0, 1 << 30))
@settings(max_examples=120, deadline=None)
def test_damaged_conversations_balance_and_never_raise(seed: int) -> None:
    rng = random.Random(seed)
    talk = conversation(mss=rng.choice([30, 200, 1460]))
    assembler = Assembler("r", CaptureSettings(keep_unpaired=rng.random() < 0.5), None, b"k")
    for ts_ns, data in talk.packets:
        if rng.random() < 0.2:
            mangled = bytearray(data)
            for _ in range(rng.randrange(1, 4)):
                mangled[rng.randrange(12, len(mangled))] = rng.randrange(256)
            data = bytes(mangled)
        if rng.random() < 0.1:
            data = data[: rng.randrange(len(data))]
        assembler.packet(ts_ns, data, len(data) + (rng.randrange(50) if rng.random() < 0.1 else 0))
        assert assembler.account.balanced, seed
    assembler.finish()
    assert assembler.account.balanced, seed
    assert all(ledger.in_flight == 0 for ledger in assembler.account.ledgers.values())
