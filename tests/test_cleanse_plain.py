"""The short way (`cleanse.plain`) gives what rules, stamp and table give in turn, to the byte, or leaves it to them."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
import pytest
import synthetic_trace
from capture_corpus import corpus
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cleanse_app import DROPS, SETTINGS, exchange

from bus.ports import Message
from capture.assembler import Assembler
from capture.settings import CaptureSettings
from capture.show import in_order
from capture.source_pcap import PcapSource
from cleanse import plain, rules, stamp, stream
from cleanse.learned import Learned
from cleanse.rules import RULES, Rules
from cleanse.settings import CleanseSettings
from cleanse.stream import StreamPipeline
from livefire_shadow.marker import HEADER
from mask.masker import Masker
from wire import codec, topics
from wire.account import Account
from wire.codec import RecordType
from wire.records import Exchange, Fault, Flows, Mode, Request, Response, Route, RouteTable, Stamped
from wire.routes import RouteMatcher

TABLE = RouteTable(
    "r",
    (
        Route("GET /things/{id}", "GET", ("things", "{id}")),
        Route("things", "GET", ("things",)),
        Route("GET /things/new", "GET", ("things", "new")),
        Route("GET /{a}/b", "GET", ("{a}", "b")),
        Route("POST /", "POST", ()),
    ),
)
LEARNED = Learned(TABLE, Flows("r", ()))


@contextmanager
def long_way() -> Iterator[None]:
    """Nothing of the short way: every rule is asked, heads are taken apart field by field, tables are walked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "plain_row", lambda *_: None)
        patch.setattr(rules, "sound", lambda _: False)
        patch.setattr(stamp, "framed_head", lambda *_: None)
        patch.setattr(RouteMatcher, "of_path", RouteMatcher._name)
        yield


def apply(exchanges: Sequence[Exchange], wanted: CleanseSettings, width: int, **span: int) -> list[stream.Output]:
    pipeline = StreamPipeline(wanted, LEARNED, width, **span)
    return pipeline.apply(Message(topics.RAW, "a.1", 7, 8, codec.encode(exchanges, RecordType.EXCHANGE)))


def same(exchanges: Sequence[Exchange], wanted: CleanseSettings, width: int = 3, **span: int) -> int:
    """How many stayed, of a batch that gives the same bytes both ways; twice, as what was seen is remembered."""
    short = apply(exchanges, wanted, width, **span)
    assert apply(exchanges, wanted, width, **span) == short
    with long_way():
        assert apply(exchanges, wanted, width, **span) == short
    headers = [codec.decode_header(output.data) for output in short]
    return sum(header.count for header in headers if header.type is RecordType.STAMPED)


# ---------------------------------------------------------------------------- whatever comes

