"""The same traffic in another shape gives the same exchanges: other files, links, addresses, sequence numbers."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import msgspec
import pytest
from pcap_build import Conversation, Packet, enhanced, ethernet, interface, ipv4, ipv6, pcap, section, tcp
from test_capture_pair import assembled
from test_capture_streams import conversation

from capture.assembler import Assembler
from capture.settings import CaptureSettings
from capture.source_pcap import PcapSource
from wire.records import Exchange, Fault


def told(exchanges: list[Exchange]) -> list[tuple[object, ...]]:
    """All that does not name the connection."""
    return [(e.request, e.response, e.mode, e.faults, e.request_start_ns, e.response_end_ns) for e in exchanges]


def read(data: bytes) -> list[Exchange]:
    assembler = Assembler("r", CaptureSettings(), None, b"key")
    for frame in PcapSource("x", stream=io.BytesIO(data)).frames():
        if frame is not None:
            assembler.packet(*frame)
    found = assembler.finish()
    assert assembler.account.balanced
    return found


PACKETS = conversation(mss=37).packets
WANT = told(assembled(conversation(mss=37))[0])


def ng(packets: list[Packet], order: str) -> bytes:
    return section(order) + interface(order, resolution=9) + b"".join(enhanced(d, ts, order) for ts, d in packets)


def rewritten(change: Callable[[bytes, int, int, int, int, int, bytes], bytes]) -> list[Packet]:
    """Each frame made anew of (addresses, ports, sequence, acknowledgement, flags, payload)."""
    out = []
    for ts_ns, data in PACKETS:
        at = data[34:54]
        number = [int.from_bytes(at[i:j], "big") for i, j in ((0, 2), (2, 4), (4, 8), (8, 12))]
        out.append((ts_ns, change(data[26:34], *number, at[13], data[54:])))
    return out


def over_ipv6(ends: bytes, sport: int, dport: int, seq: int, ack: int, flags: int, payload: bytes) -> bytes:
    names = [f"2001:db8::{end[3]:x}" for end in (ends[:4], ends[4:])]
    return ethernet(ipv6(*names, tcp(sport, dport, seq, ack, flags, payload)))


def in_vlan(ends: bytes, sport: int, dport: int, seq: int, ack: int, flags: int, payload: bytes) -> bytes:
    names = [".".join(map(str, end)) for end in (ends[:4], ends[4:])]
    return ethernet(ipv4(*names, tcp(sport, dport, seq, ack, flags, payload)), vlan=(7, 12))


@pytest.mark.parametrize("isn", [0xFFFFFFFF, 0xFFFFFFFF - 99, 0x7FFFFFFF, 0])
def test_initial_sequence_numbers(isn: int) -> None:
    talk = conversation(mss=37, client_isn=isn, server_isn=(isn + 12345) & 0xFFFFFFFF)
    assert told(assembled(talk)[0]) == WANT


@pytest.mark.parametrize(
    "data",
    [
        pcap(PACKETS, nanoseconds=True), pcap(PACKETS, order=">", nanoseconds=True), ng(PACKETS, "<"), ng(PACKETS, ">"),
        ng(rewritten(over_ipv6), "<"), ng(rewritten(in_vlan), "<"),
    ],
    ids=["pcap", "pcap big", "pcapng", "pcapng big", "ipv6", "vlan in vlan"],
)  # fmt: skip
def test_files_and_links(data: bytes) -> None:
    assert told(read(data)) == WANT


def test_every_segment_twice() -> None:
    twice = [packet for packet in PACKETS for _ in (0, 1)]
    assert told(read(ng(twice, "<"))) == WANT


@pytest.mark.parametrize("seed", range(6))
def test_permuted_in_a_window(seed: int) -> None:
    """Times of messages are those of the packets that bring them; all else is equal."""
    rng = random.Random(seed)
    order = sorted(range(3, len(PACKETS)), key=lambda i: i + rng.random() * 5)
    mixed = [*PACKETS[:3], *(PACKETS[i] for i in order)]
    found = {e.exchange_id: e for e in read(ng(mixed, "<"))}
    want = assembled(conversation(mss=37))[0]
    assert set(found) == {e.exchange_id for e in want}
    assert all((found[e.exchange_id].request, found[e.exchange_id].response) == (e.request, e.response) for e in want)


@pytest.mark.parametrize("snaplen", [54, 60, 80, 90])
def test_snaplen_takes_away_and_adds_nothing(snaplen: int) -> None:
    whole = {e.exchange_id: e for e in assembled(conversation(mss=37))[0]}
    for e in read(pcap(PACKETS, nanoseconds=True, snaplen=snaplen)):
        same = whole.get(e.exchange_id)
        missing = e.request.missing_bytes + (e.response.missing_bytes if e.response else 0)
        if Fault.GAP not in e.faults and Fault.UNFINISHED not in e.faults:
            assert same is not None
            assert missing == 0
            assert told([e]) == told([same])
        elif same is not None and e.response and same.response and e.response.head == same.response.head:
            assert e.response.body_bytes + e.response.missing_bytes <= same.response.body_bytes + 40


def test_a_difference_is_found() -> None:
    """The comparison sees one byte that is another."""
    at = next(i for i, (_, data) in enumerate(PACKETS) if data.endswith(b"1" * 20))
    changed = [*PACKETS[:at], (PACKETS[at][0], PACKETS[at][1][:-1] + b"2"), *PACKETS[at + 1 :]]
    assert told(read(ng(changed, "<"))) != WANT
    assert msgspec.msgpack.encode(WANT) == msgspec.msgpack.encode(told(read(ng(PACKETS, "<"))))


def test_lost_segments_of_a_pipeline_touch_no_other() -> None:
    """Each payload segment of a burst of requests and answers lost in turn: what is not flagged is byte-identical."""

    def burst() -> Conversation:
        talk = Conversation().open()
        talk.client(b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % n for n in range(8)), mss=60)
        talk.server(
            b"".join(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n" + b"%03d\n" % n * 10 for n in range(8)), mss=50
        )
        return talk.ack(0).close()

    whole = {e.exchange_id: e for e in assembled(burst())[0]}
    assert len(whole) == 8
    for lost in [i for i, (_, data) in enumerate(burst().packets) if len(data) > 54]:
        talk = burst()
        gone = talk.packets.pop(lost)
        found, assembler = assembled(talk)
        assert assembler.account.notes["gap_bytes"] == len(gone[1]) - 54
        for e in found:
            if not e.faults:
                assert told([e]) == told([whole[e.exchange_id]]), lost
        # With the very first bytes it is not known who asks: then none is paired.
        assert sum(1 for e in found if not e.faults) >= (5 if lost > 3 else 0), lost


def test_two_agents_of_one_recording_give_a_request_one_id() -> None:
    """By which copies of it are known (`replay.fetch`)."""
    ids = []
    for host in ("node-1", "node-2"):
        made = Assembler("monday", CaptureSettings(), None, b"k", host=host)
        for ts_ns, frame in PACKETS:
            made.packet(ts_ns, frame, len(frame))
        ids.append([(e.exchange_id, e.host) for e in made.finish()])
    assert [one for one, _ in ids[0]] == [one for one, _ in ids[1]] != []
    assert not set(ids[0]) & set(ids[1])
