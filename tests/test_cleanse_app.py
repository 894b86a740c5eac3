"""From a raw file to a clean one: what stays, in which order, and an account that balances."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import msgspec
import pytest
import synthetic_trace
from synthetic_trace import MS, START_NS

from bus.logfile import LogReader, LogWriter, account_of
from bus.order import Sorter
from bus.ports import BusError
from cleanse.app import cleanse, summary_lines
from cleanse.settings import CleanseSettings, Drop
from wire import codec, head
from wire.codec import RecordType
from wire.config import ConfigError, load
from wire.records import Exchange, Fault, Framing, Manifest, Mode, Request, Response, Stamped

SERVER = "10.1.0.1:8080"


def exchange(number: int, **changes: object) -> Exchange:
    start = START_NS + number * MS
    base = Exchange(
        number.to_bytes(16, "big"), (number % 5 + 1).to_bytes(16, "big"), b"c" * 16, "10.0.0.1:5000", SERVER,
        Request(b"GET /things/%d HTTP/1.1\r\nHost: a\r\n\r\n" % (1000 + number)),
        Response(200, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"ok", 2),
        start, start + 1, start + 2 * MS, start + 3 * MS,
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def write(path: Path, exchanges: list[Exchange], *, batch: int = 7, end: bool = True) -> Path:
    with LogWriter(path, Manifest("raw", "0", "rec-1", START_NS, "test", scale=0.5, masked=False)) as writer:
        for at in range(0, len(exchanges), batch):
            writer.write_records(exchanges[at : at + batch])
        if end:
            writer.end()
    return path


def read(path: Path) -> tuple[list[Stamped], list[codec.Batch]]:
    stamped: list[Stamped] = []
    batches = []
    with LogReader(path) as reader:
        while messages := reader.read():
            for message in messages:
                batch = codec.decode(message.data)
                batches.append(batch)
                if batch.header.type is RecordType.STAMPED:
                    stamped.extend(batch.records)
    return stamped, batches


def test_a_recording_becomes_a_sorted_clean_one(tmp_path: Path) -> None:
    trace = synthetic_trace.make(seed := random.SystemRandom().randrange(1 << 30))
    print(f"seed {seed}")
    shuffled = trace.exchanges.copy()
    random.Random(seed).shuffle(shuffled)
    to = tmp_path / "clean.lf"
    result = cleanse(write(tmp_path / "raw.lf", shuffled), to, CleanseSettings(batch_records=10))
    stamped, batches = read(to)

    assert [s.exchange_id for s in stamped] == [e.exchange_id for e in trace.exchanges]
    assert [s.offset_ns for s in stamped] == [
        e.request_start_ns - trace.exchanges[0].request_start_ns for e in trace.exchanges
    ]
    kinds = [batch.header.type for batch in batches]
    assert kinds[:3] == [RecordType.MANIFEST, RecordType.ROUTE_TABLE, RecordType.FLOWS]
    assert set(kinds[3:-1]) == {RecordType.STAMPED} and kinds[-1] == RecordType.END
    manifest, end = batches[0].records[0], batches[-1].records[0]
    assert (manifest.topic, manifest.owner_id, manifest.sorted, manifest.scale, manifest.masked) == (
        "clean",
        "rec-1",
        True,
        0.5,
        False,
    )
    assert end.sorted
    assert all(batch.header.sources for batch in batches[3:-1])
    assert batches[2].records[0] == result.flows and result.flows.flows
    assert batches[1].records[0] == result.routes
    assert all(s.route in {route.name for route in result.routes.routes} for s in stamped)
    # Sessions are counted from 0, and know when they began.
    for session in {s.session_id for s in stamped}:
        own = [s for s in stamped if s.session_id == session]
        assert [s.session_index for s in own] == list(range(len(own)))
        assert {s.session_start_ns for s in own} == {own[0].offset_ns}
    assert {s.route: s.unsafe for s in stamped}["POST /enter"] and not {s.route: s.unsafe for s in stamped}[
        "GET /things"
    ]
    assert os.stat(to).st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean.lf", "raw.lf"]
    ledger = account_of(to).ledgers["messages"]
    assert (ledger.seen, ledger.emitted, ledger.difference, ledger.in_flight) == (len(stamped), len(stamped), 0, 0)


ONE = b"Content-Length: 1\r\n"
DROPS = [
    ("other_server", True, {"server": "10.9.9.9:8080"}),
    ("stress", True, {"request": Request(b"GET / HTTP/1.1\r\nlivefire-MARKER: v1;x\r\n\r\n")}),
    ("later", True, {"request_start_ns": START_NS + 10**12}),
    ("health", True, {"request": Request(b"GET /health/live?x HTTP/1.1\r\n\r\n")}),
    ("server_errors", True, {"response": Response(503, b"HTTP/1.1 503 X\r\n\r\n")}),
    ("static", True, {"request": Request(b"GET /a/logo.PNG?v=1 HTTP/1.1\r\n\r\n")}),
    ("ambiguous", False, {"faults": (Fault.AMBIGUOUS,)}),
    ("ambiguous", False, {"request": Request(b"POST / HTTP/1.1\r\n%bcontent-length: 2\r\n\r\n" % ONE, b"a")}),
    ("ambiguous", False, {"request": Request(b"POST / HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n" % ONE)}),
    ("opaque", False, {"mode": Mode.OPAQUE}),
    ("opaque", False, {"request": Request(b"\x16\x03\x01 hello")}),
    ("gap", False, {"faults": (Fault.GAP,)}),
    ("gap", False, {"request": Request(b"POST / HTTP/1.1\r\n\r\n", b"a", 9, missing_bytes=8)}),
    ("unfinished", False, {"faults": (Fault.UNFINISHED,), "response": None}),
    ("truncated", False, {"request": Request(b"POST / HTTP/1.1\r\n\r\n", b"a", 9, truncated_bytes=8)}),
    ("unreplayable", False, {"request": Request(b"CONNECT a:443 HTTP/1.1\r\n\r\n")}),
    (
        "unreplayable", False,
        {"request": Request(b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", b"\x1f", 1, Framing.CHUNKED)},
    ),
    ("unreplayable", False, {"response": Response(101, b"HTTP/1.1 101 X\r\n\r\n")}),
    ("no_time", False, {"request_start_ns": 0, "request_end_ns": 0, "response_start_ns": 0}),
]  # fmt: skip
SETTINGS = CleanseSettings(
    server=(SERVER,),
    drop=(Drop("health", method="get", path="/health*"), Drop("server_errors", status="5xx")),
    drop_static=True,
)


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    bad = [exchange(100 + n, **changes) for n, (_, _, changes) in enumerate(DROPS)]
    good = [exchange(n) for n in range(20)]
    raw = write(tmp_path / "raw.lf", [*good, *bad])
    result = cleanse(raw, tmp_path / "clean.lf", SETTINGS, until_ns=START_NS + 10**11)
    ledger = result.account.ledgers["messages"]
    expected: dict[bool, dict[str, int]] = {True: {}, False: {}}
    for reason, intentional, _ in DROPS:
        expected[intentional][reason] = expected[intentional].get(reason, 0) + 1
    assert (ledger.intentional, ledger.drops) == (expected[True], expected[False])
    assert (ledger.seen, ledger.emitted, ledger.difference) == (20 + len(DROPS), 20, 0)
    assert account_of(tmp_path / "clean.lf").as_json() == result.account.as_json()
    assert [s.exchange_id for s in read(tmp_path / "clean.lf")[0]] == [e.exchange_id for e in good]
    lines = summary_lines(result)
    assert lines[0] == f"kept 20 of {20 + len(DROPS)} exchanges in 5 sessions, 1 route, 0 flows"
    assert lines[1].startswith("left out: 3 ambiguous, 3 unreplayable, 2 gap, 2 opaque, 1 health")


def test_without_rules_nothing_but_the_unusable_is_left_out(tmp_path: Path) -> None:
    """Negative control: the same exchanges stay when no rule names them."""
    kept = [
        changes
        for reason, _, changes in DROPS
        if reason in ("other_server", "later", "health", "server_errors", "static")
    ]
    raw = write(tmp_path / "raw.lf", [exchange(n, **changes) for n, changes in enumerate(kept)])
    assert cleanse(raw, tmp_path / "clean.lf").exchanges == len(kept) == 5


def test_requests_are_framed_anew(tmp_path: Path) -> None:
    request = Request(
        b"POST /a HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n"
        b"Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\nTE: trailers\r\nExpect: 100-continue\r\nX-Kept: 1\r\n\r\n",
        b"hello", 5, Framing.CHUNKED, trailers=b"X-Sum: 1\r\n",
    )  # fmt: skip
    empty = Request(b"POST /a HTTP/1.1\r\nContent-Length: 0\r\nConnection: content-length\r\n\r\n")
    none = Request(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n")
    raw = write(tmp_path / "raw.lf", [exchange(n, request=r) for n, r in enumerate((request, empty, none))])
    cleanse(raw, tmp_path / "clean.lf")
    first, second, third = (s.request for s in read(tmp_path / "clean.lf")[0])
    assert first.head == b"POST /a HTTP/1.1\r\nHost: a\r\nX-Kept: 1\r\nContent-Length: 5\r\n\r\n"
    assert (first.body, first.framing, first.trailers) == (b"hello", Framing.LENGTH, b"")
    assert (head.field(second.head, b"content-length"), second.framing) == (b"0", Framing.LENGTH)
    assert (third.head, third.framing) == (none.head, Framing.NONE)


def test_the_baseline_is_what_was_answered(tmp_path: Path) -> None:
    body = random.randbytes(100_000)
    raw = write(
        tmp_path / "raw.lf",
        [exchange(0, response=Response(200, b"HTTP/1.1 200 OK\r\n\r\n", body, 100_000)), exchange(1, response=None)],
    )
    cleanse(raw, tmp_path / "clean.lf")
    full, none = (s.baseline for s in read(tmp_path / "clean.lf")[0])
    assert full.body == body[: 64 << 10] and full.body_bytes == 100_000
    assert full.digest == hashlib.sha256(full.body).digest()
    assert full.latency_ns == 2 * MS
    assert (none.status, none.latency_ns, none.digest) == (0, 0, b"")


def test_little_memory_gives_the_same_file(tmp_path: Path) -> None:
    exchanges = [exchange(n, request_start_ns=START_NS + random.randrange(10**9)) for n in range(300)]
    raw = write(tmp_path / "raw.lf", exchanges)
    cleanse(raw, tmp_path / "a.lf")
    cleanse(raw, tmp_path / "b.lf", CleanseSettings(memory_bytes=60_000))
    assert read(tmp_path / "a.lf")[0] == read(tmp_path / "b.lf")[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.lf", "b.lf", "raw.lf"]


@pytest.mark.parametrize("memory_bytes", [60_000, 192 << 20], ids=["runs again", "none this time"])
def test_runs_that_a_killed_cleanse_left_are_no_part_of_the_next(tmp_path: Path, memory_bytes: int) -> None:
    raw = write(tmp_path / "raw.lf", [exchange(n) for n in range(300)])
    killed = Sorter[Exchange](60_000, tmp_path / "clean.lf.runs", lambda e: e.request_start_ns)
    for number in range(300):
        killed.add(exchange(1000 + number), 0)
    assert len(list((tmp_path / "clean.lf.runs").iterdir())) > 5
    result = cleanse(raw, tmp_path / "clean.lf", CleanseSettings(memory_bytes=memory_bytes))
    assert [s.exchange_id for s in read(tmp_path / "clean.lf")[0]] == [exchange(n).exchange_id for n in range(300)]
    assert result.account.balanced and result.account.ledgers["messages"].in_flight == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean.lf", "raw.lf"]


def test_what_is_not_utf_8_names_no_route_and_no_flow(tmp_path: Path) -> None:
    """Scanners and old clients send such; it is replayed as it came."""
    asked = [
        b"GET /search/caf%%e9?t%%ff=key%dabc9 HTTP/1.1\r\nCookie: n\xe9=key%dabc9\r\n\r\n" % (n, n) for n in range(30)
    ]
    exchanges = []
    for n, line in enumerate(asked):
        told = Response(200, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n", b'{"k":"key%dabc9"}' % n, 15)
        session = (n + 1).to_bytes(16, "big")
        exchanges += [exchange(2 * n, session_id=session, response=told),
                      exchange(2 * n + 1, session_id=session, request=Request(line))]  # fmt: skip
    raw = write(tmp_path / "raw.lf", exchanges)
    result = cleanse(raw, tmp_path / "clean.lf")
    assert result.exchanges == 60 and not result.flows.flows
    assert {route.name for route in result.routes.routes} == {"GET /things/{id}", "GET /search/{id}"}
    assert [s.request.head.split(b" ")[1] for s in read(tmp_path / "clean.lf")[0][1::2]] == [
        line.split(b" ")[1] for line in asked
    ]


def test_a_file_that_is_still_written_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw.lf", [exchange(n) for n in range(10)], end=False)
    whole = raw.read_bytes()
    raw.write_bytes(whole[:-5])  # the last frame is on its way
    result = cleanse(raw, tmp_path / "clean.lf")
    assert result.exchanges == 7
    assert ["no whole frame" in result.doubts[0], "has no end mark" in result.doubts[1]] == [True, True]


def test_damage_is_counted(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw.lf", [exchange(n) for n in range(21)])
    data = bytearray(raw.read_bytes())
    data[len(data) // 2] ^= 0xFF
    raw.write_bytes(data)
    result = cleanse(raw, tmp_path / "clean.lf")
    assert result.exchanges == 14 and result.account.balanced
    assert result.account.notes["damaged_frames"] == 1
    (doubt,) = result.doubts
    assert doubt.startswith(f"{raw}: 1 damaged place, ")


def test_files_that_cannot_be_used_are_refused_in_one_line(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw.lf", [exchange(1)])
    cleanse(raw, tmp_path / "clean.lf")
    with pytest.raises(BusError, match="exists already"):
        cleanse(raw, tmp_path / "clean.lf")
    with pytest.raises(BusError, match="is clean already"):
        cleanse(tmp_path / "clean.lf", tmp_path / "again.lf")
    with pytest.raises(BusError, match="no such file"):
        cleanse(tmp_path / "absent.lf", tmp_path / "again.lf")
    (tmp_path / "text.lf").write_text("not a recording at all, but some text")
    with pytest.raises(BusError, match="not a Livefire file"):
        cleanse(tmp_path / "text.lf", tmp_path / "again.lf")
    assert not (tmp_path / "again.lf").exists() and not (tmp_path / "again.lf.part").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("server: ['8080x']", "server '8080x'"),
        ("drop: [{name: all}]", "would drop everything"),
        ("drop: [{status: 6000}]", "neither as 404 nor as 5xx"),
        ("routes: ['orders']", "is not a route"),
        ("drop_statics: true", "did you mean 'drop_static'"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    raw = write(tmp_path / "raw.lf", [exchange(1)])
    with pytest.raises(ConfigError, match=problem):
        cleanse(raw, tmp_path / "clean.lf", load(text, CleanseSettings, "rules.yaml"))
    assert not (tmp_path / "clean.lf").exists()


def test_an_empty_recording_gives_an_empty_one(tmp_path: Path) -> None:
    result = cleanse(write(tmp_path / "raw.lf", []), tmp_path / "clean.lf")
    assert (result.exchanges, result.account.balanced) == (0, True)
    assert summary_lines(result) == ["kept 0 of 0 exchanges in 0 sessions, 0 routes, 0 flows"]


def test_the_servers_of_what_stays_are_told_so_that_nobody_fires_at_them_by_accident(tmp_path: Path) -> None:
    other = exchange(3, server="[2001:db8::1]:80")
    gone = exchange(4, server="10.9.9.9:80", faults=(Fault.AMBIGUOUS,))
    cleanse(write(tmp_path / "raw.lf", [exchange(1), exchange(2), other, gone]), tmp_path / "clean.lf")
    with LogReader(tmp_path / "clean.lf") as reader:
        assert reader.manifest is not None and reader.manifest.servers == (SERVER, "[2001:db8::1]:80")


def test_exchanges_of_a_batch_that_cannot_be_read_are_counted_as_seen_and_lost(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw.lf", [exchange(1)], end=False)
    whole = codec.encode([exchange(2), exchange(3)], compress=False)
    with LogWriter(raw, Manifest("raw", "0", "rec-1", START_NS, "test")) as writer:
        writer.write(whole[:-40] + b"\xff" * 40)  # its header can be told, its records cannot
        writer.end()
    result = cleanse(raw, tmp_path / "clean.lf")
    ledger = result.account.ledger("messages")
    assert (ledger.seen, ledger.emitted, ledger.drops) == (3, 1, {"unreadable": 2})
    assert result.account.balanced and result.account.notes["unreadable_batches"] == 1