NAMES = st.sampled_from(
    [b"Host", b"Connection", b"connection", b"Content-Length", b"content-LENGTH", b"Transfer-Encoding", b"TE", b"Close",
     b"X-Hop", b"Accept", b"Cookie", HEADER.encode(), HEADER.upper().encode(), b"X-" + HEADER.encode(), b""]
)  # fmt: skip
VALUES = st.sampled_from(
    [b"a", b"close", b"keep-alive, X-Hop", b"keep-alive", b"3", b"5", b"05", b"-1", b" 3", b"", b"chunked", b"x\r",
     b"a\n b", b"a\0b", b"\xff\x85", b"a: b", b"host", b"a\n" + HEADER.encode() + b": v1", b"\x0b", b"1" * 20]
)  # fmt: skip
METHODS = st.sampled_from([b"GET"] * 3 + [b"POST", b"CONNECT", b"get", b"BREW", b"", b"HEAD", b"G\xc9T"])
TARGETS = st.sampled_from(
    [b"/things/17", b"/things/new", b"/things?x=/y#z", b"/things#a?b", b"/", b"/x/b", b"*", b"http://a/things/1", b"",
     b"/a b", b"/a\tb", b"/a\0b", b"/a\x0cb", b"/a\x85b", b"/th%69ngs/1", b"/things/\xff", b"//b", b"/b?\0", b"/logo.png"]
)  # fmt: skip
VERSIONS = st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/2", b"HTTP/1.12", b"", b"http/1.1", b"HTTP/1.1 "])
ENDS = st.sampled_from([b"\r\n"] * 9 + [b"\n", b"\r\n\r\n", b""])
LINES = st.builds(lambda *parts: b"".join(parts), NAMES, st.sampled_from([b": "] * 9 + [b":", b" : "]), VALUES, ENDS)
HEADS = st.builds(
    lambda line, end, fields, last: b" ".join(line) + end + b"".join(fields) + last,
    st.tuples(METHODS, TARGETS, VERSIONS),
    ENDS,
    st.lists(LINES, max_size=5),
    st.sampled_from([b"\r\n"] * 6 + [b"", b"\n"]),
)
FEW = st.sampled_from([0] * 9 + [1])
TIMES = st.sampled_from([1000] * 4 + [0, -5, 7, 2000])
RESPONSES = st.builds(
    Response, st.sampled_from([200, 101, 404, 503]), st.just(b"HTTP/1.1 200 OK\r\n\r\n"),
    st.sampled_from([b"", b"{}", b"x" * 40]), st.integers(0, 9), missing_bytes=FEW,
    truncated_bytes=st.sampled_from([0] * 9 + [1, -1]),
)  # fmt: skip
EXCHANGES = st.builds(
    Exchange, st.binary(min_size=2, max_size=2), st.sampled_from([b"s1", b"s2", b"s3", b""]), st.just(b"c"),
    st.just("10.0.0.1:5"), st.sampled_from(["10.1.0.1:8080"] * 3 + ["10.9.9.9:80"]),
    st.builds(
        Request, HEADS, st.sampled_from([b"", b"hello"]), st.integers(0, 9), missing_bytes=FEW, truncated_bytes=FEW,
        trailers=st.sampled_from([b"", b"A: b\r\n"]),
    ),
    st.one_of(RESPONSES, RESPONSES, RESPONSES, st.none()), TIMES, TIMES, TIMES, TIMES,
    mode=st.sampled_from([Mode.STRICT] * 5 + list(Mode)),
    faults=st.sampled_from([()] * 9 + [(fault,) for fault in Fault]),
)  # fmt: skip


@settings(max_examples=250, deadline=None)
@given(
    exchanges=st.lists(EXCHANGES, min_size=1, max_size=5),
    wanted=st.sampled_from([CleanseSettings(), SETTINGS, CleanseSettings(max_baseline_bytes=3)]),
    width=st.integers(1, 3),
    span=st.sampled_from([{}, {}, {"from_ns": 900}, {"until_ns": 900}, {"from_ns": 1, "until_ns": 1500}]),
)
def test_whatever_comes(exchanges: list[Exchange], wanted: CleanseSettings, width: int, span: dict[str, int]) -> None:
    same(exchanges, wanted, width, **span)
    asked = Rules(wanted)
    for one in exchanges:
        assert asked.reason(one) == asked.of_all(one)
        if plain.sound(one):
            assert Rules(CleanseSettings()).of_all(one) is None


# ---------------------------------------------------------------------------- what users send


@pytest.mark.parametrize("wanted", [CleanseSettings(), SETTINGS], ids=["default", "asked"])
def test_traffic_with_all_that_is_left_out(wanted: CleanseSettings) -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    exchanges = synthetic_trace.make(seed).exchanges
    exchanges = [*exchanges, *map(Masker(b"k" * 32).exchange, exchanges)]
    exchanges += [exchange(900 + n, **changes) for n, (_, _, changes) in enumerate(DROPS)]
    assert same(exchanges, wanted, until_ns=synthetic_trace.START_NS + 10**11) >= (0 if wanted.server else 100)


def test_captures_of_the_corpus() -> None:
    folder, kept = corpus("pcap"), 0
    for expect in sorted(folder.glob("*.expect.json"))[3::16]:
        name = msgspec.json.decode(expect.read_bytes())["file"]
        assembler = Assembler("0" * 32, CaptureSettings(keep_unpaired=True), None, b"corpus")
        for frame in PcapSource(folder / name).frames():
            if frame is not None:
                assembler.packet(*frame)
        exchanges = in_order(assembler.finish())
        for at in range(0, len(exchanges), 200):
            kept += same(exchanges[at : at + 200], CleanseSettings())
    assert kept > 20


def test_heads_that_parsers_are_tried_with() -> None:
    kept = 0
    for path in sorted(corpus("http1").glob("*.raw")):
        data = path.read_bytes()
        for cut in {len(data), data.find(b"\r\n\r\n") + 4, data.find(b"\n\n") + 2}:
            kept += same([exchange(1, request=Request(data[:cut], data[cut:]))], CleanseSettings())
    assert kept > 20


