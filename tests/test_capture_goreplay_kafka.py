"""GoReplay's messages in Kafka: plain and JSON, in any order, with ids that are not unique."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bus.logfile import LogReader, account_of
from capture.assembler import Assembler
from capture.goreplay_kafka import Pairs, Part, Unreadable, decode, feed
from capture.settings import CaptureSettings
from livefire.cli import cli
from wire import codec
from wire.codec import RecordType
from wire.records import Exchange

GET = b"1 6dd7a13ba1 1700000000000000000 0\nGET /a?b=1 HTTP/1.1\r\nHost: shop\r\n\r\n"
GOT = b"2 6dd7a13ba1 1700000000005000000 5000000\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
AGAIN = b"3 6dd7a13ba1 1700000000009000000 5000000\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
JSON = (
    b'{"Req_URL":"/orders","Req_Type":"1","Req_ID":"f00d","Req_Ts":"1700000001000000000","Req_Method":"POST",'
    b'"Req_Body":"{\\"n\\":1}","Req_Headers":{"Host":"shop","Content-Length":"7","X-Two":"a, b"}}'
)
JSON_GOT = (
    b'{"Req_URL":"201","Req_Type":"2","Req_ID":"f00d","Req_Ts":"1700000001004000000","Req_Method":"HTTP/1.1",'
    b'"Req_Body":"made","Req_Headers":{"Content-Type":"text/plain"}}'
)
JSON_LOST = b'{"Req_URL":"","Req_Type":"2","Req_ID":"f00d","Req_Ts":"1700000001004000000","Req_Method":""}'


def exchanges(*values: bytes) -> tuple[list[Exchange], dict[str, Any]]:
    assembler = Assembler("R", CaptureSettings(), None, b"k" * 32)
    assert list(feed(values, assembler)) == list(range(1, len(values) + 1))
    found = assembler.finish()
    account = assembler.account
    assert account.balanced, account.as_json()
    ledgers: Any = account.as_json()["ledgers"]
    assert ledgers["goreplay"]["in_flight"] == 0
    return found, ledgers["goreplay"]


def test_plain_messages_are_a_header_line_and_raw_http() -> None:
    assert decode(GET) == Part(1, b"6dd7a13ba1", 1_700_000_000_000_000_000, GET.partition(b"\n")[2])
    (exchange,), ledger = exchanges(GET, GOT)
    assert exchange.request.head == b"GET /a?b=1 HTTP/1.1\r\nHost: shop\r\n\r\n"
    assert exchange.response is not None and (exchange.response.status, exchange.response.body) == (200, b"hi")
    assert exchange.response_start_ns - exchange.request_start_ns == 5_000_000 and not exchange.faults
    assert (ledger["seen"], ledger["emitted"], ledger["drops"]) == (2, 2, {})


def test_json_messages_become_http_again() -> None:
    (exchange,), _ = exchanges(JSON, JSON_GOT)
    assert exchange.request.head == (b"POST /orders HTTP/1.1\r\nHost: shop\r\nX-Two: a, b\r\nContent-Length: 7\r\n\r\n")
    assert exchange.request.body == b'{"n":1}'
    assert exchange.response is not None and (exchange.response.status, exchange.response.body) == (201, b"made")


def test_an_answer_whose_status_was_lost_is_counted_and_its_request_kept() -> None:
    (exchange,), ledger = exchanges(JSON, JSON_LOST)
    assert exchange.response is None and ledger["drops"] == {"no_status": 1}


def test_an_answer_may_come_first_and_what_has_no_other_half_is_counted() -> None:
    (exchange,), ledger = exchanges(GOT, GET, AGAIN)
    assert exchange.response is not None
    assert ledger["intentional"] == {"replayed": 1} and ledger["emitted"] == 2
    (alone,), ledger = exchanges(GET)
    assert alone.response is None and ledger["emitted"] == 1
    found, ledger = exchanges(GOT)
    assert not found and ledger["drops"] == {"unpaired_answer": 1}


def message(kind: int, name: str, at: int, what: str) -> bytes:
    if kind == 1:
        return f"1 {name} {at}\nGET /{what} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    return f"2 {name} {at}\nHTTP/1.1 200 OK\r\nContent-Length: {len(what)}\r\n\r\n{what}".encode()


@given(st.permutations(range(6)))
def test_ids_that_repeat_go_with_the_request_before(order: list[int]) -> None:
    """Three exchanges of one id, one after another: the order of arrival does not matter, unless halves are ambiguous."""
    values = []
    for number in range(3):
        values += [
            message(1, "same", 1000 * number, str(number)),
            message(2, "same", 1000 * number + 10, str(number)),
        ]
    found, _ = exchanges(*values)  # as they were sent
    assert {e.request.head.split()[1][1:]: e.response.body for e in found if e.response} == {
        str(n).encode(): str(n).encode() for n in range(3)
    }
    _, ledger = exchanges(*(values[place] for place in order))
    assert ledger["seen"] == 6 == ledger["emitted"] + sum(ledger["drops"].values())


def test_memory_is_bounded_and_the_oldest_go_alone() -> None:
    pairs = Pairs(max_bytes=1000)
    alone = []
    for number in range(10):
        alone += list(pairs.add(Part(1, str(number).encode(), number, b"x" * 100)))
    assert [part.ts_ns for part, _ in alone if part] == list(range(7)) and all(other is None for _, other in alone)
    assert len(list(pairs.rest())) == 3


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"", "first line"),
        (b"GET / HTTP/1.1\r\n\r\n", "not a number"),
        (b"1 aa 12", "first line"),
        (b"4 aa 12\nGET / HTTP/1.1\r\n\r\n", "type 4"),
        (b"1 aa when\nGET / HTTP/1.1\r\n\r\n", "not a number"),
        (b"{", "truncated"),
        (b'{"Req_Type":"1"}', "Req_ID"),
        (b'{"Req_Type":"1","Req_ID":"a","Req_Ts":"1"}', "without method"),
    ],
)
def test_what_cannot_be_read_says_why_and_is_counted(value: bytes, says: str) -> None:
    with pytest.raises(Unreadable, match=says):
        decode(value)
    found, ledger = exchanges(value, GET, GOT)
    assert len(found) == 1 and ledger["drops"] == {"unreadable": 1}


@given(st.binary() | st.binary().map(lambda tail: b"1 a 5\n" + tail) | st.binary().map(lambda tail: b"{" + tail))
def test_any_bytes_are_a_part_or_unreadable(value: bytes) -> None:
    try:
        assert decode(value).kind in (1, 2, 3)
    except Unreadable:
        pass
    exchanges(value)


def test_a_topic_is_imported_to_its_end(kafka_server: Any, tmp_path: Path) -> None:
    from kafka import KafkaProducer
    from kafka.admin import KafkaAdminClient

    topic, server = f"test-goreplay-{uuid.uuid4().hex[:8]}", kafka_server.address
    admin = KafkaAdminClient(bootstrap_servers=server)
    admin.create_topics({topic: {"num_partitions": 3, "replication_factor": 1}})
    try:
        producer = KafkaProducer(bootstrap_servers=server)
        for number in range(300):
            producer.send(topic, message(1, f"id{number}", number * 1000, str(number)), partition=number % 3)
            producer.send(topic, message(2, f"id{number}", number * 1000 + 9, str(number)), partition=number * 7 % 3)
        producer.send(topic, b"?")
        producer.send(topic, JSON)
        producer.send(topic, JSON_GOT)
        producer.close()
        to = tmp_path / "rec.lf"
        base = ["--keys", str(tmp_path / "keys.json"), "import", f"kafka://{server}/{topic}", "--to", str(to)]
        done = CliRunner().invoke(cli, [*base, "--format", "goreplay", "--unmasked", "--json"])
        assert done.exit_code == 0, done.output
        account = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
        refused = CliRunner().invoke(cli, base)
        assert refused.exit_code == 2 and "--format goreplay" in refused.output
        for at in (f"kafka://{server}", f"kafka://{server}/"):
            which = CliRunner().invoke(cli, ["import", at, "--to", str(to), "--format", "goreplay"])
            assert which.exit_code == 2 and "reads one topic" in which.output
        absent = CliRunner().invoke(
            cli, ["import", f"kafka://{server}/no-{topic}", "--to", "x", "--format", "goreplay"]
        )
        assert str(absent.exception).endswith(f"there is no topic no-{topic}")
    finally:
        admin.delete_topics([topic])
        admin.close()
    assert account["balanced"] and account_of(to).as_json() == account
    assert account["ledgers"]["goreplay"]["drops"] == {"unreadable": 1}
    found: list[Exchange] = []
    with LogReader(to) as reader:
        while messages := reader.read():
            for each in messages:
                batch = codec.decode(each.data)
                found += batch.records if batch.header.type == RecordType.EXCHANGE else ()
        assert reader.ended
    assert len(found) == 301
    for exchange in found:
        assert exchange.response is not None
        what = exchange.request.head.split()[1][1:]
        assert exchange.response.body == what or (what, exchange.response.body) == (b"orders", b"made")
