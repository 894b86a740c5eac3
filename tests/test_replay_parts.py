"""Render, identities, accounts, compare, caps, pipes, summary: each by itself, without a process."""

import os
import random
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import even, exchange, make_clean

from replay import accounts, pipes, render
from replay.caps import RateCap
from replay.compare import compare
from replay.identity import Identities
from replay.recording import Recording, refuse_unsafe
from replay.schedule import Item
from replay.settings import ReplaySettings, check
from replay.summary import percentiles
from wire import head as heads
from wire.config import ConfigError
from wire.records import Flow, Place, PlaceKind, Stamped, Verdict

JSON = (("Content-Type", "application/json"),)


def rendered(stamped: Stamped, **more: bool) -> tuple[heads.RequestHead, dict[bytes, bytes], bytes]:
    made = render.template(stamped, stamped.request.head, stamped.request.body, b"staging:8080", **more)
    wire = render.shot_fields(made, 2, 1, render.Traces(random.Random()).next()) + made.last
    head, _, body = wire.partition(b"\r\n\r\n")
    parts = heads.request_head(head + b"\r\n\r\n")
    names = [name.lower() for name, _ in parts.fields]
    assert len(names) == len(set(names)), names
    return parts, {name.lower(): value for name, value in parts.fields}, body


def test_a_head_is_rebuilt() -> None:
    stamped = exchange(
        1, 0, method="POST", target="http://recorded.example/a?b=1", body=b"xyz",
        fields=[
            ("Connection", "close, X-Hop"), ("X-Hop", "1"), ("Keep-Alive", "5"), ("TE", "trailers"), ("Trailer", "T"),
            ("Transfer-Encoding", "chunked"), ("Upgrade", "h2c"), ("Expect", "100-continue"), ("Content-Length", "99"),
            ("traceparent", "00-" + "1" * 32 + "-" + "2" * 16 + "-01"), ("tracestate", "a=b"), ("X-Kept", "yes"),
            ("Livefire-Marker", "v1;old"), ("Livefire-Shot", "old"),
        ],
    )  # fmt: skip
    parts, fields, body = rendered(stamped)
    assert (parts.method, parts.target, parts.version) == (b"POST", b"/a?b=1", b"HTTP/1.1")
    assert body == b"xyz"
    trace = fields.pop(b"traceparent").split(b"-")
    assert (trace[0], len(trace[1]), len(trace[2]), trace[3]) == (b"00", 32, 16, b"00")
    assert trace[1] != b"1" * 32
    assert fields == {
        b"host": b"staging:8080", b"content-length": b"3", b"connection": b"keep-alive", b"x-kept": b"yes",
        b"livefire-shot": stamped.exchange_id.hex().encode() + b".2.1",
    }  # fmt: skip


def test_host_as_recorded_and_empty_bodies() -> None:
    assert rendered(exchange(1, 0), keep_host=True)[1][b"host"] == b"recorded.example"
    assert b"content-length" not in rendered(exchange(1, 0))[1]
    assert rendered(exchange(1, 0, method="POST"))[1][b"content-length"] == b"0"


@pytest.mark.parametrize(
    ("status", "size", "verdict"),
    [
        (200, 1000, Verdict.SAME), (200, 1100, Verdict.SAME), (200, 1101, Verdict.LENGTH), (200, 0, Verdict.LENGTH),
        (500, 1000, Verdict.STATUS), (0, 0, Verdict.NONE),
    ],
)  # fmt: skip
def test_compare(status: int, size: int, verdict: Verdict) -> None:
    assert compare(exchange(1, 0, answer_bytes=1000).baseline, status, size) == verdict
    assert compare(exchange(1, 0, status=0).baseline, status, size) == Verdict.NONE


# ---------------------------------------------------------------------------- identities

TOKEN = Flow(
    "POST /login", Place(PlaceKind.JSON, "$.token"), "GET /me", Place(PlaceKind.HEADER, "authorization", "Bearer ")
)
ORDERS = Flow("GET /orders", Place(PlaceKind.JSON, "$.orders[*].id"), "GET /orders/{id}", Place(PlaceKind.PATH, "1"))


