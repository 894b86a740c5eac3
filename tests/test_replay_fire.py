"""The firing path as a whole: real processes, a real server on loopback with a log of its own."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fault_checks import children_of
from http_target import Target
from recordings import MS, SECOND, even, exchange, make_clean

from bus.logfile import FileBus
from bus.logwriter import LogWriter
from livefire_shadow.marker import verify
from replay import app, summary
from replay.book import Books, end_partition, name_of, records_of
from replay.clock import clock_of
from replay.conductor import Conductor
from replay.recover import recover, unfinished
from replay.settings import LEAD_NS, ReplaySettings, WorkerSettings
from wire import topics
from wire.codec import RecordType
from wire.config import ConfigError
from wire.records import Claim, Failure, Flow, Kind, Manifest, Outcome, Place, PlaceKind, ShotKey, Stamped, Verdict

KEY = bytes(range(32))


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with Target(tmp_path) as running:
        yield running


def asked(tmp_path: Path, target: Target, exchanges: list[Stamped], **more: Any) -> ReplaySettings:
    flows = more.pop("flows", ())
    recording = make_clean(tmp_path / "clean.lf", exchanges, flows=flows)
    return ReplaySettings(
        recording=recording, target=target.url, runs=tmp_path / "runs", key_id="k1", key_hex=KEY.hex(),
        **{"run_id": "r1", "spread_ns": 0, **more},
    )  # fmt: skip


def outcomes_of(run_dir: Path) -> list[Outcome]:
    bus = FileBus(run_dir)
    found: list[Outcome] = []
    for worker in bus.partitions(topics.OUTCOMES):
        with bus.reader(topics.OUTCOMES, worker) as reader:
            found += records_of(reader, RecordType.OUTCOME)
    return found


class Run:
    """One worker, conducted by the test itself."""

    def __init__(self, settings: ReplaySettings, **changed: Any) -> None:
        self.clock = clock_of(app.anchor_ns())
        self.dir = settings.runs / settings.run_id
        self.conductor = Conductor(FileBus(self.dir), settings.run_id, self.clock, lease_ns=settings.lease_ns)
        worker = app.worker_settings(settings, settings.run_id, 0, 0, "")
        worker = msgspec.structs.replace(worker, **changed)
        self.conductor.renew()
        self.process = app.spawn_plain("w0", app.worker_argv(), app.first_line(worker))
        self.until(lambda: self.state == "ready")

    @property
    def state(self) -> str:
        beat = self.conductor.beats().get("w0")
        return beat.state if beat else ""

    def until(self, check: Callable[[], object], seconds: float = 15.0, *, renew: bool = True) -> None:
        """Poll for an event, renewing the lease meanwhile."""
        deadline, renewal = time.monotonic() + seconds, 0.0
        while not check():
            assert time.monotonic() < deadline, "it never happened"
            if renew and time.monotonic() >= renewal:
                self.conductor.renew()
                renewal = time.monotonic() + 0.5
            time.sleep(0.005)

    def left(self) -> bool:
        return self.process.poll() is not None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
        self.conductor.close()


def test_copies_over_two_workers_are_exact_and_marked(tmp_path: Path, target: Target) -> None:
    kinds = [
        ("GET", "/item", 200, "ok"), ("HEAD", "/bytes/100", 200, ""), ("GET", "/status/204", 204, ""),
        ("GET", "/status/304", 304, ""), ("GET", "/interim", 200, "ok"), ("GET", "/chunked/3", 200, "hello" * 3),
        ("GET", "/close", 200, "until the end"), ("GET", "/cut", 200, ""), ("GET", "/garbage", 200, ""),
        ("GET", "/bytes/100000", 200, "x" * 100_000), ("GET", "/status/404", 200, "status"),
        ("POST", "/item", 200, "ok"), ("GET", "/bytes/1000", 200, "short"),
    ]  # fmt: skip
    exchanges = [
        exchange(
            number, number * 3 * MS, session=number // 2, session_start_ns=number // 2 * 6 * MS, method=method,
            target=path, status=status, answer=answer.encode(), body=b"b" * 200_000 if method == "POST" else b"",
        )
        for number in range(130)
        for method, path, status, answer in [kinds[number % len(kinds)]]
    ]  # fmt: skip
    settings = asked(tmp_path, target, exchanges, copies=3, workers=2, spread_ns=SECOND // 2, allow_unsafe=True)
    result = app.run(settings)
    requests = target.requests()
    assert result.planned == 3 * 130 == len(requests)
    assert (result.sent, result.shed, result.unknown, result.balanced) == (390, 0, 0, True)
    assert result.failures == {"reset": 30, "protocol": 30}, "what is cut, and what is no HTTP"
    assert result.answered + result.failed == result.sent
    assert 0 < result.cpu_s < 20
    # The target's own log: each shot once, each with one valid marker, methods and bodies as recorded.
    assert set(target.shots().values()) == {1}
    expected = {
        f"{one.exchange_id.hex()}.{copy}.0": one.request.head.split(b" ")[0].decode()
        for one in exchanges
        for copy in range(3)
    }
    assert {request["fields"]["livefire-shot"]: request["method"] for request in requests} == expected
    for request in requests:
        fields = request["fields"]
        assert verify(fields["livefire-marker"], {"k1": KEY}, request["at_ns"] / 1e9).run_id == "r1"
        assert request["names"].count("livefire-marker") == request["names"].count("host") == 1
        assert fields["host"] == f"127.0.0.1:{target.port}"
        assert request["body_bytes"] == (200_000 if request["method"] == "POST" else 0)
    assert len({request["fields"]["traceparent"] for request in requests}) == 390
    # Compared with the recording.
    by_route = {(outcome.route, outcome.status, outcome.verdict) for outcome in outcomes_of(settings.runs / "r1")}
    assert ("GET /status/404", 404, Verdict.STATUS) in by_route
    assert ("GET /bytes/1000", 200, Verdict.LENGTH) in by_route
    assert {verdict for route, _, verdict in by_route if route in ("GET /item", "HEAD /bytes/100", "GET /close")} == {
        Verdict.SAME
    }
    assert {outcome.worker for outcome in outcomes_of(settings.runs / "r1")} == {"w0", "w1"}
    assert KEY.hex() not in "".join(path.read_bytes().decode("latin-1") for path in (settings.runs / "r1").iterdir()), (
        "the key is in no file of the run"
    )


def test_the_account_check_sees_what_is_lost_or_twice(tmp_path: Path) -> None:
    keys = tuple(ShotKey(bytes([n] * 16), 0, 0, 0, "GET /", 1000 + n) for n in range(10))

    def run(name: str, booked: list[ShotKey], unclaimed: int = 0) -> summary.Summary:
        bus = FileBus(tmp_path / name)
        with bus.writer(topics.CLAIMS, "w0", Manifest(topics.CLAIMS, "w0", name, 1, "t")) as claims:
            claims.write_records((Claim(name, "w0", 0, keys[unclaimed:]),))
        with bus.writer(topics.OUTCOMES, "w0", Manifest(topics.OUTCOMES, "w0", name, 1, "t")) as writer:
            writer.write_records([
                Outcome(name, k.exchange_id, 0, 0, 0, "GET /", "stress", k.due_ns, 1, 1, 2, 0, 200, Failure.NONE, 1, 1,
                        Verdict.SAME)  # type: ignore[arg-type]
                for k in booked
            ])  # fmt: skip
        return summary.read(tmp_path / name)[0]

    assert run("whole", list(keys)).balanced
    assert not run("lost", list(keys[1:])).balanced
    assert not run("twice", [*keys, keys[0]]).balanced
    assert not run("swapped", [*keys[1:], keys[1]]).balanced
    assert not run("unclaimed", list(keys), unclaimed=1).balanced


def test_a_stall_is_in_the_latency_and_not_in_the_service(tmp_path: Path, target: Target) -> None:
    """Coordinated omission: while the server stands still, shots stay due. Also: the cap on open shots, the pool."""
    exchanges = even(250, 250.0)
    exchanges[50] = exchange(50, exchanges[50].offset_ns, session="stall", target="/stall/600")
    settings = asked(tmp_path, target, exchanges, max_open=40)
    result = app.run(settings)
    assert result.planned == 250 and result.balanced
    # 600 ms of stall at 250/s would be 150 open shots.
    assert result.failures == {"shed_open": result.shed} and 80 < result.shed < 140
    slow = [o for o in outcomes_of(settings.runs / "r1") if o.done_ns - o.due_ns > 200 * MS]
    assert len(slow) >= 25, "all that was due during the stall is late, not one request alone"
    assert result.latency_ms["p90"] and result.latency_ms["p90"] > 200
    assert max(o.done_ns for o in slow) - min(o.due_ns for o in slow) < SECOND


def test_latency_counts_from_due_when_the_worker_is_late(tmp_path: Path, target: Target) -> None:
    """The other half of coordinated omission: a shot that leaves late is late in latency, and not in service."""
    settings = asked(tmp_path, target, even(200, 200.0))
    with Run(settings, late_ns=10 * SECOND) as run:
        run.conductor.step(0, 1.0, run.clock() + LEAD_NS)
        run.until(lambda: len(target.requests()) > 30)
        (firer,) = children_of(run.process.pid)
        os.kill(firer, signal.SIGSTOP)
        held = time.monotonic() + 0.5
        run.until(lambda: time.monotonic() > held)
        os.kill(firer, signal.SIGCONT)
        run.until(run.left)
    result, _ = summary.read(run.dir)
    assert result.answered == 200
    assert result.latency_ms["max"] and result.latency_ms["max"] > 400
    assert result.send_error_ms["max"] and result.send_error_ms["max"] > 400
    late = [o for o in outcomes_of(run.dir) if o.sent_ns - o.due_ns > 100 * MS]
    assert len(late) > 40
    # They were all sent in one go when it went on; one server answers them one after another, on a busy machine slowly.
    assert sum(o.done_ns - o.sent_ns < 150 * MS for o in late) > 0.5 * len(late)


def test_the_rate_cap_is_hard_and_a_stop_is_quick(tmp_path: Path, target: Target) -> None:
    settings = asked(tmp_path, target, even(4000, 1000.0), max_rate=400.0)
    with Run(settings) as run:
        run.conductor.step(0, 2.0, run.clock() + LEAD_NS)
        run.until(lambda: len(target.requests()) > 250)
        decided = time.time_ns()
        run.conductor.stop("enough")
        run.until(run.left)
        assert run.process.returncode == 0
        last = max(request["at_ns"] for request in target.requests())
        print(f"last byte {(last - decided) / MS:.1f} ms after the decision")
        assert last - decided < SECOND // 5
        assert run.state == "stopped" and run.conductor.beats()["w0"].reason == "enough"
    times = sorted(request["at_ns"] for request in target.requests())
    for first in range(len(times)):
        assert sum(1 for at in times[first : first + 600] if at - times[first] < SECOND) <= 400 + 40 + 5
    result, _ = summary.read(run.dir)
    assert result.balanced
    assert result.failures["shed_rate"] > 300 and result.failures["shed_stop"] > 0
    assert result.answered == len(times) == len(target.shots())


def test_without_renewal_the_load_stops_by_the_lease(tmp_path: Path, target: Target) -> None:
    settings = asked(tmp_path, target, even(2000, 200.0), lease_ns=SECOND)
    with Run(settings) as run:
        run.conductor.step(0, 1.0, run.clock() + LEAD_NS)
        run.until(lambda: len(target.requests()) > 20)
        expires = run.conductor.renew()
        run.until(run.left, renew=False)
        assert run.process.returncode == 1
        assert "lease" in run.conductor.beats()["w0"].reason
    last = max(request["at_ns"] for request in target.requests())
    assert expires - SECOND // 2 < last < expires + 100 * MS
    result, _ = summary.read(run.dir)
    assert result.balanced and result.failures.keys() == {"shed_stop"}
    with FileBus(run.dir).reader(topics.OUTCOMES, "w0") as reader:
        ends = list(records_of(reader, RecordType.END))
    assert [end.reason for end in ends] == ["failed"]


def test_steps_up_down_and_end(tmp_path: Path, target: Target) -> None:
    settings = asked(tmp_path, target, even(400, 200.0, per_session=400), laps=0, copies=1)
    with Run(settings, laps=0) as run:
        begin = run.clock() + LEAD_NS
        run.conductor.step(0, 3.0, begin)
        run.conductor.step(1, 1.0, begin + 600 * MS)
        run.conductor.end(begin + SECOND)
        beats = []
        run.until(lambda: beats.append(run.conductor.beats()["w0"]) or run.left())  # type: ignore[func-returns-value]
        assert run.process.returncode == 0
    outcomes = outcomes_of(run.dir)
    assert max(o.due_ns for o in outcomes) < begin + SECOND
    for outcome in outcomes:
        assert outcome.step == (0 if outcome.due_ns < begin + 600 * MS else 1)
        cut = outcome.copy > 0 and outcome.step == 1
        assert outcome.failure == (Failure.SHED_STEP if cut else Failure.NONE)
    assert len(outcomes) == 600, "copies 1 and 2 are planned to the end, and shed from the step down on"
    assert len(target.requests()) == 3 * 120 + 80
    assert summary.read(run.dir)[0].balanced
    assert any(beat.state == "running" and beat.sent for beat in beats)


# ---------------------------------------------------------------------------- live values

TOKEN, COOKIE, ORDER = Place(PlaceKind.JSON, "$.token"), Place(PlaceKind.COOKIE, "sid"), Place(PlaceKind.JSON, "$.id")
BEARER = Place(PlaceKind.HEADER, "authorization", "Bearer ")
ROUTES = ("POST /orders", "GET /orders/{id}")
FLOWS = [
    *(Flow("POST /login", TOKEN, route, BEARER) for route in ROUTES),
    *(Flow("POST /login", COOKIE, route, COOKIE) for route in ROUTES),
    Flow("POST /orders", ORDER, "GET /orders/{id}", Place(PlaceKind.PATH, "1")),
]
JSON = (("Content-Type", "application/json"),)


def shopping(session: int, offset: int, *, gap: int = MS) -> list[Stamped]:
    """Log in, order, look at it: as recorded, with a masked password and values that are long gone."""
    token, sid, order = f"token-{session}", f"cookie-{session}", f"order{session}"
    sent = [("Authorization", f"Bearer {token}"), ("Cookie", f"sid={sid}")]
    common: dict[str, Any] = {"session": session, "session_start_ns": offset}
    return [
        exchange(
            session * 3, offset, method="POST", target="/login", body=b'{"user":"u%d","password":"****"}' % session,
            fields=JSON, answer=json.dumps({"token": token}).encode(), answer_bytes=36,
            answer_fields=[*JSON, ("Set-Cookie", f"sid={sid}; Path=/")], **common,
        ),
        exchange(
            session * 3 + 1, offset + gap, method="POST", target="/orders", fields=[*sent, *JSON], body=b"{}",
            status=201, answer=json.dumps({"id": order}).encode(), answer_fields=JSON, **common,
        ),
        exchange(
            session * 3 + 2, offset + 2 * gap, target=f"/orders/{order}", fields=sent, route="GET /orders/{id}",
            answer=json.dumps({"id": order}).encode(), answer_fields=JSON, **common,
        ),
    ]  # fmt: skip


@pytest.mark.parametrize("known", [True, False])
def test_live_values_stand_for_recorded_ones(tmp_path: Path, target: Target, known: bool) -> None:
    """Requests that come before their values are handed out wait for them; without accounts they are shed."""
    rows = "".join(f"a{n},pw-a{n}\n" for n in range(9))
    (tmp_path / "accounts.csv").write_text("user,password\n" + (rows if known else "nobody,wrong\n"))
    exchanges = sorted(
        (one for session in range(20) for one in shopping(session, session * 10 * MS)), key=lambda one: one.offset_ns
    )
    settings = asked(
        tmp_path, target, exchanges, copies=2, allow_unsafe=True, accounts=tmp_path / "accounts.csv", flows=FLOWS
    )
    result = app.run(settings)
    assert result.planned == 120 and result.balanced
    if known:
        assert result.statuses == {"200": 80, "201": 40}, result
        assert result.differing == 0
        assert len({request["path"] for request in target.requests() if request["method"] == "GET"}) == 40
        held = [o for o in outcomes_of(settings.runs / "r1") if o.sent_ns > o.due_ns + MS // 10]
        assert all(o.done_ns - o.due_ns >= o.pool_wait_ns for o in held)
    else:
        # The negative control: logins fail, so nothing is handed out, and what needs it is never sent.
        assert result.statuses == {"401": 40}
        assert result.failures == {"shed_flow": 80}
        assert {request["path"] for request in target.requests()} == {"/login"}


# ---------------------------------------------------------------------------- what is refused


def test_what_must_not_run_is_refused_before_the_first_shot(tmp_path: Path, target: Target) -> None:
    mixed = [exchange(n, n * MS, method=method) for n, method in enumerate(("GET", "POST", "DELETE"))]
    settings = asked(tmp_path, target, mixed)
    for changed, says in (
        ({}, r"2 of 3 requests may change state"),
        ({"allow_unsafe": True, "target": "http://169.254.169.254"}, "link-local"),
        ({"allow_unsafe": True, "target": "https://127.0.0.1"}, "https"),
        ({"allow_unsafe": True, "allowed_targets": ("staging",)}, "allow-list"),
        ({"allow_unsafe": True, "refused_sources": (f"127.0.0.1:{target.port}",)}, "captured"),
    ):
        with pytest.raises(ConfigError, match=says):
            app.run(msgspec.structs.replace(settings, **changed))
    assert target.requests() == []
    # The worker judges by itself, whoever started it.
    worker = app.worker_settings(settings, "r1", 0, 0, "")
    for more in ({}, {"allow_unsafe": True, "pinned": "169.254.169.254"}):
        process = app.spawn_plain("w0", app.worker_argv(), app.first_line(msgspec.structs.replace(worker, **more)))
        assert process.wait(10) == 2
    result = app.run(msgspec.structs.replace(settings, skip_unsafe=True))
    assert (result.planned, result.statuses) == (1, {"200": 1})
    assert [request["method"] for request in target.requests()] == ["GET"]


def test_nobody_listening_is_an_outcome(tmp_path: Path, target: Target) -> None:
    settings = asked(tmp_path, target, even(20, 200.0))
    result = app.run(msgspec.structs.replace(settings, target="http://127.0.0.1:1"))
    assert result.failures == {"connect": 20} and result.balanced
    assert (result.sent, result.failed, result.answered) == (20, 20, 0)


def test_recover_leaves_a_living_writer_alone_and_is_idempotent(tmp_path: Path) -> None:
    bus = FileBus(tmp_path)
    keys = tuple(ShotKey(bytes([n] * 16), 0, 0, 0, "GET /", 1000 + n) for n in range(10))
    claims = bus.writer(topics.CLAIMS, "w0", Manifest(topics.CLAIMS, "w0", "r", 1, "t"))
    claims.write_records((Claim("r", "w0", 0, keys),))
    writer = bus.writer(topics.OUTCOMES, "w0", Manifest(topics.OUTCOMES, "w0", "r", 1, "t"))
    assert isinstance(writer, LogWriter)
    assert recover(tmp_path) == 0
    claims.close()
    writer.close()
    with bus.writer(topics.CONTROL, "conductor", Manifest(topics.CONTROL, "conductor", "r", 1, "t")):
        assert recover(tmp_path) == 0, "its conductor may start the worker once more"
    assert recover(tmp_path) == 10
    assert recover(tmp_path) == 0
    assert {name_of(o) for o in outcomes_of(tmp_path)} == {name_of(key) for key in keys}
    assert {o.failure for o in outcomes_of(tmp_path)} == {Failure.UNKNOWN}
    assert summary.read(tmp_path)[0].balanced


def test_recover_leaves_a_worker_alone_that_ends_meanwhile(tmp_path: Path) -> None:
    bus = FileBus(tmp_path)
    manifest = Manifest(topics.CLAIMS, "w0", "r", 1, "t")
    books = Books(bus, manifest, "r", "w0", Kind.STRESS)
    books.claim((ShotKey(bytes(16), 0, 0, 0, "GET /", 1000),))

    class LooksTooEarly(FileBus):
        """Its worker ends behind the question whether it has."""

        def whole(self, topic: str, partition: str) -> bool:
            found = super().whole(topic, partition)
            if topic == topics.OUTCOMES and not found:
                books.outcome(ShotKey(bytes(16), 0, 0, 0, "GET /", 1000), Failure.NONE, status=200)
                books.end(2000, "done")
            return found

    assert recover(LooksTooEarly(tmp_path)) == 0
    assert [o.failure for o in outcomes_of(tmp_path)] == [Failure.NONE] and not unfinished(bus)


def test_recover_ends_the_claims_of_a_worker_that_died_between_its_two_ends(tmp_path: Path) -> None:
    bus = FileBus(tmp_path)
    books = Books(bus, Manifest(topics.CLAIMS, "w0", "r", 1, "t"), "r", "w0", Kind.STRESS)
    books.claim((ShotKey(bytes(16), 0, 0, 0, "GET /", 1000),))
    books.outcome(ShotKey(bytes(16), 0, 0, 0, "GET /", 1000), Failure.NONE, status=200)
    books.flush(2000, force=True)
    end_partition(books._outcomes, topics.OUTCOMES, "r", "w0", "done")
    books._claims.close()
    assert unfinished(bus)
    assert recover(bus) == 0
    assert not unfinished(bus)


def test_worker_settings_refuse_unknown_fields() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"run_id": "r", "nonsense": 1}', type=WorkerSettings)