# ---------------------------------------------------------------------------- that it is a short way, and can fail

PLAIN = Request(b"POST /a?b HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 9\r\nX: y\r\n\r\n", b"hello")


def test_what_is_common_goes_the_short_way() -> None:
    usual = [
        exchange(1), exchange(2, request=PLAIN), exchange(3, request=msgspec.structs.replace(PLAIN, body=b"")),
        exchange(4, session_id=b"", mode=Mode.LENIENT),
        exchange(5, request=Request(b"PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nA: b\r\n\r\n", b"x")),
    ]  # fmt: skip
    for one in usual:
        row = plain.row(one, lambda method, path: f"{method!r} {path!r}", 100)
        assert row is not None
        assert len(row) == len(Stamped.__struct_fields__)
        assert plain.sound(one)
    assert plain.row(usual[1], lambda method, path: f"{method!r} {path!r}", 100)[2] == "b'POST' b'/a'"  # type: ignore


@pytest.mark.parametrize("changes", [c for reason, _, c in DROPS if reason in {
    "stress", "ambiguous", "opaque", "gap", "unfinished", "truncated", "unreplayable", "no_time"}])  # fmt: skip
def test_what_a_rule_leaves_out_never_goes_the_short_way(changes: dict[str, object]) -> None:
    one = exchange(1, **changes)
    assert plain.row(one, lambda *_: "", 100) is None and not plain.sound(one)


def test_every_rule_is_either_answered_for_or_asked() -> None:
    asked = [make for make, _ in RULES if make not in rules.ALWAYS]
    assert len(rules.ALWAYS) == 7 and len(asked) == 3


@pytest.mark.parametrize("head", [
    b"POST / HTTP/1.1\r\nHost: a\r\n" + HEADER.encode() + b": v1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
])  # fmt: skip
def test_a_short_way_that_looks_away_is_found_out(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = [exchange(1, request=Request(head, b"hello"))]
    assert same(batch, CleanseSettings()) == 0
    real = plain._blocks.read

    def careless(block: bytes) -> plain.Block | None:
        found = real(block)
        return (*found[:3], True) if found is not None else (b"", b"", None, True)

    plain._known.clear()
    monkeypatch.setattr(plain._blocks, "read", careless)
    with pytest.raises(AssertionError):
        same(batch, CleanseSettings())
    plain._known.clear()


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "_MAX_BLOCKS_BYTES", 10_000)
    monkeypatch.setattr(plain, "_MAX_KINDS", 50)
    blocks = plain._Blocks()
    for n in range(1000):
        block = b"\r\nHost: a\r\nX-Id: %d\r\n\r\n" % n
        assert blocks.read(block) == (block[:-4] + b"\r\nContent-Length: ", b"\r\n\r\n", block, True)
        assert 3 * sum(map(len, blocks.known)) <= 10_000
    assert len(blocks.known) > 5
    long = b"\r\nHost: a\r\nX-Id: %b\r\n\r\n" % (b"x" * 5000)
    assert blocks.read(long) is not None and long not in blocks.known


@pytest.mark.parametrize("length", [1, 100, 3000])
def test_what_is_remembered_takes_no_more_memory_than_it_may(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cookie a session: each block is another one. Small ones cost many times what they are long."""
    monkeypatch.setattr(plain, "_MAX_BLOCKS_BYTES", 1_000_000)
    monkeypatch.setattr(plain, "_MAX_KINDS", 10)

    def most() -> int:
        blocks, held = plain._Blocks(), 0
        tracemalloc.start()
        try:
            for n in range(30_000_000 // (3 * length + 3000)):
                blocks.read(b"\r\nCookie: %d%b\r\n\r\n" % (n, b"x" * length))
                held = max(held, tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        return held

    assert 300_000 < most() <= 1_200_000
    if length == 1:
        monkeypatch.setattr(plain, "_BLOCK_COSTS", 0)  # the check sees a bound that only counts what is read
        assert most() > 2_000_000


def test_the_account_is_that_of_the_long_way() -> None:
    outputs = apply([exchange(n) for n in range(5)] + [exchange(9, faults=(Fault.GAP,))], CleanseSettings(), 2)
    account = Account.total(codec.decode_header(output.data).increment for output in outputs)
    ledger = account.ledgers["messages"]
    assert (ledger.seen, ledger.emitted, ledger.in_flight, ledger.drops) == (6, 5, 0, {"gap": 1})
