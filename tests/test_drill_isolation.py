"""The proof of isolation, with real SQLite files and a real HTTP service: each verdict, and what it rests on."""

import http.server
import json
import sqlite3
import threading
import time

import pytest
from test_analytics_windows import START

from drill.audit_client import AuditClient
from drill.canary import MAX_SESSIONS, choose, retimed, write_recording
from drill.isolation import IsolationProof, Proof
from drill.plan import Isolation, StorePair
from drill.proof_watch import ProofWatch
from drill.sql_counts import CountError, RunCounter
from livefire_shadow.marker import BadMarker, verify_headers
from replay.recording import Recording
from wire.config import ConfigError
from wire.records import Baseline, Flows, Manifest, Request, Route, RouteTable, Stamped

KEY = bytes(range(32))
RUN = "01JD0000000000000000000000"
NS = 10**9


class Service:
    """Answers GET /.livefire/audit, to a marker that verifies, with what the test says."""

    def __init__(self):
        self.counters = {
            "service": "orders", "pid": 1, "since": "then", "marked_requests": 0, "shadow_writes": {},
            "violations": [], "blocked_outbound": [], "lost_context": 0, "lost_places": {}, "mocked": {}, "refused": {},
            "a_field_of_tomorrow": 1,
        }  # fmt: skip
        self.reads = 0
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                values = self.headers.get_all("Livefire-Marker") or []
                try:
                    found = verify_headers(values, {"k1": KEY}, time.time())
                    status = 200 if found and self.path == "/.livefire/audit" else 404
                except BadMarker:
                    status = 403
                service.reads += status == 200
                self.send_response(status)
                self.end_headers()
                if status == 200:
                    self.wfile.write(json.dumps(service.counters).encode())

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def service():
    made = Service()
    yield made
    made.close()


class Stores:
    def __init__(self, folder):
        self.files = {"production": folder / "orders.db", "shadow": folder / "orders-shadow.db"}
        for file in self.files.values():
            with sqlite3.connect(file) as db:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, run TEXT)")
                db.execute("CREATE TABLE order_events (id INTEGER PRIMARY KEY, run TEXT)")
                db.executemany("INSERT INTO orders (run) VALUES (?)", [("",), ("another run",)])
            db.close()

    def add(self, side, table, count, run=RUN):
        with sqlite3.connect(self.files[side]) as db:
            db.executemany(f"INSERT INTO {table} (run) VALUES (?)", [(run,)] * count)
        db.close()

    @property
    def pair(self):
        urls = {side: f"sqlite:///{file}" for side, file in self.files.items()}
        return StorePair("orders", urls["production"], urls["shadow"], {"orders": "run", "order_events": "run"})


@pytest.fixture
def stores(tmp_path):
    return Stores(tmp_path)


def client(key=KEY):
    return AuditClient(RUN, "k1", key, time.time, timeout_s=1.0)


def proof_of(service, stores, **services):
    named = {"orders": service.url, **services}
    proof = IsolationProof(Isolation(named, (stores.pair,)), RUN, client())
    proof.begin()
    return proof


def stressed(service, stores):
    """As after a canary whose writes went where they belong."""
    service.counters["marked_requests"] += 5
    service.counters["shadow_writes"] = {"sqlite:///orders.db": 3}
    stores.add("shadow", "orders", 2)
    stores.add("shadow", "order_events", 1)


def test_proven(service, stores):
    proof = proof_of(service, stores)
    stressed(service, stores)
    report = proof.check()
    assert (report.verdict, report.reasons) == (Proof.PROVEN, ())
    assert (report.rows_in_shadow, report.rows_in_production) == (3, 0)
    assert report.said() == "isolation proven: stress writes: 3 in shadow, 0 in production"


def test_violated_by_a_row_in_production(service, stores):
    proof = proof_of(service, stores)
    stressed(service, stores)
    stores.add("production", "order_events", 3)
    report = proof.check()
    assert report.verdict is Proof.VIOLATED
    assert report.reasons == ("store orders, table order_events: 3 rows of this run in production",)
    assert report.rows_in_production == 3


def test_violated_by_what_a_service_caught(service, stores):
    proof = proof_of(service, stores)
    stressed(service, stores)
    place = "shop/orders.py:142 record_event"
    service.counters["violations"] = [
        {
            "kind": "production_under_stress",
            "place": place,
            "store": "orders.db",
            "statement": "INSERT order_events",
            "count": 2,
        }
    ]
    report = proof.check()
    assert report.verdict is Proof.VIOLATED
    assert place in report.said() and "2 times" in report.said() and "INSERT order_events" in report.said()


