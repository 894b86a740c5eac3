"""A whole drill, with real workers, against a small real service: held, stopped, violated, a worker killed."""

import http.server
import json
import os
import signal
import sqlite3
import threading
import time
from collections import deque

import msgspec
import pytest

from analytics.app import window_dicts
from bus.logfile import LogReader, LogWriter
from drill.app import run
from drill.events import EventKind
from drill.fleet import plain_spawn
from drill.isolation import Proof
from drill.plan import parse_plan
from drill.settings import DrillSettings
from livefire.commands.stop import send_stop
from livefire_shadow.marker import BadMarker, verify_headers
from wire import codec
from wire.config import ConfigError
from wire.records import Baseline, Flows, Framing, Manifest, Request, Route, RouteTable, Stamped

KEY = bytes(range(32))
NS = 10**9


class Shop:
    """GET /a, and POST /orders, which writes a row to the shadow (or, leaking, to production). Above `limit` requests
    a second every answer takes 300 ms more."""

    def __init__(self, folder, *, limit=10**9, leak=False):
        self.files = {"production": folder / "shop.db", "shadow": folder / "shop-shadow.db"}
        for file in self.files.values():
            with sqlite3.connect(file) as db:
                db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, run TEXT)")
            db.close()
        self.lock = threading.Lock()
        self.named = []  # by Livefire-Shot
        self.seen = []  # (monotonic ns, run, method)
        self.lately = deque()
        self.limit, self.leak = limit, leak
        shop = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_any(self):
                length = int(self.headers.get("Content-Length") or 0)
                if length:
                    self.rfile.read(length)
                shop.named.append(self.headers.get("Livefire-Shot"))
                status, body = shop.answer(self.command, self.path, self.headers.get_all("Livefire-Marker") or [])
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = handle_any

            def log_message(self, *args):
                pass

        class Server(http.server.ThreadingHTTPServer):
            request_queue_size = 256

        self.server = Server(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, method, path, markers):
        try:
            marker = verify_headers(markers, {"k1": KEY}, time.time())
        except BadMarker:
            return 403, b"{}"
        if marker is None:
            return 200, b"{}"
        if path == "/.livefire/audit":
            audit = {"service": "shop", "marked_requests": len(self.seen), "pid": 1, "since": "then"}
            return 200, json.dumps(audit).encode()
        now = time.monotonic()
        with self.lock:
            self.seen.append((time.time_ns(), marker[0].run_id, method))
            self.lately.append(now)
            while self.lately[0] < now - 1:
                self.lately.popleft()
            slow = len(self.lately) > self.limit
            if method == "POST":
                with sqlite3.connect(self.files["production" if self.leak else "shadow"]) as db:
                    db.execute("INSERT INTO orders (run) VALUES (?)", (marker[0].run_id,))
                db.close()
        if slow:
            time.sleep(0.3)
        return (201, b'{"order":1}') if method == "POST" else (200, b"hello")

    def rows(self, side):
        with sqlite3.connect(self.files[side]) as db:
            count = db.execute("SELECT count(*) FROM orders").fetchone()[0]
        db.close()
        return count

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def write_recording(path):
    """Two seconds of 40 requests a second, in sessions of eight; each session orders once."""
    made = []
    for number in range(80):
        session, index = divmod(number, 8)
        post = index == 5
        head = (
            b"POST /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: 2\r\n\r\n"
            if post
            else b"GET /a HTTP/1.1\r\nHost: shop\r\n\r\n"
        )
        body = b"{}" if post else b""
        answer = b'{"order":1}' if post else b"hello"
        made.append(
            Stamped(
                number.to_bytes(16, "big"), session.to_bytes(16, "big"), "POST /orders" if post else "GET /a",
                number * NS // 40, Request(head, body, len(body), Framing.LENGTH if post else Framing.NONE),
                Baseline(201 if post else 200, 1_000_000, b"HTTP/1.1 200 OK\r\n\r\n", answer, len(answer), b""),
                session * NS // 5, index, post,
            )
        )  # fmt: skip
    routes = (Route("GET /a", "GET", ("a",)), Route("POST /orders", "POST", ("orders",)))
    with LogWriter(path, Manifest("clean", "0", "rec", 0, "test", sorted=True)) as writer:
        writer.write_records([RouteTable("rec", routes)])
        writer.write_records([Flows("rec", ())])
        writer.write_records(made)
        writer.end(sorted=True)


