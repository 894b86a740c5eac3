"""Which answer is to which request where something was lost, late or held back: a pair that is wrong is worse than none.

Each answer names its request; what the packets prove decides, and where they prove nothing there is no pair.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pcap_build import ACK, FIN, Conversation
from test_capture_pair import answer, assembled, get
from test_capture_pair_lost import read

from wire.records import Exchange, Fault


def ask(talk: Conversation, number: int) -> None:
    talk.client(get(f"/{number}"))


def reply(talk: Conversation, number: int) -> None:
    talk.server(answer(b"", extra=f"X-To: /{number}\r\n"))


def finish(talk: Conversation, by: int) -> None:
    """FIN of one side alone."""
    talk.raw(by, talk.seq[by], talk.seq[1 - by], FIN | ACK)
    talk.seq[by] += 1


def pairs(exchanges: list[Exchange]) -> list[tuple[str, str]]:
    """(request, request that the answer names), "" where there is none; in the order of the requests."""
    found = []
    for e in exchanges:
        head = e.response.head if e.response is not None else b""
        named = head.partition(b"X-To: ")[2].partition(b"\r")[0].decode()
        found.append((e.request.head.split(b" ")[1].decode() if e.request.head else "", named))
    return sorted(found)


def in_turns(count: int = 5) -> Conversation:
    talk = Conversation().open()
    for number in range(count):
        ask(talk, number)
        reply(talk, number)
        talk.ack(0)
    return talk.close()


@pytest.mark.parametrize("lost", [(), (4,), (4, 7), (7,), (5, 7)])
def test_a_recording_that_begins_inside_of_a_connection_takes_no_neighbours_answer(lost: tuple[int, ...]) -> None:
    """The first answers are not seen: what the client acknowledges next tells that there was one."""
    talk = in_turns()
    talk.packets = [packet for at, packet in enumerate(talk.packets) if at >= 3 and at not in lost]
    found, _ = assembled(talk)
    made = pairs(found)
    assert all(named in ("", asked) for asked, named in made), made
    missing = {"/0"} if 4 in lost else set()
    missing |= {"/1"} if 7 in lost else set()
    assert [asked for asked, named in made if asked and not named] == sorted(missing)


@pytest.mark.parametrize(("lost", "paired"), [(None, 5), (4, 0)])
def test_where_nothing_is_acknowledged_nothing_is_claimed(lost: int | None, paired: int) -> None:
    """As of tools that write packets of their own: without a loss the order is enough."""
    talk = in_turns()
    kept = [packet for at, packet in enumerate(talk.packets) if at >= 3 and at != lost]
    talk.packets = [(ts_ns, frame[:42] + bytes(4) + frame[46:]) for ts_ns, frame in kept]
    made = pairs(assembled(talk)[0])
    assert all(named in ("", asked) for asked, named in made if asked), made
    assert sum(bool(asked and named) for asked, named in made) == paired


@pytest.mark.parametrize("last", [1, 2, 30])
def test_the_end_of_a_head_that_is_captured_after_its_answer(last: int) -> None:
    talk = Conversation().open()
    for number in range(4):
        whole = get(f"/{number}")
        if number == 1:
            talk.client(whole[:-last]).client(whole[-last:])
            reply(talk, number)
            (early, end), (late, replied) = talk.packets[-2:]
            talk.packets[-2:] = [(early, replied), (late, end)]
        else:
            talk.client(whole)
            reply(talk, number)
        talk.ack(0)
    found, _ = assembled(talk.close())
    assert pairs(found) == [(f"/{n}", f"/{n}") for n in range(4)]
    assert [e.faults for e in found] == [(), (Fault.LATE,), (), ()]


def test_one_byte_that_never_comes_is_waited_for_no_longer_than_others() -> None:
    """The answer does not wait for good: by the next packets of the capture it is clear that nobody saw it."""
    talk = Conversation().open().client(get("/0"))
    talk.seq[0] += 1  # a byte of a next request, which was not captured
    reply(talk, 0)
    talk.ack(0)
    talk.now_ns += 10**10
    talk.raw(1, talk.seq[1], talk.seq[0], ACK)
    found, assembler = assembled(talk)
    assert pairs(found)[0] == ("/0", "/0") and assembler.account.balanced


def test_a_client_that_closes_its_half_behind_a_later_request() -> None:
    """Requests were lost, so there are more answers than requests; which the last one is to is not known: the client
    had received an answer when it closed, but before it asked for the last time."""
    talk = Conversation().open()
    ask(talk, 0)
    del talk.packets[-1]
    ask(talk, 1)
    reply(talk, 0)
    reply(talk, 1)
    talk.ack(0)
    ask(talk, 2)
    reply(talk, 2)
    talk.ack(0)
    ask(talk, 3)
    finish(talk, 0)
    reply(talk, 3)
    finish(talk, 1)
    talk.ack(0)
    made = pairs(assembled(talk)[0])
    assert all(not asked or named in ("", asked) for asked, named in made), made


@pytest.mark.parametrize("half", [False, True])
def test_the_end_of_a_clients_half_is_no_lost_request(half: bool) -> None:
    """A FIN counts as a byte that was acknowledged."""
    talk = Conversation().open()
    ask(talk, 0)
    reply(talk, 0)
    del talk.packets[-1]
    talk.ack(0)
    ask(talk, 1)
    if half:
        finish(talk, 0)
    reply(talk, 1)
    finish(talk, 1)
    talk.ack(0)
    assert pairs(assembled(talk)[0]) == [("/0", ""), ("/1", "/1")]


@pytest.mark.parametrize(
    ("framing", "body"),
    [("Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n0\r\n\r\n"), ("Content-Length: 3\r\n", b"abc")],
)
def test_a_body_that_was_refused_and_never_sent(framing: str, body: bytes) -> None:
    """As curl does with `Expect: 100-continue`: after 417 it asks again, on the same connection."""
    talk = Conversation().open()
    talk.client(get("/up", method="PUT", extra=framing + "Expect: 100-continue\r\n"))
    talk.server(answer(b"", status="417 No", extra="X-To: /up\r\n")).ack(0)
    talk.client(get("/again", method="PUT", extra=framing)).client(body)
    talk.server(answer(b"", status="201 Made", extra="X-To: /again\r\n")).ack(0)
    ask(talk, 3)
    reply(talk, 3)
    found, assembler = assembled(talk.close())
    assert pairs(found) == [("/3", "/3"), ("/again", "/again"), ("/up", "/up")]
    assert [e.request.body for e in found] == [b"", b"abc", b""]
    assert "bad_chunk" not in assembler.account.ledger("bytes").drops


@pytest.mark.parametrize(
    "end",
    [
        lambda talk: talk.reset(0),
        lambda talk: talk.reset(1),
        lambda talk: talk.close(),
        lambda talk: talk,
    ],
    ids=["client resets", "server resets", "both close", "nothing"],
)
def test_what_was_acknowledged_and_not_seen_is_missing_however_it_ends(end: Callable[[Conversation], object]) -> None:
    talk = Conversation().open()
    ask(talk, 0)
    talk.server(b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n").server(b"a" * 1000).server(b"b" * 1000)
    talk.server(b"c" * 1000)
    del talk.packets[-1]
    talk.ack(0)
    end(talk)
    [found], assembler = assembled(talk)
    assert found.response is not None and found.faults[0] is Fault.GAP
    assert (found.response.body_bytes, found.response.missing_bytes) == (2000, 1000)
    assert assembler.account.notes["gap_bytes"] == 1000


def test_a_port_that_is_used_again_and_whose_syn_was_lost() -> None:
    """The answer to it tells: nothing is missing of either connection."""
    old = Conversation().open()
    ask(old, 0)
    reply(old, 0)
    old.ack(0)
    new = Conversation(client_isn=20_000_000, server_isn=20_000_000, start_ns=old.now_ns + 1_300_000_000).open()
    del new.packets[0]
    for number in (1, 2):
        ask(new, number)
        reply(new, number)
        new.ack(0)
    found, assembler = assembled(old, new.close())
    assert pairs(found) == [(f"/{n}", f"/{n}") for n in range(3)]
    assert not any(e.faults for e in found) and "gap_bytes" not in assembler.account.notes


def behind_a_lost_head(framing: bytes, *, together: int = 0) -> list[tuple[str, str]]:
    """Of six exchanges behind an answer to a HEAD that was not seen; `together`: so many answers are in its segment."""
    talk = Conversation().open()
    talk.client(get("/head", method="HEAD"))
    del talk.packets[-1]
    for number in range(together):
        ask(talk, number)
    answers = [answer(b"", extra=f"X-To: /{number}\r\n") for number in range(6)]
    talk.server(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n" + b"".join(answers[:together])).ack(0)
    for number in range(together, 6):
        ask(talk, number)
        talk.server(answers[number]).ack(0)
    made = pairs(assembled(talk.close())[0])
    assert all(named in ("", asked) for asked, named in made if asked), made
    return [(asked, named) for asked, named in made if asked and named]


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 47\r\n", b"Content-Length: 94\r\n", b"Transfer-Encoding: chunked\r\n"]
)
def test_an_answer_to_a_head_that_was_not_seen_takes_no_answers_along(framing: bytes) -> None:
    """What it announces would be a body, and is the next answers: but the client asked again when it had its head."""
    assert behind_a_lost_head(framing) == [(f"/{n}", f"/{n}") for n in range(6)]


@pytest.mark.parametrize("count", [1, 2])
def test_where_the_client_did_not_wait_it_takes_them_and_no_more(count: int) -> None:
    framing = b"Content-Length: %d\r\n" % (count * len(answer(b"", extra="X-To: /0\r\n")))
    assert behind_a_lost_head(framing, together=count) == [(f"/{n}", f"/{n}") for n in range(count, 6)]


def test_what_the_handshake_would_acknowledge_is_not_what_a_later_packet_does() -> None:
    """The answer of the server to SYN is captured late, and behind the second request."""
    packets = in_turns(3).packets
    order = [0, 6, 1, 7, 4, 3, 9, 10, 11, 12, 13]
    made = pairs(read([packets[index] for index in order]))
    assert all(named in ("", asked) for asked, named in made if asked), made


def test_a_client_that_closes_while_an_answer_crosses_its_fin_had_not_the_last_one() -> None:
    talk = Conversation().open()
    for number in range(3):
        ask(talk, number)
    del talk.packets[-3]
    reply(talk, 0)
    reply(talk, 1)
    received = talk.seq[1]
    last = answer(b"", extra="X-To: /2\r\n")
    talk.server(last[:20])
    talk.raw(0, talk.seq[0], received, FIN | ACK)
    talk.seq[0] += 1
    talk.server(last[20:])
    finish(talk, 1)
    made = pairs(assembled(talk)[0])
    assert all(named in ("", asked) for asked, named in made if asked), made