def test_what_happened_before_the_run_is_not_its_fault(service, stores):
    old = {"kind": "x", "place": "a.py:1 f", "store": "s", "statement": "INSERT t", "count": 2}
    service.counters["violations"] = [dict(old)]
    service.counters["lost_context"] = 4
    proof = proof_of(service, stores)
    stressed(service, stores)
    assert proof.check().verdict is Proof.PROVEN
    service.counters["violations"] = [{**old, "count": 3}]
    assert proof.check().services[0].violations == ("orders: x, once, at a.py:1 f (INSERT t on s)",)
    # a service that was started anew counts from zero: all of it is this run's
    service.counters.update({"pid": 2, "violations": [old]})
    assert proof.check().verdict is Proof.VIOLATED


def test_not_proven_when_a_service_was_started_anew_in_the_middle(service, stores):
    """What its first process caught is gone with it."""
    proof = proof_of(service, stores)
    stressed(service, stores)
    service.counters["pid"] = 2
    report = proof.check()
    assert report.verdict is Proof.NOT_PROVEN
    assert report.reasons == (
        "orders is not the process that it was when the run began: what that one counted is lost",
    )


def test_not_proven_when_calls_were_stopped_beyond_the_list(service, stores):
    proof = proof_of(service, stores)
    stressed(service, stores)
    service.counters["blocked_outbound_elsewhere"] = 2
    assert proof.check().reasons == ("orders: 2 times a call was stopped at further places",)


def test_not_proven_without_a_single_write_in_a_shadow(service):
    """Audits alone: services that saw stress, and wrote nothing that they know of, may write past the router."""
    proof = IsolationProof(Isolation({"orders": service.url}, ()), RUN, client())
    proof.begin()
    service.counters["marked_requests"] = 5
    assert proof.check().reasons == ("no service counted a write to its shadow",)
    assert proof.check(writes_expected=False).verdict is Proof.PROVEN
    service.counters["shadow_writes"] = {"orders": 1}
    assert proof.check().verdict is Proof.PROVEN


def test_not_proven_when_a_service_does_not_answer(service, stores):
    proof = proof_of(service, stores, storefront="http://127.0.0.1:1")
    stressed(service, stores)
    report = proof.check()
    assert report.verdict is Proof.NOT_PROVEN
    assert "http://127.0.0.1:1 did not answer" in report.said()
    assert "orders" not in report.said()


def test_not_proven_when_a_service_does_not_trust_the_key(service, stores):
    proof = IsolationProof(Isolation({"orders": service.url}, ()), RUN, client(b"x" * 32))
    proof.begin()
    assert "answered 403 (does it trust this key?)" in proof.check().said()
    assert service.reads == 0


def test_not_proven_when_no_stress_was_seen_or_nothing_was_written(service, stores):
    proof = proof_of(service, stores)
    report = proof.check()
    assert report.verdict is Proof.NOT_PROVEN
    assert report.reasons == (
        "orders saw no stress request",
        "store orders: no row of this run in the shadow either",
    )
    service.counters["marked_requests"] = 1
    assert proof.check(writes_expected=False).verdict is Proof.PROVEN
    assert proof.check().verdict is Proof.NOT_PROVEN


@pytest.mark.parametrize(
    ("counters", "said"),
    [
        (
            {"blocked_outbound": [{"place": "a.py:9 pay", "host": "bank:443", "count": 1}]},
            "bank:443 was stopped at a.py:9 pay",
        ),
        ({"lost_context": 2, "lost_places": {"b.py:3 later": 2}}, "lost its context at b.py:3 later"),
    ],
)
def test_not_proven_when_work_was_refused_elsewhere(service, stores, counters, said):
    proof = proof_of(service, stores)
    stressed(service, stores)
    service.counters.update(counters)
    report = proof.check()
    assert report.verdict is Proof.NOT_PROVEN
    assert said in report.said()


def test_not_proven_when_a_store_cannot_be_counted(service, stores, tmp_path):
    stressed(service, stores)
    pair = StorePair("orders", f"sqlite:///{tmp_path}/gone.db", stores.pair.shadow, {"orders": "run"})
    proof = IsolationProof(Isolation({}, (pair,)), RUN, client())
    assert proof.check().verdict is Proof.NOT_PROVEN
    assert not (tmp_path / "gone.db").exists()  # looking must not make it
    wrong = StorePair("orders", stores.pair.production, stores.pair.shadow, {"ordrs": "run"})
    report = IsolationProof(Isolation({}, (wrong,)), RUN, client()).check()
    assert "no such table: ordrs" in report.said()


