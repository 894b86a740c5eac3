"""What TCP does to a conversation, case by case: packets in, exchanges and counts out."""

from __future__ import annotations

import tracemalloc

import pytest
from pcap_build import ACK, FIN, PSH, RST, SYN, Conversation, ethernet, ipv4, tcp
from test_capture_pair import answer, assembled, get, shown

from capture.assembler import Assembler
from capture.reassemble import PIECE_COST, Stream
from capture.settings import CaptureSettings
from wire.head import request_head
from wire.records import Fault

WRAP = 0xFFFFFFFF


def notes(assembler: Assembler) -> dict[str, int]:
    return dict(assembler.account.notes)


def drops(assembler: Assembler) -> dict[str, int]:
    return assembler.account.ledger("bytes").drops


@pytest.mark.parametrize("isn", [WRAP - 3, WRAP, 0, WRAP - 60, 0x7FFFFFF0])
def test_sequence_numbers_wrap(isn: int) -> None:
    talk = Conversation(client_isn=isn, server_isn=WRAP - isn).open()
    for number in range(5):
        talk.client(get(f"/{number}"), mss=9).server(answer(b"x" * 50), mss=7).ack(0)
    found, _ = assembled(talk.close())
    assert [(path, status, len(body)) for path, status, body in shown(found)] == [
        (b"/%d" % n, 200, 50) for n in range(5)
    ]
    assert all(e.faults == () for e in found)


def test_data_on_syn_is_read_once() -> None:
    talk = Conversation()
    talk.raw(0, 1000, 0, SYN, get("/fast"))
    talk.raw(1, 5000, 1001 + len(get("/fast")), SYN | ACK)
    talk.seq = [1001 + len(get("/fast")), 5001]
    found, _ = assembled(talk.server(answer(b"open")).close())
    assert shown(found) == [(b"/fast", 200, b"open")]
    again = Conversation()
    again.raw(0, 1000, 0, SYN, get("/slow"))
    again.raw(1, 5000, 1001, SYN | ACK)  # not taken with SYN
    again.seq = [1001, 5001]
    found, assembler = assembled(again.client(get("/slow")).server(answer(b"open")).close())
    assert shown(found) == [(b"/slow", 200, b"open")]
    assert assembler.account.ledger("bytes").intentional == {"duplicate": len(get("/slow"))}


def test_a_request_that_is_sent_again_long_after_the_end_is_no_other_one() -> None:
    """Its sender does not know that the connection is over, and its pauses double; each is longer than the last."""
    talk = Conversation().open().client(get("/once")).server(answer(b"one")).close()
    begin = talk.seq[0] - len(get("/once")) - 1
    for pause_ns in (1, 2, 4, 8, 16):
        talk.now_ns += pause_ns * 10**9
        talk.raw(0, begin, talk.seq[1], ACK, get("/once"))
        Conversation(("10.0.0.9", pause_ns + 1), start_ns=talk.now_ns).open()
    found, assembler = assembled(talk)
    assert shown(found) == [(b"/once", 200, b"one")]
    assert assembler.account.ledger("connections").seen == 1
    talk.now_ns += 100 * 10**9  # by then it is another one's
    talk.raw(0, begin, talk.seq[1], ACK, get("/once"))
    found, assembler = assembled(talk)
    assert [path for path, _, _ in shown(found)] == [b"/once", b"/once"]


def test_a_connection_that_is_met_in_its_midst_begins_with_a_request_line_of_any_blanks() -> None:
    talk = Conversation()
    talk.seq = [5_000_000, 7_000_000]
    talk.client(b"GET   /a  HTTP/1.1\r\nHost: x\r\n\r\n").server(answer(b"one")).close()
    (found,), _ = assembled(talk)
    assert request_head(found.request.head).target == b"/a" and found.response is not None