@pytest.fixture
def shop_of(tmp_path):
    shops = []

    def make(**options):
        shops.append(Shop(tmp_path, **options))
        write_recording(tmp_path / "clean.lf")
        return shops[-1]

    yield make
    for shop in shops:
        shop.close()


def plan_for(shop, folder, steps, *thresholds):
    text = f"""
recording: {folder}/clean.lf
target: http://{shop.address}
spread: 500ms
steps: {steps}
thresholds: {list(thresholds)}
isolation:
  services: {{shop: "http://{shop.address}"}}
  stores:
    shop:
      production: sqlite:///{shop.files["production"]}
      shadow: sqlite:///{shop.files["shadow"]}
      run_column: {{orders: run}}
"""
    return parse_plan(text, "plan.yaml", {})


def settings_for(folder):
    return DrillSettings(runs_dir=folder / "runs", key_id="k1", key_hex=KEY.hex(), lead_ns=1_000_000_000)


class Events(list):
    def __call__(self, event):
        self.append(event)

    def texts(self, kind):
        return [event.text for event in self if event.kind is kind]


def test_a_load_that_breaks_a_threshold_is_stopped_and_all_adds_up(shop_of, tmp_path):
    shop = shop_of(limit=100)
    events = Events()
    plan = plan_for(
        shop, tmp_path, "[{load: 1x, for: 2s}, {load: 4x, for: 6s}]", "p50 < 150ms over 2s", "errors < 2% over 2s"
    )
    result = run(plan, settings_for(tmp_path), plain_spawn, events)
    assert result.exit_code == 97, result.verdict
    assert result.decision is not None and result.decision.threshold == "p50 < 150ms over 2s"
    assert [step.held for step in result.steps] == [True, False]
    assert result.capacity.step == 0 and result.capacity.limited
    assert result.capacity.rate == pytest.approx(40, rel=0.25)
    # what the service itself saw
    stress = [at for at, run_id, _ in shop.seen if run_id == result.run_id]
    assert len(stress) == result.account.sent + result.canary.sent
    assert result.account.balanced and result.account.planned > 0
    assert result.stopped_after_ns is not None and result.stopped_after_ns < NS
    assert max(stress) - result.decision_ns < 1.2 * NS
    # what SQL says
    posts = sum(method == "POST" for _, _, method in shop.seen)
    assert result.isolation.verdict is Proof.PROVEN
    assert (result.isolation.rows_in_shadow, shop.rows("shadow"), shop.rows("production")) == (posts, posts, 0)
    assert result.canary.writes_accepted >= 1
    # what was told, and what is kept
    assert events.texts(EventKind.ARITHMETIC)[1].startswith("1 x 1 x 4 = 4x = 16")
    assert len(events.texts(EventKind.STEP)) == 2
    assert events.texts(EventKind.DECISION)[0].startswith("stop: p50 < 150ms over 2s")
    assert "after the decision" in events.texts(EventKind.STOPPED)[0] or "before" in events.texts(EventKind.STOPPED)[0]
    kept = json.loads((result.run_dir / "result.json").read_text())
    assert kept == json.loads(json.dumps(result.as_dict()))
    found = window_dicts(result.run_dir, every="1s")
    assert sum(w["offered"] for w in found if w["route"] == "*") == result.account.planned


def test_a_leak_is_found_by_the_canary_before_any_load(shop_of, tmp_path):
    shop = shop_of(leak=True)
    events = Events()
    result = run(plan_for(shop, tmp_path, "[{load: 1x, for: 3s}]"), settings_for(tmp_path), plain_spawn, events)
    assert result.exit_code == 98
    assert "store shop, table orders: 1 row of this run in production" in result.verdict.reasons
    assert (result.account.planned, len(shop.seen)) == (0, result.canary.sent)
    assert not events.texts(EventKind.STEP)


