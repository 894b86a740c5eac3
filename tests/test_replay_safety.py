"""What must hold by itself, with nobody else to hold it: the firer without a feeder, the claim before the shot, the files."""

from __future__ import annotations

import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from http_target import Target
from recordings import SECOND, even, exchange, make_clean

from bus.logfile import FileBus, LogReader, LogWriter
from replay import app, pipes, summary
from replay.book import unknown
from replay.clock import clock_of
from replay.feeder import Feeder
from replay.firerlink import FirerLink
from replay.identity import Identities
from replay.recording import Recording
from replay.recover import recover
from replay.schedule import Item, Planned
from replay.settings import ReplaySettings
from replay.steps import Step, Timeline
from wire import codec
from wire.config import ConfigError
from wire.records import Claim, Failure, Kind, Manifest, ShotKey, Stamped

KEY = bytes(range(1, 33))
MS = 1_000_000


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with Target(tmp_path) as running:
        yield running


class Alone:
    """A firer that hears the test in the place of a feeder."""

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        anchor = app.anchor_ns()
        self.now = clock_of(anchor)
        self.failures: dict[int, Failure] = {}
        self.link = FirerLink(
            pipes.FirerSettings(
                anchor_ns=anchor, address=address, port=port, refused_sources=(), named_sources=(), run_id="r1",
                key_id="k1", key_hex=KEY.hex(), marker_lifetime_s=60, max_rate=5000.0, max_open=100,
                timeout_ns=10 * SECOND, late_ns=SECOND, grace_ns=SECOND // 2,
            )
        )  # fmt: skip

    def shot(self, serial: int, ready_ns: int, last: bytes = b"\r\n") -> None:
        self.link.shot(serial, ready_ns, 0, b"GET /%d HTTP/1.1\r\nHost: t\r\n" % serial, last)

    def until(self, check: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not check():
            assert time.monotonic() < deadline, "it never happened"
            self.link.read(self._results, lambda serial, head, body: None)
            self.link.writer.flush()
            time.sleep(0.002)

    def _results(self, payload: bytes) -> None:
        for row in pipes.RESULT.iter_unpack(payload):
            self.failures[row[0]] = pipes.FAILURES[row[6]]

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()


@pytest.mark.parametrize("how", ["lease", "stop"])
def test_the_firer_alone_keeps_the_lease_and_a_stop_that_is_to_come(target: Target, how: str) -> None:
    with Alone(target.port) as firer:
        firer.until(lambda: firer.link.ready)
        end = firer.now() + 300 * MS
        firer.link.lease(end if how == "lease" else end + 60 * SECOND)
        if how == "stop":
            firer.link.stop_at(end)
        for serial in range(1, 121):
            firer.shot(serial, end - 300 * MS + serial * 5 * MS)
        firer.link.send_shots()
        firer.until(lambda: firer.link.bye is not None)
        said = firer.link.bye
    assert said == {"lease": "the lease ran out", "stop": "stopped"}[how]
    arrived = [request["at_ns"] for request in target.requests()]
    assert 30 < len(arrived) < 80 and max(arrived) < end + 50 * MS
    shed = [serial for serial, failure in firer.failures.items() if failure is Failure.SHED_STOP]
    assert len(firer.failures) == 120 and len(shed) >= 120 - len(arrived)
    assert all(serial > 45 for serial in shed), "only what was due after it"


def test_nothing_leaves_without_a_lease(target: Target) -> None:
    with Alone(target.port) as firer:
        firer.shot(1, firer.now())
        firer.link.send_shots()
        firer.until(lambda: firer.link.bye is not None)
    assert firer.failures == {1: Failure.SHED_STOP} and target.requests() == []


def test_a_request_that_is_half_sent_is_cut_off_by_a_stop() -> None:
    """The server reads on after the stop: no byte of what was not sent by then may come."""
    body = b"x" * (32 << 20)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        with Alone(server.getsockname()[1]) as firer:
            firer.until(lambda: firer.link.ready)
            firer.link.lease(firer.now() + 60 * SECOND)
            firer.shot(1, firer.now(), b"Content-Length: %d\r\n\r\n" % len(body) + body)
            firer.link.send_shots()
            accepted: list[socket.socket] = []
            threading.Thread(target=lambda: accepted.append(server.accept()[0]), daemon=True).start()
            firer.until(lambda: firer.link.gauge is not None and firer.link.gauge.sent == 1)
            firer.link.stop(0)
            # Cut off at once, or else in the half second of grace, while the server reads on.
            patience = time.monotonic() + 0.25
            firer.until(lambda: 1 in firer.failures or time.monotonic() > patience)
            received = 0
            try:
                while data := accepted[0].recv(1 << 20):
                    received += len(data)
            except ConnectionResetError:
                pass
            accepted[0].close()
            firer.until(lambda: firer.link.bye is not None)
    assert received < len(body) and firer.failures == {1: Failure.GIVEN_UP}


def test_the_firer_judges_its_address_again() -> None:
    firer = Alone(80, "169.254.169.254")
    assert firer.link.process.wait(10) == 2
    firer.link.close()


class Order:
    """Books and a firer that note in which order they are used."""

    def __init__(self) -> None:
        self.used: list[str] = []

    def claim(self, keys: object) -> None:
        self.used.append("claim")

    def outcome(self, *args: object, **more: object) -> None:
        self.used.append("outcome")

    def shot(self, *args: object) -> None:
        self.used.append("shot")

    def send_shots(self) -> None:
        self.used.append("send")

    def cut(self, shot: Planned) -> bool:
        return shot.copy == 1


def test_a_slice_is_claimed_before_any_of_it_goes_to_the_firer(tmp_path: Path, target: Target) -> None:
    """Else a worker that is killed in between leaves shots that were sent and that nobody knows of."""
    asked = settings(tmp_path, target, [exchange(1, 0)])
    order: Any = Order()
    timeline = Timeline()
    timeline.add(Step(0, 0, 2.0))
    worker = app.worker_settings(asked, "r1", 0, SECOND, "")
    feeder = Feeder(
        worker, FileBus(tmp_path), order, order, timeline, Identities(()), None, order, order, b"t", lambda: 0,
    )  # fmt: skip
    item = Item(exchange(1, 0))
    feeder._slice([Planned(5, number, number, 0, 0, 0.5, item) for number in range(3)])
    assert order.used == ["claim", "shot", "outcome", "shot", "send"]


def settings(tmp_path: Path, target: Target, exchanges: list[Stamped], **more: Any) -> ReplaySettings:
    recording = make_clean(tmp_path / "clean.lf", exchanges)
    return ReplaySettings(
        recording=recording, target=target.url, runs=tmp_path / "runs", key_id="k1", key_hex=KEY.hex(),
        **{"run_id": "r1", "spread_ns": 0, **more},
    )  # fmt: skip


def test_caps_are_of_all_workers_together(tmp_path: Path, target: Target) -> None:
    asked = settings(tmp_path, target, [exchange(1, 0)], workers=3, max_rate=1000.0, max_open=100)
    workers = [app.worker_settings(asked, "r1", index, SECOND, "") for index in range(3)]
    assert sum(worker.max_rate for worker in workers) == pytest.approx(1000)
    assert 90 <= sum(worker.max_open for worker in workers) <= 100


def test_a_run_leaves_no_key_and_no_account_behind(tmp_path: Path, target: Target) -> None:
    accounts = tmp_path / "accounts.csv"
    accounts.write_text("user,password\nload-1,hunter2-of-load-1\n")
    asked = settings(tmp_path, target, even(20, 200.0), accounts=accounts)
    assert app.run(asked).answered == 20
    run_dir = tmp_path / "runs" / "r1"
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert len(files) >= 5
    for path in files:
        with_bodies = path.read_bytes()
        if path.suffix == ".lf":  # bodies of batches are compressed
            with LogReader(path) as reader:
                while messages := reader.read():
                    with_bodies += repr([codec.decode(m.data).records for m in messages]).encode()
        for secret in (KEY, KEY.hex().encode(), b"hunter2"):
            assert secret not in with_bodies, path


def recorded_at(tmp_path: Path, servers: tuple[str, ...]) -> Path:
    """A clean recording that says whose traffic it holds."""
    path = tmp_path / "of-production.lf"
    with LogReader(make_clean(tmp_path / "made.lf", even(5, 100.0))) as reader, \
            LogWriter(path, msgspec.structs.replace(reader.manifest, servers=servers)) as writer:  # fmt: skip
        while messages := reader.read():
            for message in messages:
                if codec.decode_header(message.data).type not in (codec.RecordType.MANIFEST, codec.RecordType.END):
                    writer.write(message.data)
        writer.end(sorted=True)
    return path


def test_a_name_that_leads_to_where_it_was_recorded_is_refused(tmp_path: Path, target: Target) -> None:
    production = f"127.0.0.1:{target.port}"
    asked = settings(tmp_path, target, even(5, 100.0))
    asked = msgspec.structs.replace(asked, recording=recorded_at(tmp_path, ("10.0.0.1:80", production)))
    by_name = msgspec.structs.replace(asked, target=f"http://localhost:{target.port}")
    with pytest.raises(ConfigError, match=f"{production} is where the recording was captured"):
        app.run(by_name)
    assert target.requests() == [] and not (tmp_path / "runs").exists()
    # who writes the address itself means it
    assert app.run(asked).answered == 5
    # another server of the same name is none of them
    other = msgspec.structs.replace(by_name, recording=recorded_at_other(tmp_path), run_id="r2")
    assert app.run(other).answered == 5


def recorded_at_other(tmp_path: Path) -> Path:
    (tmp_path / "other").mkdir()
    return recorded_at(tmp_path / "other", ("10.0.0.1:80", "127.0.0.1:1"))


def test_sessions_begin_in_compressed_time(tmp_path: Path) -> None:
    """At speed 2 a session that was recorded from 10 s on begins after 5 s, and a step at 6 s is too late for it."""
    from replay.amplify import Draws
    from replay.schedule import Schedule

    recording = Recording(
        make_clean(
            tmp_path / "clean.lf",
            [
                exchange(n, (10 + n) * SECOND, session=1, session_start_ns=10 * SECOND, session_index=n)
                for n in range(6)
            ],
        )
    )
    timeline = Timeline()
    timeline.add(Step(0, 0, 1.0))
    timeline.add(Step(6 * SECOND, 1, 2.0))
    schedule = Schedule(recording.stamped, timeline, Draws(0, 1, 0), speed=2.0, spread_ns=0, laps=1, lap_ns=20 * SECOND)
    shots = schedule.take(60 * SECOND)
    assert [shot.start_ns for shot in shots] == [5 * SECOND] * 6
    assert {shot.copy for shot in shots} == {0}, "copy 1 would have begun before the step"


def books_of(folder: Path, claimed: list[ShotKey], settled: list[ShotKey]) -> Path:
    """The two books of a worker that left in order."""
    bus = FileBus(folder)
    with bus.writer("claims", "w0", Manifest("claims", "w0", "r1", 1, "test")) as writer:
        for at in range(0, len(claimed), 500):
            writer.write_records([Claim("r1", "w0", at, tuple(claimed[at : at + 500]))])
        writer.end()
    with bus.writer("outcomes", "w0", Manifest("outcomes", "w0", "r1", 1, "test")) as writer:
        for at in range(0, len(settled), 500):
            writer.write_records([unknown(key, "r1", "w0", Kind.STRESS) for key in settled[at : at + 500]])
        writer.end()
    return folder


def keys(count: int) -> list[ShotKey]:
    return [ShotKey(number.to_bytes(16, "big"), number % 3, 0, 0, "GET /", number) for number in range(count)]


def test_books_that_differ_do_not_balance_though_their_numbers_do(tmp_path: Path) -> None:
    k = keys(50)
    cases = {
        "same": (k, k[::-1], True, 0), "another": (k[1:], k[:-1], False, 0), "lost": (k, k[1:], False, 0),
        "claimed twice": ([*k, k[7]], [*k, k[7]], False, 2), "settled twice": (k, [*k[1:], k[9]], False, 1),
    }  # fmt: skip
    for name, (claimed, settled, balanced, twice) in cases.items():
        found, _ = summary.read(books_of(tmp_path / name, claimed, settled))
        assert (found.balanced, found.twice, found.planned) == (balanced, twice, len(claimed)), name


def test_reading_the_books_of_a_long_run_takes_little_memory(tmp_path: Path) -> None:
    count = 60_000
    folder = books_of(tmp_path / "r1", keys(count), keys(count))
    tracemalloc.start()
    try:
        assert summary.read(folder)[0].balanced
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        assert recover(folder) == 0
        assert tracemalloc.get_traced_memory()[1] < 4 << 20, "books in order are not read again"
    finally:
        tracemalloc.stop()
    print(f"{peak / count:.0f} bytes a shot")
    assert peak < 100 * count