def test_keepalive_probes_and_a_window_of_zero() -> None:
    talk = Conversation().open().client(get("/1")).server(answer(b"one")).ack(0)
    for side in (0, 1, 0):
        talk.raw(side, talk.seq[side] - 1, talk.seq[1 - side], ACK)  # an empty probe
        talk.raw(side, talk.seq[side] - 1, talk.seq[1 - side], ACK, b"\0")  # one with a byte that is garbage
        talk.ack(1 - side)
    talk.client(get("/2"))
    first = answer(b"two" * 30)
    talk.raw(1, talk.seq[1], talk.seq[0], ACK, first[:1])  # a probe into a window of zero brings the next byte
    talk.ack(0)
    found, assembler = assembled(talk.server(first).close())
    assert shown(found) == [(b"/1", 200, b"one"), (b"/2", 200, b"two" * 30)]
    assert all(e.faults == () for e in found)
    assert assembler.account.ledger("bytes").intentional == {"keepalive": 3, "duplicate": 1}


def test_one_byte_that_differs_while_it_is_not_acknowledged_is_no_probe() -> None:
    talk = Conversation().open().client(get("/1")[:5]).ack(1).client(get("/1")[5:-1])
    talk.raw(0, talk.seq[0] - 1, talk.seq[1], ACK | PSH, b"X")
    (e,), _ = assembled(talk.client(get("/1")[-1:]).server(answer(b"")).close())
    assert Fault.AMBIGUOUS in e.faults


@pytest.mark.parametrize(
    ("off", "believed"), [(0, True), (-5, False), (-100_000, False), (50_000_000, False), (1 << 31, False)]
)
def test_a_reset_counts_where_it_is_in_the_window(off: int, believed: bool) -> None:
    talk = Conversation().open().client(get("/1")).server(answer(b"one")).ack(0)
    talk.client(get("/2")).ack(1)
    talk.raw(1, talk.seq[1] + off, talk.seq[0], RST)
    talk.server(answer(b"two")).ack(0).client(get("/3")).server(answer(b"three"))
    found, assembler = assembled(talk.close())
    if believed:
        assert shown(found)[:2] == [(b"/1", 200, b"one"), (b"/2", 0, b"")]
    else:
        assert shown(found) == [(b"/1", 200, b"one"), (b"/2", 200, b"two"), (b"/3", 200, b"three")]
        assert all(e.faults == () for e in found)
    assert notes(assembler).get("resets_out_of_window", 0) == (0 if believed else 1)


def test_a_reset_ahead_of_what_was_seen_waits_for_it() -> None:
    talk = Conversation().open().client(get("/1")).server(answer(b"one" * 900))
    *before, tail = talk.packets
    talk.reset(1)
    talk.packets = [*before, (tail[0], talk.packets[-1][1]), (talk.packets[-1][0], tail[1])]  # swapped on the way
    found, assembler = assembled(talk)
    assert shown(found) == [(b"/1", 200, b"one" * 900)]
    assert found[0].faults == ()
    forged = Conversation().open().client(get("/1"))
    forged.raw(1, forged.seq[1] + 3000, forged.seq[0], RST)
    forged.server(answer(b"a" * 5000)).ack(0).client(get("/2")).server(answer(b"2"))
    found, _ = assembled(forged.close())
    assert [(path, len(body)) for path, _, body in shown(found)] == [(b"/1", 5000), (b"/2", 1)]
    alone = Conversation().open().client(get("/1"))
    alone.raw(1, alone.seq[1] + 3000, alone.seq[0], RST)
    alone.now_ns += 6_000_000_000
    other = Conversation(("10.0.0.7", 7), start_ns=alone.now_ns).open().client(get("/x")).server(answer(b"x"))
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    for ts_ns, data in [*alone.packets, *other.packets]:
        assembler.packet(ts_ns, data, len(data))
    assert shown(assembler.take()) == [(b"/1", 0, b""), (b"/x", 200, b"x")]  # nothing came: it was over