def login(number: int = 1) -> Item:
    return Item(exchange(number, 0, method="POST", target="/login", answer=b'{"token":"recorded"}', answer_fields=JSON))


def me(token: str = "recorded") -> Item:
    return Item(exchange(2, 1, target="/me", fields=[("Authorization", f"Bearer {token}")]))


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


def sent(identities: Identities, who: tuple[bytes, int, int], item: Item) -> bytes:
    request = item.stamped.request
    changed = identities.substitute(who, item, request.head, request.body)
    return (changed or (request.head, request.body))[0]


def test_a_live_value_stands_for_the_recorded_one_in_its_own_copy_only() -> None:
    identities = Identities([TOKEN])
    one, two = (b"s", 0, 0), (b"s", 1, 0)
    for who, serial in ((one, 7), (two, 8)):
        assert identities.produce(who, login(), serial)
        assert identities.need(who, me(), 99) == (serial, False)
    identities.answered(one, login(), 7, ANSWER, b'{"token":"live-1"}')
    assert identities.need(one, me(), 99) == (0, False)
    assert identities.need(two, me(), 99) == (8, False)
    assert b"Bearer live-1" in sent(identities, one, me())
    identities.answered(two, login(), 8, ANSWER, b'{"token":"live-2"}')
    assert b"Bearer live-2" in sent(identities, two, me())
    assert b"Bearer other" in sent(identities, one, me("other")), "what nobody handed out stays"
    assert identities.need((b"t", 0, 0), me(), 99) == (0, False)


@pytest.mark.parametrize("nothing", ["", ".", ".."])
def test_nothing_is_no_value(nothing: str) -> None:
    """`DELETE /orders/{id}` must not become `DELETE /orders/`."""
    flow = Flow("POST /orders", Place(PlaceKind.JSON, "$.id"), "DELETE /orders/{id}", Place(PlaceKind.PATH, "1"))
    identities, who = Identities([flow]), (b"s", 0, 0)
    made = Item(exchange(1, 0, method="POST", target="/orders", answer=b'{"id":"o-17"}', answer_fields=JSON))
    gone = Item(exchange(2, 1, method="DELETE", target="/orders/o-17", route="DELETE /orders/{id}"))
    identities.produce(who, made, 1)
    identities.answered(who, made, 1, ANSWER, b'{"id":"%s"}' % nothing.encode())
    assert identities.need(who, gone, 2).failed
    assert sent(identities, who, gone).startswith(b"DELETE /orders/o-17 ")


def test_a_producer_that_fails_fails_its_consumers_until_another_produces() -> None:
    identities = Identities([TOKEN])
    who = (b"s", 0, 0)
    identities.produce(who, login(), 1)
    identities.answered(who, login(), 1, b"HTTP/1.1 500 X\r\n\r\n", b"")
    assert identities.need(who, me(), 3).failed
    identities.produce(who, login(5), 2)
    assert identities.need(who, me(), 3) == (2, False)
    identities.failed(who, login(5), 2)
    assert identities.need(who, me(), 3).failed


def test_nobody_waits_for_what_itself_or_a_later_one_hands_out() -> None:
    """A rolling cookie: each answer hands out what its request sent."""
    flow = Flow("GET /page", Place(PlaceKind.COOKIE, "sid"), "GET /page", Place(PlaceKind.COOKIE, "sid"))
    identities, who = Identities([flow]), (b"s", 0, 0)
    fields = [("Set-Cookie", "sid=recorded; Path=/")]
    page = [
        Item(
            exchange(n, n, target="/page", route="GET /page", fields=[("Cookie", "sid=recorded")], answer_fields=fields)
        )
        for n in range(3)
    ]
    for serial in (1, 2, 3):
        identities.produce(who, page[serial - 1], serial)
    assert identities.need(who, page[0], 1) == (0, False)
    assert identities.need(who, page[1], 2) == (1, False)  # the control: what an earlier one hands out is waited for


