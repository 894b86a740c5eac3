"""Requests and answers, as traces: what goes over the wire, then the exchanges that come out."""

from __future__ import annotations

import pytest
from pcap_build import ACK, PSH, Conversation
from test_capture_pair_lost import read

from capture.assembler import Assembler
from capture.settings import CaptureSettings
from wire.records import Exchange, Fault, Framing, Mode


def assembled(*talks: Conversation, **settings: object) -> tuple[list[Exchange], Assembler]:
    chosen = CaptureSettings(**settings)  # type: ignore[arg-type]
    assembler = Assembler("r", chosen, None, b"key")
    packets = sorted((p for talk in talks for p in talk.packets), key=lambda p: p[0])
    for ts_ns, data in packets:
        assembler.packet(ts_ns, data, len(data))
    found = assembler.finish()
    assert assembler.account.balanced, assembler.account.as_json()
    return found, assembler


def shown(exchanges: list[Exchange]) -> list[tuple[bytes, int, bytes]]:
    return [
        (e.request.head.split(b" ")[1], e.response.status if e.response else 0, e.response.body if e.response else b"")
        for e in exchanges
    ]


def get(path: str, *, method: str = "GET", extra: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: h\r\n{extra}\r\n".encode()


def answer(body: bytes, *, status: str = "200 OK", extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


def test_keep_alive() -> None:
    talk = Conversation().open().client(get("/1")).server(answer(b"one")).client(get("/2")).server(answer(b"two"))
    found, _ = assembled(talk.close())
    assert shown(found) == [(b"/1", 200, b"one"), (b"/2", 200, b"two")]
    assert [e.faults for e in found] == [(), ()]
    assert found[0].client == "10.0.0.1:40000"
    assert found[0].server == "10.0.0.2:80"


def test_times_are_those_of_the_packets() -> None:
    talk = Conversation(step_ns=10).open()
    body = b"x" * 3000
    post = b"POST / HTTP/1.1\r\nContent-Length: 3000\r\n\r\n" + body
    talk.client(post).server(answer(b"y" * 2000))
    found, _ = assembled(talk.close())
    times = [ts for ts, _ in talk.packets]
    e = found[0]
    assert (e.request_start_ns, e.request_end_ns) == (times[3], times[5])
    assert (e.response_start_ns, e.response_end_ns) == (times[6], times[7])


def test_pipelining() -> None:
    talk = Conversation().open().client(get("/1") + get("/2") + get("/3"))
    talk.server(answer(b"1") + answer(b"2") + answer(b"3"))
    assert shown(assembled(talk.close())[0]) == [(b"/1", 200, b"1"), (b"/2", 200, b"2"), (b"/3", 200, b"3")]


@pytest.mark.parametrize("mss", [1, 2, 3, 7, 1460])
def test_head_204_304_have_no_body_whatever_they_say(mss: int) -> None:
    talk = Conversation().open()
    talk.client(get("/h", method="HEAD"), mss=mss).server(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", mss=mss)
    talk.client(get("/n"), mss=mss).server(b"HTTP/1.1 204 No Content\r\nContent-Length: 99\r\n\r\n", mss=mss)
    talk.client(get("/m"), mss=mss).server(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", mss=mss)
    talk.client(get("/l"), mss=mss).server(answer(b"last"), mss=mss)
    found, _ = assembled(talk.close())
    assert shown(found) == [(b"/h", 200, b""), (b"/n", 204, b""), (b"/m", 304, b""), (b"/l", 200, b"last")]


def test_interim_answers_belong_to_the_final_one() -> None:
    talk = Conversation().open()
    talk.client(b"POST /p HTTP/1.1\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
    talk.server(b"HTTP/1.1 100 Continue\r\n\r\n").client(b"body")
    talk.server(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + answer(b"done"))
    (e,), _ = assembled(talk.close())
    assert e.response is not None
    assert [head.split(b" ")[1] for head in e.response.interim] == [b"100", b"103"]
    assert (e.request.body, e.response.status, e.response.body) == (b"body", 200, b"done")


def test_close_delimited() -> None:
    talk = Conversation().open().client(get("/")).server(b"HTTP/1.0 200 OK\r\n\r\n" + b"z" * 4000)
    (e,), _ = assembled(talk.close())
    assert e.response is not None
    assert (e.response.framing, e.response.body, e.faults) == (Framing.CLOSE, b"z" * 4000, ())


def test_close_delimited_and_the_recording_ends_first() -> None:
    talk = Conversation().open().client(get("/")).server(b"HTTP/1.0 200 OK\r\n\r\nhalf")
    (e,), _ = assembled(talk)
    assert e.response is not None
    assert e.response.body == b"half"
    assert Fault.UNFINISHED in e.faults


def test_connect_is_a_tunnel_from_then_on() -> None:
    talk = Conversation().open().client(b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n")
    talk.server(b"HTTP/1.1 200 OK\r\n\r\n").client(get("/inside")).server(answer(b"inside"))
    found, assembler = assembled(talk.close())
    assert shown(found) == [(b"a:443", 200, b"")]
    assert assembler.account.ledger("bytes").intentional["tunnel"] == len(get("/inside")) + len(answer(b"inside"))


def test_a_refused_connect_is_no_tunnel() -> None:
    talk = Conversation().open().client(b"CONNECT a:443 HTTP/1.1\r\n\r\n").server(answer(b"no", status="403 No"))
    talk.client(get("/next")).server(answer(b"yes"))
    assert shown(assembled(talk.close())[0]) == [(b"a:443", 403, b"no"), (b"/next", 200, b"yes")]


def test_upgrade() -> None:
    talk = Conversation().open().client(get("/ws", extra="Upgrade: websocket\r\nConnection: Upgrade\r\n"))
    talk.server(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x05hello").client(b"\x81\x85frame")
    found, _ = assembled(talk.close())
    assert shown(found) == [(b"/ws", 101, b"")]


def test_an_early_answer_is_late_for_its_request() -> None:
    talk = Conversation().open().client(b"POST /up HTTP/1.1\r\nContent-Length: 6\r\n\r\nabc")
    talk.server(answer(b"", status="413 Too Large")).client(b"def").client(get("/2")).server(answer(b"2"))
    found, _ = assembled(talk.close())
    assert shown(found) == [(b"/up", 413, b""), (b"/2", 200, b"2")]
    assert Fault.LATE in found[0].faults
    assert found[0].request.body == b"abcdef"
    assert found[1].faults == ()


def test_a_body_not_sent_after_a_final_answer_to_expect() -> None:
    talk = Conversation().open().client(b"POST /up HTTP/1.1\r\nContent-Length: 6\r\nExpect: 100-continue\r\n\r\n")
    talk.server(answer(b"", status="417 No")).client(get("/2")).server(answer(b"2"))
    assert shown(assembled(talk.close())[0]) == [(b"/up", 417, b""), (b"/2", 200, b"2")]


@pytest.mark.parametrize("path", ["/2", "/" + "long" * 600])
@pytest.mark.parametrize("method", ["GET", "MKCOL", "PURGE", "VERSION-CONTROL"])
def test_the_next_request_is_not_the_body_that_was_not_sent(method: str, path: str) -> None:
    """Also where its first line does not end in its first segment."""
    talk = Conversation().open().client(b"PUT /up HTTP/1.1\r\nContent-Length: 6000\r\nExpect: 100-continue\r\n\r\n")
    talk.server(answer(b"", status="401 No")).client(get(path, method=method)).server(answer(b"2"))
    assert shown(assembled(talk.close())[0]) == [(b"/up", 401, b""), (path.encode(), 200, b"2")]


@pytest.mark.parametrize("method", ["GET", "LOCK", "MKCOL", "PROPPATCH", "PURGE", "M-SEARCH", "NOTIFY"])
def test_a_connection_that_is_met_in_its_midst_is_read_from_its_next_request_on(method: str) -> None:
    talk = Conversation().open().client(b"POST /0 HTTP/1.1\r\nContent-Length: 3000\r\n\r\n" + b"x" * 3000)
    talk.server(answer(b"0")).ack(0).client(get("/1", method=method)).server(answer(b"1")).close()
    talk.packets = talk.packets[4:]
    assert (b"/1", 200, b"1") in shown([e for e in assembled(talk)[0] if e.request.head])


def test_requests_without_an_answer() -> None:
    talk = Conversation().open().client(get("/1")).server(answer(b"1")).client(get("/2"))
    found, _ = assembled(talk.close())
    assert shown(found) == [(b"/1", 200, b"1"), (b"/2", 0, b"")]
    assert found[1].response is None
    assert found[1].faults == (Fault.UNFINISHED,)


def test_a_lost_answer_shifts_no_other() -> None:
    talk = Conversation().open()
    for number in range(4):
        talk.client(get(f"/{number}")).server(answer(b"%d" % number)).ack(0)
    talk.close()
    lost = next(i for i, (_, data) in enumerate(talk.packets) if data.endswith(b"\r\n\r\n1"))
    del talk.packets[lost]
    found, assembler = assembled(talk)
    assert shown(found) == [(b"/0", 200, b"0"), (b"/1", 0, b""), (b"/2", 200, b"2"), (b"/3", 200, b"3")]
    assert assembler.account.notes["gap_bytes"] == len(answer(b"1"))


def test_a_lost_request_shifts_no_other_and_its_answer_is_counted() -> None:
    talk = Conversation().open()
    for number in range(4):
        talk.client(get(f"/{number}")).server(answer(b"%d" % number)).ack(0)
    talk.close()
    lost = next(i for i, (_, data) in enumerate(talk.packets) if b"GET /1 " in data)
    del talk.packets[lost]
    found, assembler = assembled(talk)
    assert shown(found) == [(b"/0", 200, b"0"), (b"/2", 200, b"2"), (b"/3", 200, b"3")]
    assert assembler.account.ledger("messages").drops == {"unpaired_response": 1}
    kept, _ = assembled(talk, keep_unpaired=True)
    assert sorted(e.response.body for e in kept if e.response) == [b"0", b"1", b"2", b"3"]


def test_answers_captured_before_their_requests() -> None:
    talk = Conversation().open()
    for number in range(3):
        talk.client(get(f"/{number}")).server(answer(b"%d" % number))
    talk.close()
    for index in range(3, 9, 2):
        one, two = talk.packets[index], talk.packets[index + 1]
        talk.packets[index], talk.packets[index + 1] = (one[0], two[1]), (two[0], one[1])
    assert shown(assembled(talk)[0]) == [(b"/0", 200, b"0"), (b"/1", 200, b"1"), (b"/2", 200, b"2")]


def unready(*, opened: bool) -> Conversation:
    """An answer that acknowledges nothing of the request before it: its sender had not seen it, or lies."""
    talk = Conversation()
    if opened:
        talk.open()
    talk.client(get("/a"))
    talk.raw(1, talk.seq[1], talk.seq[0] - len(get("/a")), PSH | ACK, answer(b"one"))
    return talk


def test_an_answer_is_to_the_only_request_there_was_whatever_it_acknowledges() -> None:
    exchanges, _ = assembled(unready(opened=True))
    assert shown(exchanges) == [(b"/a", 200, b"one")]


def test_an_answer_is_not_to_a_request_that_its_sender_had_not_seen_where_there_may_be_another() -> None:
    exchanges, _ = assembled(unready(opened=False), keep_unpaired=True)
    assert [(bool(e.request.head), e.response is not None) for e in exchanges] == [(False, True), (True, False)]


def test_where_a_request_was_lost_an_answer_may_be_to_it() -> None:
    talk = Conversation().open().client(get("/lost"))
    talk.packets.pop()
    before = talk.seq[0]
    talk.client(get("/a"))
    talk.raw(1, talk.seq[1], before, PSH | ACK, answer(b"to the lost one"))
    exchanges, _ = assembled(talk, keep_unpaired=True)
    assert [(bool(e.request.head), e.response is not None) for e in exchanges] == [(False, True), (True, False)]


def test_an_acknowledgement_of_zero_says_nothing() -> None:
    """As tools write it that make packets: all of them with sequence 0 and acknowledgement 0."""
    talk = Conversation()
    talk.raw(0, 0, 0, PSH | ACK, get("/a"))
    talk.raw(1, 0, 0, PSH | ACK, answer(b"one"))
    exchanges, _ = assembled(talk)
    assert shown(exchanges) == [(b"/a", 200, b"one")]


def test_midstream_begins_with_the_next_message() -> None:
    talk = Conversation().client(b"rest of a body, GET it\r\n").client(get("/1")).server(b"tail").server(answer(b"1"))
    talk.client(get("/2")).server(answer(b"2"))
    found, assembler = assembled(talk.close())
    assert shown(found)[-1] == (b"/2", 200, b"2")
    assert (b"/1", 200, b"1") in shown(found)
    assert all(Fault.MIDSTREAM in e.faults for e in found)
    assert assembler.account.ledger("bytes").drops["midstream"] > 0


def test_port_reuse() -> None:
    first = Conversation().open().client(get("/old"))
    second = Conversation(client_isn=777_777, server_isn=888_888, start_ns=first.now_ns).open()
    second.client(get("/new")).server(answer(b"new"))
    found, _ = assembled(first, second.close())
    assert shown(found) == [(b"/old", 0, b""), (b"/new", 200, b"new")]
    assert found[0].connection_id != found[1].connection_id


def test_same_addresses_in_two_vlans_are_two_connections() -> None:
    one = Conversation(vlan=(10,)).open().client(get("/1")).server(answer(b"1")).close()
    two = Conversation(vlan=(20,), client_isn=99, server_isn=77, start_ns=one.now_ns - 3_000_000).open()
    two.client(get("/2")).server(answer(b"2")).close()
    found, _ = assembled(one, two)
    assert sorted(shown(found)) == [(b"/1", 200, b"1"), (b"/2", 200, b"2")]
    assert len({e.connection_id for e in found}) == 2


def test_the_same_connection_seen_in_two_vlans_is_one() -> None:
    one = Conversation(vlan=(10,)).open().client(get("/1")).server(answer(b"1")).close()
    copy = Conversation(vlan=(20,), start_ns=one.ends and 1_700_000_000_000_100_000).open()
    copy.client(get("/1")).server(answer(b"1")).close()
    found, assembler = assembled(one, copy)
    assert shown(found) == [(b"/1", 200, b"1")]
    assert assembler.account.ledger("packets").drops["other_link"] == len(copy.packets)


def test_copies_on_another_interface_are_counted_and_dropped() -> None:
    talk = Conversation().open().client(get("/1")).server(answer(b"1")).close()
    assembler = Assembler("r", CaptureSettings(), None, b"key")
    for ts_ns, data in talk.packets:
        assembler.packet(ts_ns, data, len(data), 1, "eth0")
        assembler.packet(ts_ns + 10, data, len(data), 1, "br0")
    assert shown(assembler.finish()) == [(b"/1", 200, b"1")]
    assert assembler.account.ledger("packets").drops == {"other_interface": len(talk.packets)}
    assert assembler.account.balanced


def test_conflicting_lengths_are_ambiguous() -> None:
    talk = Conversation().open()
    talk.client(b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    (e,), _ = assembled(talk.server(answer(b"x")).close())
    assert Fault.AMBIGUOUS in e.faults
    assert e.mode is not Mode.STRICT


def test_retransmission_with_other_bytes_is_ambiguous_for_that_exchange_alone() -> None:
    talk = Conversation().open().client(get("/1")).server(answer(b"11111"))
    seq = talk.seq[1] - 5
    talk.raw(1, seq, talk.seq[0], 24, b"99999")
    talk.client(get("/2")).server(answer(b"2"))
    found, _ = assembled(talk.close())
    assert shown(found) == [(b"/1", 200, b"11111"), (b"/2", 200, b"2")]
    # The first exchange was complete before the other bytes came: what is gone cannot be marked.
    assert found[1].faults == ()
    open_ = Conversation().open().client(get("/1")).server(answer(b"11111" * 2)[:-2])
    open_.raw(1, open_.seq[1] - 5, open_.seq[0], 24, b"99999")
    (e,), _ = assembled(open_.server(b"11").close())
    assert Fault.AMBIGUOUS in e.faults
    assert e.response is not None
    assert e.response.body == b"1" * 10


@pytest.mark.parametrize("when", ["before", "behind"])
@pytest.mark.parametrize("general", [False, True])
def test_other_bytes_of_a_head_that_is_not_whole_when_an_exchange_ends(when: str, general: bool) -> None:
    """That the exchange before is over takes nothing from what is known of the next one."""
    talk = Conversation().open().client(get("/1"))
    begin = talk.seq[0]
    talk.client(b"GET /pay?to=alice HTTP/1.1\r\nHo")
    if when == "behind":
        talk.server(answer(b"1"))
    talk.raw(0, begin, talk.seq[1], 24, b"GET /pay?to=mallo")
    if when == "before":
        talk.server(answer(b"1"))
    found = read(talk.client(b"st: h\r\n\r\n").server(answer(b"2")).close().packets, general=general)
    assert [e.faults for e in found] == [(), (Fault.AMBIGUOUS,)]


@pytest.mark.parametrize("general", [False, True])
def test_other_bytes_of_an_answer_that_began_in_the_segment_that_ends_the_one_before(general: bool) -> None:
    talk = Conversation().open().client(get("/1")).client(get("/2"))
    talk.server(answer(b"1") + b"HTTP/1.1 2")
    talk.raw(1, talk.seq[1] - 1, talk.seq[0], 24, b"5")
    found = read(talk.server(answer(b"2")[10:]).close().packets, general=general)
    assert [e.faults for e in found] == [(), (Fault.AMBIGUOUS,)]


@pytest.mark.parametrize("head", [get("/2", extra="X: " + "x" * 300_000 + "\r\n"), get("/2").replace(b"1.1", b"2.0")])
@pytest.mark.parametrize("before", [True, False])
def test_a_head_that_cannot_be_read_is_counted_and_its_answer_is_no_others(head: bytes, before: bool) -> None:
    talk = Conversation().open()
    if before:
        talk.client(get("/1")).server(answer(b"1")).ack(0)
    talk.client(head).client(get("/3")).server(answer(b"2") + answer(b"3")).ack(0)
    found, assembler = assembled(talk.client(get("/4")).server(answer(b"4")).close())
    pairs = [(b"/1", 200, b"1"), (b"/3", 200, b"3"), (b"/4", 200, b"4")]
    assert {pair for pair in shown(found) if pair[0]} == set(pairs[not before :])
    assert assembler.account.ledger("bytes").drops == {"bad_head": len(head), "unpaired_response": len(answer(b"2"))}


def test_body_beyond_the_cap_is_counted_not_kept() -> None:
    talk = Conversation().open().client(get("/")).server(answer(b"z" * 5000)).client(get("/2")).server(answer(b"2"))
    found, _ = assembled(talk.close(), max_body_bytes=100)
    response = found[0].response
    assert response is not None
    assert (len(response.body), response.body_bytes, response.truncated_bytes) == (100, 5000, 4900)
    assert found[0].faults == (Fault.TRUNCATED,)
    assert shown(found)[1] == (b"/2", 200, b"2")


def test_a_requests_body_beyond_the_cap_and_an_answer_that_never_came_are_told() -> None:
    talk = Conversation().open().client(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n\r\n" + b"z" * 5000)
    found, assembler = assembled(talk.server(answer(b"1")).client(get("/2")).close(), max_body_bytes=100)
    request = found[0].request
    assert (len(request.body), request.body_bytes, request.truncated_bytes) == (100, 5000, 4900)
    assert [e.faults for e in found] == [(Fault.TRUNCATED,), (Fault.UNFINISHED,)]
    assert assembler.account.notes["unanswered"] == 1


def test_without_memory_whole_exchanges_are_shed_and_counted() -> None:
    talk = Conversation().open().client(get("/big")).server(answer(b"z" * 50_000))
    talk.client(get("/2")).server(answer(b"2"))
    found, assembler = assembled(talk.close(), max_total_bytes=10_000)
    assert shown(found) == [(b"/2", 200, b"2")]
    assert assembler.account.ledger("messages").drops == {"shed": 2}
    assert assembler.account.ledger("bytes").drops == {"shed": len(get("/big")) + len(answer(b"z" * 50_000))}


def test_too_many_connections_make_room() -> None:
    talks = [
        Conversation(("10.0.0.1", 1000 + n), start_ns=10**18 + n * 10**9).open().client(get(f"/{n}")) for n in range(20)
    ]
    found, assembler = assembled(*talks, max_connections=5)
    assert len(found) == 20
    assert assembler.account.notes["evicted_connections"] == 15


def test_tls_and_other_protocols_are_told_apart() -> None:
    tls = Conversation(("10.0.0.9", 1), ("10.0.0.2", 443)).open().client(b"\x16\x03\x01\0\x05hello" * 5)
    ssh = Conversation(("10.0.0.9", 2), ("10.0.0.2", 22)).open().client(b"SSH-2.0-x\r\n").server(b"SSH-2.0-y\r\n")
    h2 = Conversation(("10.0.0.9", 3)).open().client(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    found, assembler = assembled(tls.close(), ssh.close(), h2.close())
    assert found == []
    assert set(assembler.account.ledger("bytes").intentional) == {"tls", "ssh", "http2"}
    assert assembler.account.ledger("bytes").drops == {}


def test_a_negative_control_of_the_balance() -> None:
    talk = Conversation().open().client(get("/1")).server(answer(b"1"))
    assembler = Assembler("r", CaptureSettings(), None, b"key")
    for ts_ns, data in talk.packets[:-1]:
        assembler.packet(ts_ns, data, len(data))
    assert assembler.account.balanced
    assert assembler.account.ledger("bytes").in_flight == len(get("/1"))
    (connection,) = assembler._open
    connection.pairer.open.clear()  # an exchange is forgotten
    connection.unsettle()
    assert not assembler.account.balanced
    assert assembler.account.ledger("bytes").difference == len(get("/1"))
    assert assembler.account.ledger("messages").difference == 1


def test_ids_do_not_depend_on_what_was_lost() -> None:
    talk = Conversation().open()
    for number in range(3):
        talk.client(get(f"/{number}")).server(answer(b"%d" % number)).ack(0)
    talk.close()
    whole, _ = assembled(talk)
    del talk.packets[3]  # the first request
    part, _ = assembled(talk)
    assert [e.exchange_id for e in part] == [e.exchange_id for e in whole[1:]]
    assert len({e.exchange_id for e in whole}) == 3


def test_proxy_streams_give_the_same() -> None:
    assembler = Assembler("r", CaptureSettings(), None, b"key")
    channel = assembler.connection_opened("127.0.0.1:5000", "127.0.0.1:80", 1000)
    for byte in get("/1") + get("/2", method="HEAD"):
        channel.data(True, bytes([byte]), 2000)
    channel.data(False, answer(b"one") + b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", 3000)
    assert shown(assembler.take()) == [(b"/1", 200, b"one"), (b"/2", 200, b"")]
    channel.data(True, get("/3"), 4000)
    channel.data(False, b"HTTP/1.1 200 OK\r\n\r\nuntil", 5000)
    channel.data(False, b" close", 6000)
    channel.closed(False, 7000)
    channel.closed(True, 8000)
    (e,) = assembler.finish()
    assert e.response is not None
    assert (e.response.body, e.response_start_ns, e.response_end_ns, e.faults) == (b"until close", 5000, 6000, ())
    assert assembler.account.balanced


def test_answers_from_both_directions_are_all_counted() -> None:
    """Nothing forbids that both peers send answers only: each direction has an orphan of its own."""
    assembler = Assembler("r", CaptureSettings(), None, b"k" * 32)
    channel = assembler.connection_opened("10.0.0.1:1", "10.0.0.2:2", 1)
    begun = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"
    channel.data(True, begun, 2)
    channel.data(False, begun, 3)
    channel.data(True, b"cde", 4)
    channel.data(False, b"cde", 5)
    channel.closed(True, 6)
    channel.closed(False, 6)
    assembler.finish()
    assert assembler.account.balanced, assembler.account.as_json()
    assert assembler.account.ledger("messages").drops == {"unpaired_response": 2}


def laid_aside(*, lost_again: bool) -> Conversation:
    """Two requests at once; the first answer is lost; an interim one, then a third request, before the last answers."""
    talk = Conversation().open().client(get("/1") + get("/2"))
    talk.server(answer(b"lost")).server(b"HTTP/1.1 100 Continue\r\n\r\n")
    talk.packets.pop(-2)
    for _ in range(3):
        talk.now_ns += 10_000_000_000  # nobody waits for it any more
        talk.ack(0)
    talk.client(get("/3"))
    if lost_again:
        talk.server(answer(b"2"))
        talk.packets.pop()
    else:
        talk.server(answer(b"2")).ack(0)
    return talk.server(answer(b"3")).close()


@pytest.mark.parametrize("lost_again", [False, True])
@pytest.mark.parametrize("keep_unpaired", [False, True])
def test_an_interim_answer_that_is_laid_aside_waits_for_its_own(lost_again: bool, keep_unpaired: bool) -> None:
    found, assembler = assembled(laid_aside(lost_again=lost_again), max_pipelined=2, keep_unpaired=keep_unpaired)
    requests = shown([e for e in found if e.request.head])
    assert requests[:2] == [(b"/1", 0, b""), (b"/2", 0, b"")]
    assert requests[2] in ((b"/3", 0, b""), (b"/3", 200, b"3"))  # never the answer to /2
    ledger = assembler.account.ledger("messages")
    assert ledger.seen == (5 if lost_again else 6)


def test_interim_answers_before_a_loss_and_behind_it_are_all_counted() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    talk = Conversation().open().client(get("/1") + get("/2")).server(interim).server(b"no answer\r\n")
    talk.server(interim + answer(b"1")).server(answer(b"2")).ack(0)
    found, assembler = assembled(talk.close())
    assert shown(found) == [(b"/1", 200, b"1"), (b"/2", 200, b"2")]
    assert found[0].response is not None and len(found[0].response.interim) == 2
    assert assembler.account.ledger("messages").seen == 6