def test_a_body_until_close_is_not_whole_where_a_reset_cut_it() -> None:
    for side, end in ((0, "reset"), (1, "reset"), (1, "close")):
        talk = Conversation().open().client(get("/")).server(b"HTTP/1.0 200 OK\r\n\r\nbegun")
        (e,), _ = assembled(talk.close() if end == "close" else talk.reset(side))
        assert (Fault.UNFINISHED in e.faults) is (end == "reset")


def test_an_upload_that_is_aborted() -> None:
    talk = Conversation().open().client(b"POST /up HTTP/1.1\r\nContent-Length: 500\r\n\r\n" + b"u" * 100).reset(0)
    (e,), _ = assembled(talk)
    assert (e.request.body, e.response) == (b"u" * 100, None)
    assert Fault.UNFINISHED in e.faults


@pytest.mark.parametrize("jump", [1 << 27, 1 << 30, -(1 << 27), (1 << 31) - 1])
def test_a_segment_from_far_away_is_counted_and_costs_nothing(jump: int) -> None:
    talk = Conversation().open().client(get("/1")).server(answer(b"one")).ack(0)
    talk.raw(1, talk.seq[1] + jump, talk.seq[0], ACK | PSH, answer(b"forged"))
    talk.client(get("/2")).server(answer(b"two"))
    found, assembler = assembled(talk.close())
    assert shown(found) == [(b"/1", 200, b"one"), (b"/2", 200, b"two")]
    assert drops(assembler) == {"out_of_window": len(answer(b"forged"))}
    assert notes(assembler).get("gap_bytes", 0) == 0


def test_ports_that_are_used_again_while_nobody_saw_it() -> None:
    talk = Conversation().open().client(get("/old")).server(answer(b"old")).ack(0)
    talk.seq = [talk.seq[0] + (1 << 30), talk.seq[1] - (1 << 29)]  # no FIN, no SYN was captured
    for number in range(6):
        talk.client(get(f"/{number}")).server(answer(b"%d" % number))
    found, assembler = assembled(talk.close())
    assert shown(found)[0] == (b"/old", 200, b"old")
    assert shown(found)[-3:] == [(b"/%d" % n, 200, b"%d" % n) for n in (3, 4, 5)]
    assert all(Fault.MIDSTREAM in e.faults for e in found[1:])
    assert drops(assembler)["out_of_window"] > 0


def test_a_forged_fin_far_away_does_not_end_a_stream() -> None:
    talk = Conversation().open().client(get("/1"))
    talk.raw(1, talk.seq[1] + 70_000, talk.seq[0], FIN | ACK)
    talk.server(answer(b"one")).client(get("/2")).server(b"HTTP/1.1 200 OK\r\n\r\nuntil close")
    found, _ = assembled(talk.close())
    assert shown(found) == [(b"/1", 200, b"one"), (b"/2", 200, b"until close")]
    assert found[1].faults == ()


# -- overlaps


def overlapping(where: str) -> Conversation:
    """Bytes that come twice and differ: in a request, or in its answer, or nowhere; then an exchange that is clean."""
    talk = Conversation().open()
    request = b"POST /pay HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\namount=10"
    talk.raw(0, talk.seq[0], talk.seq[1], ACK | PSH, request[:-2])
    if where == "request":
        talk.raw(0, talk.seq[0] + len(request) - 4, talk.seq[1], ACK | PSH, b"=99")
    talk.seq[0] += len(request) - 2
    talk.client(request[-2:])
    reply = answer(b"paid: 10 euros")
    talk.raw(1, talk.seq[1], talk.seq[0], ACK | PSH, reply[:-3])
    if where == "answer":
        talk.raw(1, talk.seq[1] + len(reply) - 8, talk.seq[0], ACK | PSH, b"99 eu")
    talk.seq[1] += len(reply) - 3
    talk.server(reply[-3:]).ack(0)
    talk.client(get("/clean")).server(answer(b"clean"))
    return talk.close()