def test_lists_go_by_position_and_what_was_there_before_stays() -> None:
    identities = Identities([ORDERS])
    source = Item(
        exchange(1, 0, target="/orders", answer=b'{"orders":[{"id":"a"},{"id":"b"},{"id":"c"}]}', answer_fields=JSON)
    )
    who = (b"s", 0, 0)
    identities.produce(who, source, 1)
    identities.answered(who, source, 1, ANSWER, b'{"orders":[{"id":"x"},{"id":"c"}]}')

    def target(order: str) -> bytes:
        item = Item(exchange(2, 1, target=f"/orders/{order}", route="GET /orders/{id}"))
        return heads.target_of(sent(identities, who, item))

    assert [target(order) for order in "abcd"] == [b"/orders/x", b"/orders/c", b"/orders/c", b"/orders/d"]


def test_tables_are_bounded() -> None:
    identities = Identities([TOKEN], max_tables=10)
    for number in range(50):
        identities.produce((bytes([number]), 0, 0), login(), number + 1)
    assert identities.forgotten == 40
    assert len(identities._tables) == 10


# ---------------------------------------------------------------------------- accounts


def test_logins_get_seeded_accounts(tmp_path: Path) -> None:
    path = tmp_path / "accounts.csv"
    path.write_text("user,password\n" + "".join(f"load-{n},secret-{n}\n" for n in range(50)))
    table = accounts.load(path)
    body = b'{"user":"ann","password":"****","keep":1}'
    one = exchange(1, 0, method="POST", target="/login", fields=JSON, body=body)
    made = [table.substitute(one, copy, one.request.head, body) for copy in range(20)]
    assert all(made)
    assert len({body for _, body in made if body}) > 8  # type: ignore[misc]
    number = made[0][1].split(b"load-")[1].split(b'"')[0]  # type: ignore[index]
    assert made[0][1] == b'{"user":"load-%b","password":"secret-%b","keep":1}' % (number, number)  # type: ignore[index]
    form = exchange(
        1, 0, method="POST", fields=[("Content-Type", "application/x-www-form-urlencoded")], body=b"user=ann&password=x"
    )
    assert b"user=load-" in table.substitute(form, 0, form.request.head, form.request.body)[1]  # type: ignore[index]
    for other in (
        exchange(1, 0, method="POST", fields=JSON, body=body, status=401),
        exchange(1, 0, method="POST", fields=JSON, body=body, status=0),
        exchange(1, 0, method="POST", fields=JSON, body=b'{"user":"ann"}'),
    ):
        assert table.substitute(other, 0, other.request.head, other.request.body) is None


def test_the_first_two_columns_decide_and_further_ones_are_replaced_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "accounts.csv"
    path.write_text("user,password,tenant,device\n" + "".join(f"u{n},s{n},t{n},d{n}\n" for n in range(20)))
    table = accounts.load(path)

    def sent(body: bytes, kind: str = "application/json") -> bytes | None:
        one = exchange(1, 0, method="POST", fields=[("Content-Type", kind)], body=body)
        changed = table.substitute(one, 3, one.request.head, body)
        return changed and changed[1]

    number = table.row_of("ann", 3)[0][1:].encode()
    assert sent(b'{"user":"ann","tenant":"old","password":"*","keep":1}') == (
        b'{"user":"u%b","tenant":"t%b","password":"s%b","keep":1}' % (number, number, number)
    ), "what the body has of a row is of one row; what it has not is not put in"
    assert sent(b'{"user":"ann","password":"*"}') == b'{"user":"u%b","password":"s%b"}' % (number, number)
    form = sent(b"user=ann&device=old&password=x&tenant=old", "application/x-www-form-urlencoded")
    assert form == b"user=u%b&device=d%b&password=s%b&tenant=t%b" % (number, number, number, number)
    for other in (
        b'{"user":"ann","tenant":"old"}',
        b'{"tenant":"old","device":"old"}',
        b'{"password":"*","tenant":"old"}',
    ):
        assert sent(other) is None, "without the first two it is no login, whatever else it has"


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "no accounts"), ("a,b\n", "no accounts"), ("a,a\n1,2\n", "each once"), ("a,b\n1\n", ":2: 1 values")],
)
def test_bad_accounts_are_one_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ConfigError, match=says):
        accounts.load(tmp_path / "a.csv")