def test_without_an_isolation_section_it_depends_on_what_is_fired():
    nothing = IsolationProof(None, RUN, client())
    assert nothing.check(unsafe=False).verdict is Proof.NOT_APPLICABLE
    assert nothing.check(unsafe=True).verdict is Proof.NOT_PROVEN


def test_the_counter_can_only_read(stores):
    assert RunCounter(stores.pair.production, {"main.orders": "run"}).count("run-none") == {"main.orders": 0}
    counter = RunCounter(stores.pair.production, {"orders": "run"})
    assert counter.count("another run") == {"orders": 1}
    with pytest.raises(CountError, match="readonly"), counter._engine.begin() as connection:
        from sqlalchemy import text

        try:
            connection.execute(text("DELETE FROM orders"))
        except Exception as error:
            raise CountError(str(error)) from None
    with pytest.raises(ConfigError, match="in memory"):
        RunCounter("sqlite://", {"orders": "run"})
    with pytest.raises(ConfigError, match="isolation store"):
        RunCounter("no url", {"orders": "run"})


def test_a_look_under_load_does_not_hold_up_the_loop(service, stores):
    gate = threading.Event()
    proof = proof_of(service, stores)
    stressed(service, stores)

    def slow():
        gate.wait(60)
        return proof.check()

    watch = ProofWatch(slow, every_ns=NS)
    began = time.monotonic()
    assert [watch.poll(now) for now in (1, NS, 3 * NS)] == [None] * 3
    assert time.monotonic() - began < 30
    gate.set()
    deadline = time.monotonic() + 30
    while (report := watch.poll(4 * NS)) is None and time.monotonic() < deadline:
        pass
    watch.close()
    assert report is not None and report.verdict is Proof.PROVEN


# ---------------------------------------------------------------------------- canaries


def session(number, *routes, first=0, status=200):
    return [
        Stamped(
            bytes([number, index] * 8), bytes([number] * 16), route, (number * 50 + index * 3) * NS,
            Request(f"{route.split()[0]} / HTTP/1.1\r\n\r\n".encode()), Baseline(status, 1000, b"", b"", 0, b""),
            number * 50 * NS, first + index, route.split()[0] != "GET",
        )
        for index, route in enumerate(routes)
    ]  # fmt: skip


def test_canaries_are_the_fewest_shortest_sessions_that_cover_every_write():
    recorded = [
        *session(1, "GET /a", "GET /b"),
        *session(2, "POST /login", "GET /a", "POST /orders"),
        *session(3, "POST /login", "GET /a", "GET /a", "POST /orders"),
        *session(4, "POST /login", "PATCH /orders/{id}"),
    ]
    choice = choose(recorded)
    assert [s[0].session_id[0] for s in choice.sessions] == [4, 2] or [s[0].session_id[0] for s in choice.sessions] == [
        2,
        4,
    ]
    assert choice.covered == ("PATCH /orders/{id}", "POST /login", "POST /orders")
    assert choice.left_out == ()


def test_canaries_leave_out_what_production_refused_and_what_was_cut():
    assert choose(session(1, "POST /orders", status=401)).sessions == ()
    assert choose(session(1, "POST /orders", status=401)).left_out == ("POST /orders",)
    assert choose(session(1, "POST /orders", first=3)).sessions == ()
    many = [s for n in range(40) for s in session(n, f"POST /r{n}")]
    assert len(choose(many).sessions) == MAX_SESSIONS


def test_canaries_are_a_recording_that_replay_takes(tmp_path):
    from bus.logfile import LogWriter

    source = tmp_path / "clean.lf"
    recorded = [*session(1, "GET /a", "POST /b"), *session(2, "GET /a", "POST /c", "POST /d")]
    with LogWriter(source, Manifest("clean", "0", "rec", START * NS, "test", sorted=True)) as writer:
        writer.write_records([RouteTable("rec", (Route("GET /a", "GET", ("a",)),))])
        writer.write_records([Flows("rec", ())])
        writer.write_records(recorded)
        writer.end(sorted=True)
    choice = choose(recorded)
    to = tmp_path / "run" / "canary.lf"
    write_recording(choice, source, to, START * NS)
    survey = Recording(to).survey()
    assert (survey.exchanges, survey.unsafe) == (5, {"POST": 3})
    assert survey.lap_ns < NS  # think time is cut
    offsets = [s.offset_ns for s in retimed(choice.sessions)]
    assert offsets == sorted(offsets) and offsets[0] == 0


def test_nobody_asked_proves_nothing():
    from drill.isolation import weigh

    assert weigh((), (), writes_expected=False).verdict is Proof.NOT_PROVEN