@pytest.mark.parametrize("where", ["request", "answer", "nowhere"])
def test_overlaps_that_differ_are_ambiguous_and_only_there(where: str) -> None:
    found, _ = assembled(overlapping(where))
    assert [path for path, _, _ in shown(found)] == [b"/pay", b"/clean"]
    assert found[0].faults == ((Fault.AMBIGUOUS,) if where != "nowhere" else ())
    assert found[1].faults == ()


def test_equal_overlaps_of_any_shape_are_no_conflict() -> None:
    request, reply = get("/1"), answer(b"abcdefghij" * 5)
    for first in range(1, len(reply), 7):
        for again in range(0, first, 5):
            talk = Conversation().open().client(request)
            talk.raw(1, 5001, talk.seq[0], ACK, reply[:first])
            talk.raw(1, 5001 + again, talk.seq[0], ACK, reply[again:])
            talk.seq[1] = 5001 + len(reply)
            (e,), _ = assembled(talk.close())
            assert (e.response and e.response.body, e.faults) == (b"abcdefghij" * 5, ()), (first, again)


# -- requests whose end is doubtful


def smuggling(*, waits: bool) -> Conversation:
    talk = Conversation().open()
    attack = b"POST /a HTTP/1.1\r\nContent-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    if waits:
        talk.client(attack).server(answer(b"a")).ack(0).client(get("/admin")).server(answer(b"b"))
    else:
        talk.client(attack + get("/admin")).server(answer(b"a") + answer(b"b"))
    return talk.ack(0).client(get("/later")).server(answer(b"c")).close()


def test_what_may_have_been_the_body_of_a_doubtful_request_is_ambiguous_too() -> None:
    found, _ = assembled(smuggling(waits=False))
    assert [(path, Fault.AMBIGUOUS in e.faults) for e, (path, _, _) in zip(found, shown(found), strict=True)] == [
        (b"/a", True), (b"/admin", True), (b"/later", False),
    ]  # fmt: skip
    found, _ = assembled(smuggling(waits=True))  # sent after the answer: it was no part of a body
    assert [Fault.AMBIGUOUS in e.faults for e in found] == [True, False, False]


# -- memory


def test_a_flood_of_half_open_connections_costs_none_that_is_used() -> None:
    real = [Conversation(("10.1.0.1", 1000 + n)).open().client(get(f"/{n}")).server(answer(b"1")) for n in range(20)]
    assembler = Assembler("r", CaptureSettings(max_connections=500), None, b"k")
    for talk in real:
        for ts_ns, data in talk.packets:
            assembler.packet(ts_ns, data, len(data))
    at = max(talk.now_ns for talk in real)
    tracemalloc.start()
    for number in range(5_000):  # no time passes
        source = f"10.{2 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
        frame = ethernet(ipv4(source, "10.0.0.2", tcp(number & 0xFFF, 80, number * 7919, 0, SYN)))
        assembler.packet(at, frame, len(frame))
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert assembler.connections <= 500
    assert grown < 1000 * 7_000  # as many as are open, and as many that are over
    for talk in real:
        del talk.packets[:]
        talk.client(get("/again")).server(answer(b"2"))
        for ts_ns, data in talk.packets:
            assembler.packet(ts_ns, data, len(data))
    found = assembler.finish()
    assert len(found) == 40
    assert all(e.faults == () for e in found)
    counted = notes(assembler)
    assert counted["evicted_half_open"] == counted["evicted_connections"] >= 4_000
    assert assembler.account.balanced


def test_tiny_segments_far_out_of_order_are_bounded_by_what_they_cost() -> None:
    counted: dict[str, int] = {}
    stream = Stream(lambda reason, count: counted.update({reason: counted.get(reason, 0) + count}), 100_000, 1 << 16)
    stream.start(0, syn=True)
    out = 0
    for index in range(30_000):
        out += sum(length for _, data, length, _, _ in stream.segment(11 + 2 * index, b"x", 1, 1, -1) if data)
        assert stream.waiting_cost <= 100_000
        assert len(stream.waiting) <= 100_000 // PIECE_COST
    assert out + stream.waiting_bytes == 30_000