# ---------------------------------------------------------------------------- caps, pipes, summary


@given(st.sampled_from([0.5, 1.0, 7.0, 10.0, 95.0, 100.0, 1000.0]), st.lists(st.integers(0, 10**8), max_size=400))
def test_no_second_holds_more_than_the_cap(rate: float, distances: list[int]) -> None:
    cap = RateCap(rate)
    now, admitted = 0, []
    for distance in distances:
        now += distance
        if cap.admit(now):
            admitted.append(now)
    for first in range(len(admitted)):
        held = sum(1 for at in admitted[first:] if at - admitted[first] < 10**9)
        assert held <= rate + cap.events
    assert not distances or admitted


def test_a_cap_admits_its_rate_and_zero_admits_nothing() -> None:
    cap = RateCap(100.0)
    assert sum(cap.admit(at * 1_000_000) for at in range(10_000)) == 1000
    assert not RateCap(0).admit(10**18)


@given(st.lists(st.tuples(st.integers(1, 14), st.binary(max_size=50)), max_size=10), st.integers(1, 20))
def test_frames_survive_any_cutting(frames: list[tuple[int, bytes]], size: int) -> None:
    data = b"".join(pipes.frame(pipes.FrameType.RESULTS, payload) for _, payload in frames)
    reader = pipes.FrameReader()
    got = [payload for at in range(0, len(data), size) for _, payload in reader.feed(data[at : at + size])]
    assert got == [payload for _, payload in frames]


def test_what_was_not_begun_can_be_withdrawn_and_the_rest_stays_whole() -> None:
    read, write = os.pipe()
    writer = pipes.PipeWriter(write)
    big = pipes.frame(pipes.FrameType.SHOTS, b"x" * (3 << 20))
    writer.put(big, (1, 2))
    writer.put(pipes.frame(pipes.FrameType.SHOTS, b"y"), (3,))
    writer.put(pipes.frame(pipes.FrameType.LEASE, b"z"))
    assert writer.withdraw() == [3]
    reader = pipes.PipeReader(read)
    frames: list[tuple[int, bytes]] = []
    for _ in range(1000):
        done = writer.flush()
        frames += reader.read()
        if done and len(frames) == 2:
            break
    os.close(read), os.close(write)
    assert [kind for kind, _ in frames] == [pipes.FrameType.SHOTS, pipes.FrameType.LEASE]
    assert len(frames[0][1]) == 3 << 20


def test_percentiles_are_exact_and_hidden_where_they_would_be_noise() -> None:
    shown = percentiles(array("q", (n * 1_000_000 for n in range(1, 101))))
    assert shown == {"p50": 50.0, "p90": 90.0, "p95": None, "p99": None, "p999": None, "max": 100.0}
    assert percentiles(array("q"))["max"] is None


def test_recordings_that_cannot_be_replayed_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no exchange"):
        Recording(make_clean(tmp_path / "a.lf", [])).survey()
    backwards = list(reversed(even(3, 10.0)))
    with pytest.raises(ConfigError, match="out of time order"):
        Recording(make_clean(tmp_path / "b.lf", backwards)).survey()
    mixed = [exchange(n, n, method=method) for n, method in enumerate(("GET", "POST", "DELETE", "POST"))]
    survey = Recording(make_clean(tmp_path / "c.lf", mixed)).survey()
    with pytest.raises(ConfigError, match=r"3 of 4 requests may change state \(1 DELETE, 2 POST\)"):
        refuse_unsafe(survey, "c.lf")


@pytest.mark.parametrize(
    "wrong",
    [{"speed": 0}, {"copies": -1.0}, {"workers": 0}, {"spread_ns": -1}, {"max_open": 0}, {"max_open": 3, "workers": 4}],
)
def test_settings_that_make_no_run(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        check(
            ReplaySettings(
                recording=Path("r"), target="http://t", runs=Path("runs"), key_id="k", key_hex="00" * 32, **wrong
            )  # type: ignore[arg-type]
        )