def test_a_killed_worker_makes_it_inconclusive_and_nothing_is_lost(shop_of, tmp_path):
    shop = shop_of()
    processes = []

    def spawn(name, argv, line):
        processes.append((name, plain_spawn(name, argv, line)))
        return processes[-1][1]

    def on_event(event):
        if event.kind is EventKind.WINDOW:
            os.kill(processes[-1][1].pid, signal.SIGKILL)

    result = run(
        plan_for(shop, tmp_path, "[{load: 1x, for: 8s}]", "p50 < 1s over 2s"), settings_for(tmp_path), spawn, on_event
    )
    assert result.exit_code == 96
    assert "worker w0 is gone: killed by signal 9" in result.verdict.reasons
    assert result.account.balanced
    seen = sum(run_id == result.run_id for _, run_id, _ in shop.seen) - result.canary.sent
    assert result.account.sent <= seen <= result.account.sent + result.account.unknown
    assert all(process.poll() is not None for _, process in processes)


def test_writes_without_an_isolation_section_are_refused_before_anything_is_sent(shop_of, tmp_path):
    shop = shop_of()
    plan = parse_plan(
        f"recording: {tmp_path}/clean.lf\ntarget: http://{shop.address}\nsteps: [{{load: 1x, for: 1s}}]",
        "plan.yaml",
        {},
    )
    with pytest.raises(ConfigError, match=r"may change state \(10 POST\): add an isolation section"):
        run(plan, settings_for(tmp_path))
    assert shop.seen == []
    assert not (tmp_path / "runs").exists()


def test_without_a_canary_there_is_no_proof_and_no_load(shop_of, tmp_path):
    """Stores that hold no row of the run prove nothing when nothing was written."""
    shop = shop_of()
    path = tmp_path / "clean.lf"
    with LogReader(path) as reader:
        records = [r for m in reader.read() for r in codec.decode(m.data).records if isinstance(r, Stamped)]
    path.unlink()
    with LogWriter(path, Manifest("clean", "0", "rec", 0, "test", sorted=True)) as writer:
        writer.write_records([msgspec.structs.replace(r, session_index=r.session_index + 1) for r in records])
        writer.end(sorted=True)
    plan = plan_for(shop, tmp_path, "[{load: 1x, for: 1s}]")
    plan = msgspec.structs.replace(plan, isolation=msgspec.structs.replace(plan.isolation, services={}))
    result = run(plan, settings_for(tmp_path))
    assert result.isolation.verdict is Proof.NOT_PROVEN
    assert (result.exit_code, result.canary.sessions, result.account.planned, shop.seen) == (96, 0, 0, [])


def test_passwords_of_the_plan_are_not_written_down(shop_of, tmp_path):
    shop = shop_of(leak=True)
    plan = plan_for(shop, tmp_path, "[{load: 1x, for: 1s}]")
    urls = (
        "postgresql://reader:hunter2@db/orders", "postgresql://reader:p@ss:hunter2@db:5432/orders?sslmode=require",
        "mysql://db/orders?user=reader&password=hunter2", "https://:hunter2@host/",
    )  # fmt: skip
    text = plan.text + "".join(f"# {url}\n" for url in urls)
    result = run(msgspec.structs.replace(plan, text=text), settings_for(tmp_path))
    told = (result.run_dir / "run.json").read_text()
    assert "hunter2" not in told and "p@ss" not in told
    assert "postgresql://reader:***@db/orders" in told and "postgresql://reader:***@db:5432/orders?sslmode" in told
    assert json.loads(told)["plan"].startswith(plan.text), "all else is as it was written"
    for path in result.run_dir.rglob("*"):
        if path.is_file():
            assert KEY.hex().encode() not in path.read_bytes() and KEY not in path.read_bytes(), path