def test_what_waits_is_bounded_over_all_connections_though_no_time_passes() -> None:
    settings = CaptureSettings(max_total_bytes=1 << 20, max_connection_bytes=1 << 20)
    assembler = Assembler("r", settings, None, b"k")
    for number in range(100):
        talk = Conversation(("10.0.0.1", 1000 + number)).open()
        for index in range(100):
            talk.raw(0, talk.seq[0] + 10 + 1001 * index, talk.seq[1], ACK, b"x" * 1000)
        for _, data in talk.packets:
            assembler.packet(1, data, len(data))
    assert assembler.in_flight_bytes < 6 << 20
    assembler.finish()
    assert assembler.account.balanced
    assert notes(assembler)["gap_bytes"] > 0


def test_what_is_no_http_is_not_remembered() -> None:
    talk = Conversation().open()
    for _ in range(100):
        talk.client(b"\x16\x03\x01" + b"x" * 1400).server(b"\x17\x03\x03" + b"y" * 1400)
    assembler = Assembler("r", CaptureSettings(), None, b"k")
    for ts_ns, data in talk.packets:
        assembler.packet(ts_ns, data, len(data))
    (connection,) = assembler._open
    assert connection.memory_cost < 10_000


def test_heads_that_do_not_end_are_bounded_over_all_connections() -> None:
    assembler = Assembler("r", CaptureSettings(max_total_bytes=1 << 20), None, b"k")
    for number in range(100):
        talk = Conversation(("10.0.0.1", 1000 + number), start_ns=10**18 + number * 10**9).open()
        talk.client(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000)
        for ts_ns, data in talk.packets:
            assembler.packet(ts_ns, data, len(data))
    assert sum(connection.memory_cost for connection in assembler._open) < 3 << 20
    assert notes(assembler)["evicted_connections"] > 50
    assembler.finish()
    assert assembler.account.balanced


# -- pipelines with losses


def pipeline(count: int) -> Conversation:
    talk = Conversation().open().client(b"".join(get(f"/{n}") for n in range(count)))
    for number in range(count):
        talk.server(answer(b"%03d" % number))
    return talk.ack(0).close()


def without(talk: Conversation, *lost: int) -> Conversation:
    talk.packets = [p for p in talk.packets if not any(p[1].endswith(b"\r\n\r\n%03d" % number) for number in lost)]
    return talk


@pytest.mark.parametrize("lost", [(0,), (4,), (11,), (3, 7), (3, 4), (0, 1, 2), (5, 6, 9)])
def test_a_loss_in_a_deep_pipeline_shifts_no_answer(lost: tuple[int, ...]) -> None:
    found, assembler = assembled(without(pipeline(12), *lost))
    by_path = {path: body for path, _, body in shown(found)}
    assert len(by_path) == 12
    for number in range(12):
        got = by_path[b"/%d" % number]
        assert got in (b"", b"%03d" % number), "paired with another's answer"
        assert not (number in lost and got)
    if len(lost) == 1 or lost[-1] - lost[0] == len(lost) - 1:  # one gap: each other answer has its place
        assert sum(1 for body in by_path.values() if body) == 12 - len(lost)
    assert notes(assembler)["gap_bytes"] == len(answer(b"000")) * len(lost)


def test_requests_that_made_room_take_their_answers_with_them() -> None:
    talk = Conversation().open().client(b"".join(get(f"/{n}", method="HEAD" if n == 1 else "GET") for n in range(6)))
    for number in range(6):
        talk.server(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + (b"" if number == 1 else b"%d" % number))
    found, assembler = assembled(talk.close(), max_pipelined=3)
    assert shown(found) == [
        (b"/0", 0, b""), (b"/1", 0, b""), (b"/2", 0, b""), (b"/3", 200, b"3"), (b"/4", 200, b"4"), (b"/5", 200, b"5"),
    ]  # fmt: skip
    assert assembler.account.ledger("messages").drops == {"unpaired_response": 3}
