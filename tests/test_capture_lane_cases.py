"""What random traffic hardly ever does: the fast paths give what the general path gives, and all of it is counted."""

from __future__ import annotations

import json

import pytest
from pcap_build import ACK, PSH, RST, SYN, Conversation, Packet

from capture.assembler import Assembler
from capture.settings import CaptureSettings
from mask.masker import Masker
from wire.records import Exchange, Fault

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"
LATER_NS = 6_000_000_000


def sized(head: bytes, body: bytes) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def both(packets: list[Packet], *, masked: bool = False) -> list[Exchange]:
    """The exchanges; both ways give the same ones and the same account, and it balances."""
    found = []
    for general in (False, True):
        masker = Masker(b"k" * 32) if masked else None
        assembler = Assembler("r", CaptureSettings(keep_unpaired=True), masker, b"k", general=general)
        for ts_ns, frame in packets:
            assembler.packet(ts_ns, frame, len(frame))
        exchanges = [*assembler.take(), *assembler.finish()]
        assert assembler.account.balanced, (general, assembler.account.as_json())
        found.append((exchanges, assembler.account.as_json()))
    assert found[0] == found[1]
    return found[0][0]


def known() -> Conversation:
    """A connection that is in step: one exchange is over."""
    talk = Conversation().open()
    return talk.client(GET % 0).server(OK).ack(0)


def test_an_answer_to_a_part_of_its_request_is_late() -> None:
    talk = known()
    for number, behind in ((1, 0), (2, 5)):
        talk.client(GET % number)
        talk.raw(1, talk.seq[1], talk.seq[0] - behind, PSH | ACK, OK)
        talk.seq[1] += len(OK)
    assert [e.faults for e in both(talk.close().packets)] == [(), (), (Fault.LATE,)]


def test_an_answer_that_begins_before_its_request_is_over() -> None:
    talk = known()
    talk.client(b"PUT /1 HTTP/1.1\r\nContent-Length: 200\r\n\r\n")
    talk.server(b"HTTP/1.1 413 No\r\nContent-Length: 10\r\n\r\n12345")
    talk.client(GET % 2)  # the body is given up
    talk.server(b"67890").server(OK).ack(0)
    statuses = [(e.request.head.split(b" ")[1], e.response and e.response.status) for e in both(talk.close().packets)]
    assert statuses == [(b"/0", 200), (b"/1", 413), (b"/2", 200)]


def test_the_rest_of_an_early_answer_that_looks_like_an_answer() -> None:
    talk = known()
    talk.client(b"PUT /1 HTTP/1.1\r\nContent-Length: 5\r\n\r\n")
    talk.server(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n12345" % (5 + len(OK)))
    talk.client(b"abcde").server(OK)
    talk.client(GET % 2).server(OK).ack(0)
    bodies = [e.response.body for e in both(talk.close().packets) if e.response]
    assert bodies == [b"ok", b"12345" + OK, b"ok"]


@pytest.mark.parametrize("isn", [1000, 0xFFFFFF00, 0xFFFFFFD0, 0xFFFFFFFF])
def test_an_acknowledgement_of_zero_says_nothing_also_at_the_wrap(isn: int) -> None:
    talk = Conversation(client_isn=isn).open()
    for number in range(12):
        talk.client(GET % number)
        talk.raw(1, talk.seq[1], 0, PSH | ACK, OK)
        talk.seq[1] += len(OK)
    assert [e.faults for e in both(talk.packets)] == [()] * 12


def refused() -> Conversation:
    talk = Conversation()
    talk.raw(0, 1000, 0, SYN)
    talk.raw(1, 0, 1001, RST | ACK)
    return talk


def again_when_over() -> Conversation:
    talk = Conversation().open().client(GET % 0).server(OK).close()
    talk.raw(0, 1000, 0, SYN)
    return talk


def again_with_data() -> Conversation:
    talk = refused()
    talk.raw(0, 1000, 0, SYN, GET % 0)
    return talk


def again_refused() -> Conversation:
    talk = refused()
    talk.raw(0, 1000, 0, SYN)
    return talk


@pytest.mark.parametrize(
    ("make", "count"), [(again_refused, 0), (again_when_over, 1), (again_with_data, 0)], ids=lambda one: str(one)[:30]
)
def test_a_handshake_that_is_seen_again_when_its_connection_is_over(make: object, count: int) -> None:
    talk = make()  # type: ignore[operator]
    other = Conversation(("10.0.0.9", 1), start_ns=talk.now_ns + LATER_NS).open()
    assert len(both(talk.packets + other.packets)) == count


def test_what_makes_room_is_not_what_is_being_read() -> None:
    """Both directions ask: a request whose body comes, and more of them than may be open."""
    talk = Conversation().open()
    talk.server(b"POST /a HTTP/1.1\r\nContent-Length: 50\r\n\r\n").ack(0)
    talk.client(b"GET /b HTTP/1.1\r\n\r\n" * 1024).ack(1)
    talk.server(b"x" * 50)
    assert len(both(talk.packets)) > 1


def test_json_in_a_string_is_masked_by_its_depth_and_not_as_it_was_elsewhere() -> None:
    inner = '{"name":"anna","n":1}'
    deep = inner
    for _ in range(4):
        deep = json.dumps({"v": deep})
    flat = json.dumps({"v": inner}).encode()
    head = b"Content-Type: application/json\r\n"
    talk = Conversation().open()
    talk.client(sized(b"POST /a HTTP/1.1\r\n" + head, deep.encode()))
    talk.server(sized(b"HTTP/1.1 200 OK\r\n" + head, flat)).ack(0)
    (exchange,) = both(talk.close().packets, masked=True)
    assert exchange.response is not None and exchange.response.body == flat


def test_parts_are_told_by_the_boundary_that_came_with_them() -> None:
    body = (
        b'--X\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
        b'--Y\r\nContent-Disposition: form-data; name="password"\r\n\r\nsupersecret1\r\n--Y--\r\n\r\n--X--\r\n'
    )
    media = b"Content-Type: multipart/form-data; boundary="
    talk = Conversation().open()
    talk.client(sized(b"POST /a HTTP/1.1\r\n" + media + b"X\r\n", body))
    talk.server(sized(b"HTTP/1.1 200 OK\r\n" + media + b"Y\r\n", body)).ack(0)
    (exchange,) = both(talk.close().packets, masked=True)
    assert exchange.response is not None
    assert b"supersecret1" in exchange.request.body and b"supersecret1" not in exchange.response.body