def test_a_target_is_resolved_once_for_canaries_and_workers(shop_of, tmp_path):
    """A name that changes its address between the proof and the load would be fired at without proof."""
    shop = shop_of()
    lines = []

    def spawn(name, argv, line):
        lines.append((name, json.loads(line)["pinned"]))
        return plain_spawn(name, argv, line)

    plan = plan_for(shop, tmp_path, "[{load: 1x, for: 1s}]")
    run(
        msgspec.structs.replace(plan, target=plan.target.replace("127.0.0.1", "localhost")),
        settings_for(tmp_path),
        spawn,
    )
    assert lines == [("canary-worker-c0", "127.0.0.1"), ("worker-w0", "127.0.0.1")]


def test_a_target_that_must_not_be_fired_at_is_refused_before_anything_is_sent(shop_of, tmp_path):
    shop = shop_of()
    plan = plan_for(shop, tmp_path, "[{load: 1x, for: 1s}]")
    for url in ("http://169.254.169.254", "https://127.0.0.1:1"):
        with pytest.raises(ConfigError, match=url):
            run(msgspec.structs.replace(plan, target=url), settings_for(tmp_path))
    assert shop.seen == [] and not (tmp_path / "runs").exists()


def test_a_leak_that_begins_under_load_stops_it(shop_of, tmp_path):
    shop = shop_of()
    events = Events()

    def on_event(event):
        events(event)
        if event.kind is EventKind.WINDOW:
            shop.leak = True

    asked = msgspec.structs.replace(settings_for(tmp_path), proof_ns=NS // 4)
    result = run(plan_for(shop, tmp_path, "[{load: 1x, for: 20s}]"), asked, plain_spawn, on_event)
    assert (result.exit_code, result.isolation.verdict) == (98, Proof.VIOLATED)
    assert result.decision is not None and result.decision.cause == "isolation"
    assert "in production" in events.texts(EventKind.DECISION)[0]
    assert result.ended_ns - result.started_ns < 10 * NS, "long before the step was over"
    assert max(at for at, _, _ in shop.seen) - result.decision_ns < NS


def test_a_load_that_runs_to_its_end_is_finished_not_cut_off(shop_of, tmp_path):
    shop = shop_of()
    result = run(plan_for(shop, tmp_path, "[{load: 1x, for: 2s}]", "errors < 2%"), settings_for(tmp_path))
    assert result.exit_code == 0, result.verdict
    assert result.account.planned == result.account.answered == len(shop.seen) - result.canary.sent > 0
    named = [name for name in shop.named if name is not None]
    assert len(set(named)) == len(named), "no two requests of a run have one name, canaries neither"
    assert sum(name.startswith("canary.") for name in named) == result.canary.sent
    assert result.account.balanced


def test_livefire_stop_ends_a_drill(shop_of, tmp_path):
    shop = shop_of()
    asked = []

    def on_event(event):
        if event.kind is EventKind.WINDOW and not asked:
            asked.append(time.time_ns())
            send_stop(next((tmp_path / "runs").iterdir()), "enough")

    plan = plan_for(shop, tmp_path, "[{load: 1x, for: 20s}]")
    result = run(plan, settings_for(tmp_path), plain_spawn, on_event)
    assert result.exit_code == 96 and result.verdict.reasons == ("stop was asked for: enough",)
    assert result.account.balanced and max(at for at, _, _ in shop.seen) - asked[0] < NS


def test_where_a_witness_is_silent_not_even_a_canary_is_sent(shop_of, tmp_path):
    shop = shop_of()
    plan = plan_for(shop, tmp_path, "[{load: 1x, for: 2s}]")
    isolation = plan.isolation
    lost = msgspec.structs.replace(isolation.stores[0], production=f"sqlite:///{tmp_path}/absent/x.db")
    plan = msgspec.structs.replace(plan, isolation=msgspec.structs.replace(isolation, stores=(lost,)))
    result = run(plan, settings_for(tmp_path), plain_spawn)
    assert (result.exit_code, result.isolation.verdict) == (96, Proof.NOT_PROVEN)
    assert (len(shop.seen), result.canary.sent) == (0, 0)
    assert "absent/x.db" in str(result.verdict.reasons) or "shop" in str(result.verdict.reasons)
