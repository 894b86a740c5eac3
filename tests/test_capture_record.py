"""Recording live traffic end to end: a real server, real clients, the recorder a process of its own."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from bus.logfile import LogReader, LogWriter, account_of
from bus.ports import BusError, BusFull
from capture import doctor
from capture.bpf import Selection
from capture.choose import choose, running_interfaces
from capture.record import record, stress
from capture.settings import RecordSettings
from capture.source_ring import RingSource, explained, open_error
from capture.writer import QueuedWriter
from livefire_shadow.marker import HEADER
from wire import codec
from wire.account import Account
from wire.codec import RecordType
from wire.config import ConfigError
from wire.records import Audit, Exchange, Manifest

DEADLINE_S = 30.0
ROOT = Path(__file__).resolve().parent.parent
_refused = open_error()
needs_ring = pytest.mark.skipif(_refused is not None, reason=f"no packet ring: {explained(_refused or OSError())}")
BOTH = [pytest.param("ring", marks=needs_ring), "proxy"]

DRIVER = """
import json, select, sys
import msgspec
from bus.ports import BusError
from capture.app import record
from capture.settings import RecordSettings
from wire.config import ConfigError
settings = msgspec.convert(json.loads(sys.argv[1]), RecordSettings)
stop = lambda: bool(select.select([0], [], [], 0)[0])
progress = lambda p: print(json.dumps(msgspec.to_builtins(p)), flush=True)
try:
    print(json.dumps(record(settings, None, b"k" * 32, stop, progress).as_json()), flush=True)
except (BusError, ConfigError) as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one segment
    server: Counting

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.seen.append(self.path)
        body = f"answer to {self.path} ".encode() * 20
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))

    def log_message(self, *_: object) -> None:
        pass


class Counting(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.seen: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, *_: object) -> None:
        pass  # clients are cut off on purpose here


@pytest.fixture
def server() -> Iterator[Counting]:
    with Counting() as counting:
        thread = threading.Thread(target=counting.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield counting
        counting.shutdown()
        thread.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def settings_for(kind: str, server: Counting, to: Path, **more: Any) -> tuple[RecordSettings, int]:
    """And the port that clients are to use."""
    port = server.server_address[1]
    if kind == "ring":
        return RecordSettings(to=str(to), interfaces=("lo",), ports=(port,), source="ring", **more), port
    listen = free_port()
    return RecordSettings(to=str(to), proxies=((f"127.0.0.1:{listen}", f"127.0.0.1:{port}"),), **more), listen


class Recorder:
    def __init__(self, settings: RecordSettings) -> None:
        command = [sys.executable, "-c", DRIVER, msgspec.json.encode(settings).decode()]
        path = os.pathsep.join((str(ROOT), str(ROOT / "sdk" / "src")))
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        assert self.process.stdout is not None
        self.first = self.process.stdout.readline()
        if not self.first:
            raise AssertionError(self.process.communicate()[1])

    def stop(self) -> dict[str, Any]:
        out, err = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0, err
        account: dict[str, Any] = json.loads(out.splitlines()[-1])
        return account

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


@contextmanager
def recording(settings: RecordSettings) -> Iterator[Recorder]:
    recorder = Recorder(settings)
    try:
        yield recorder
    finally:
        if recorder.process.poll() is None:
            recorder.kill()


def get(port: int, paths: Sequence[str], headers: dict[str, str] | None = None) -> None:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    for path in paths:
        client.request("GET", path, headers=headers or {})
        assert client.getresponse().read().startswith(b"answer to " + path.encode())
    client.close()


def exchanges(path: Path) -> list[Exchange]:
    found: list[Exchange] = []
    with LogReader(path) as reader:
        while messages := reader.read():
            for message in messages:
                batch = codec.decode(message.data)
                if batch.header.type == RecordType.EXCHANGE:
                    found.extend(batch.records)
        assert reader.corrupt_frames == 0
    return found


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def target(exchange: Exchange) -> str:
    return exchange.request.head.split(b" ")[1].decode()


# ---------------------------------------------------------------------------- the whole way


@pytest.mark.parametrize("kind", BOTH)
def test_all_that_the_server_saw_is_in_the_file(kind: str, server: Counting, tmp_path: Path) -> None:
    file = tmp_path / "live.lf"
    settings, port = settings_for(kind, server, file)
    with recording(settings) as recorder:
        threads = [threading.Thread(target=get, args=(port, [f"/{n}/{i}" for i in range(25)])) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        account = recorder.stop()
    found = exchanges(file)
    assert len(server.seen) == 150
    assert sorted(map(target, found)) == sorted(server.seen)
    for exchange in found:
        assert exchange.response is not None and exchange.response.status == 200
        assert exchange.response.body == f"answer to {target(exchange)} ".encode() * 20
        assert exchange.server == f"127.0.0.1:{server.server_address[1]}"
        assert exchange.request_start_ns <= exchange.response_start_ns <= exchange.response_end_ns
        assert not exchange.faults
    assert account["balanced"] and account == account_of(file).as_json()
    assert account["ledgers"]["messages"]["emitted"] == 300
    assert json.loads(recorder.first)["source"].startswith(kind)
    with LogReader(file) as reader:
        while reader.read():
            pass
        assert reader.ended and reader.manifest is not None and reader.manifest.inputs == settings_inputs(settings)


def settings_inputs(settings: RecordSettings) -> tuple[str, ...]:
    return tuple("=".join(pair) for pair in settings.proxies) or settings.interfaces


@pytest.mark.parametrize("kind", BOTH)
def test_who_tails_the_file_sees_exchanges_soon(kind: str, server: Counting, tmp_path: Path) -> None:
    file = tmp_path / "live.lf"
    settings, port = settings_for(kind, server, file)
    with recording(settings):
        get(port, ["/now"])
        until(lambda: exchanges(file))
        assert len(exchanges(file)) == 1  # while it records: nothing waits for an end or for more traffic


@pytest.mark.parametrize("kind", BOTH)
def test_stress_traffic_is_left_out_and_counted(kind: str, server: Counting, tmp_path: Path) -> None:
    file = tmp_path / "live.lf"
    settings, port = settings_for(kind, server, file)
    with recording(settings) as recorder:
        get(port, ["/a", "/b", "/c"], {HEADER.upper(): "v1;whatever"})
        get(port, ["/d"])
        account = recorder.stop()
    assert [target(e) for e in exchanges(file)] == ["/d"]
    assert len(server.seen) == 4
    messages, bytes_ = account["ledgers"]["messages"], account["ledgers"]["bytes"]
    assert messages["intentional"] == {"stress": 6} and messages["drops"] == {} and messages["seen"] == 8
    assert bytes_["intentional"]["stress"] > 1000 and account["balanced"]


def test_stress_traffic_is_kept_when_asked_for(server: Counting, tmp_path: Path) -> None:
    file = tmp_path / "live.lf"
    settings, port = settings_for("proxy", server, file, keep_stress=True)
    with recording(settings) as recorder:
        get(port, ["/a"], {HEADER: "v1;whatever"})
        recorder.stop()
    assert [target(e) for e in exchanges(file)] == ["/a"]
    assert stress(b"GET / HTTP/1.1\r\nX: Livefire-Marker: no\r\n\r\n") == ""


def test_it_ends_by_itself_after_its_time(server: Counting, tmp_path: Path) -> None:
    settings, port = settings_for("proxy", server, tmp_path / "live.lf", for_ns=400_000_000)
    with recording(settings) as recorder:
        get(port, ["/a"])
        out, _ = recorder.process.communicate(timeout=DEADLINE_S)
    assert json.loads(out.splitlines()[-1])["balanced"]
    assert len(exchanges(tmp_path / "live.lf")) == 1


def test_what_is_open_at_the_end_is_written_as_unfinished(server: Counting, tmp_path: Path) -> None:
    file = tmp_path / "live.lf"
    settings, port = settings_for("proxy", server, file)
    with recording(settings) as recorder, socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST /half HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nonly this")
        until(lambda: account_of(file).ledger("messages").in_flight == 1)
        account = recorder.stop()
    (found,) = exchanges(file)
    assert target(found) == "/half" and found.response is None and "unfinished" in found.faults
    assert account["balanced"] and account["ledgers"]["messages"]["in_flight"] == 0


# ---------------------------------------------------------------------------- what goes wrong


def test_a_proxy_ends_with_its_recorder(server: Counting, tmp_path: Path) -> None:
    settings, port = settings_for("proxy", server, tmp_path / "live.lf")
    with recording(settings) as recorder:
        get(port, ["/a"])
        recorder.kill()

    def refused() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return True
        return False

    until(refused)
    assert refused()


class Stalled(LogWriter):
    """A disk that does not answer until it is told to."""

    def __init__(self, path: Path) -> None:
        self.go = threading.Event()
        self.go.set()
        super().__init__(path, Manifest("raw", "0", "R", 1, "test"))

    def write(self, data: bytes) -> int:
        assert self.go.wait(DEADLINE_S)
        return super().write(data)


def test_a_stalled_disk_fills_a_bounded_queue_and_the_caller_is_told(tmp_path: Path) -> None:
    clock = [1]
    log = Stalled(tmp_path / "x.lf")
    writer = QueuedWriter(log, buffer_ns=2_000_000_000, max_bytes=10_000, monotonic_ns=lambda: clock[0])
    log.go.clear()
    records = [Audit(1, "x" * 990, "y")]
    written = 0
    with pytest.raises(BusFull, match="slower than the traffic"):
        while True:
            writer.write_records(records)
            written += 1
    assert 8 <= written <= 10 and writer.waiting_bytes <= 10_000
    log.go.set()
    until(lambda: not writer.waiting_bytes)
    log.go.clear()
    writer.write_records(records)
    until(lambda: writer._oldest_ns)
    clock[0] += 2_000_000_001
    with pytest.raises(BusFull):
        writer.write_records(records)  # there is room, but what waits is older than the buffer may be
    log.go.set()
    writer.end()
    with LogReader(log.path) as reader:
        batches = [codec.decode(message.data) for message in reader.read()]
        assert reader.ended
    assert sum(batch.header.type == RecordType.AUDIT for batch in batches) == written + 1
    assert batches[-1].records[0].count == written + 1
    assert [b.header.compression for b in batches if b.header.type == RecordType.AUDIT] == [1] * (written + 1)


class Narrow(LogWriter):
    """A disk on which there is room for small messages alone."""

    def write(self, data: bytes) -> int:
        if len(data) > 300:
            raise BusFull("no room on the disk")
        return super().write(data)


def test_behind_a_batch_that_found_no_room_nothing_is_written(tmp_path: Path) -> None:
    """Its counts are lost with it: those of a later one, which fits, would end what never began."""
    path = tmp_path / "x.lf"
    log = Narrow(path, Manifest("raw", "0", "r", 1, "w"))
    writer = QueuedWriter(log, buffer_ns=10_000_000_000, monotonic_ns=lambda: 1)
    writer.write_records([Audit(1, "before", "y")])
    writer.write_records([Audit(1, os.urandom(600).hex(), "y")])
    writer.write_records([Audit(1, "behind", "y")])
    writer._give_up.set()  # the end does not wait for room
    with pytest.raises(BusFull, match="what came last is not in the file"):
        writer.end()
    assert writer.lost_batches == 2
    with LogReader(path) as reader:
        batches = [codec.decode(message.data) for message in reader.read()]
        assert not reader.ended
    assert [batch.records[0].who for batch in batches[1:]] == ["before"]


def test_a_file_that_cannot_be_gone_on_with_is_refused(server: Counting, tmp_path: Path) -> None:
    class Masks:
        counts: ClassVar[dict[str, int]] = {}

        def exchange(self, exchange: Exchange, *_: bytes) -> Exchange:
            return exchange

        def message(self, head: bytes, block: bytes, body: bytes) -> tuple[bytes, bytes]:
            return head, body

    def begin(masker: Masks | None) -> None:
        settings, _ = settings_for("proxy", server, file, for_ns=1)
        record(settings, masker, b"k" * 32, lambda: False, anchor_ns=0)

    file = tmp_path / "whole.lf"
    begin(Masks())
    with pytest.raises(BusError, match="is whole already"):
        begin(Masks())
    file = tmp_path / "masked.lf"
    LogWriter(file, Manifest("raw", "0", "R", 1, "test", masked=True)).close()
    with pytest.raises(BusError, match="begun masked"):
        begin(None)
    begin(Masks())
    assert account_of(file).notes["blind"] == 1


@pytest.mark.patches
@needs_ring
def test_a_ring_that_loses_packets_silently_unbalances_the_recording(server: Counting, tmp_path: Path) -> None:
    class Lossy(RingSource):
        def _walk(self, sink: Any) -> int:
            lost = self.read == 0
            given = super()._walk(Nothing() if lost else sink)
            self.read -= given if lost else 0
            return given

    class Nothing:
        account = Account()
        lane = None

        def packet(self, *_: object) -> None: ...

        def kernel_dropped(self, count: int) -> None: ...

    file = tmp_path / "live.lf"
    settings, port = settings_for("ring", server, file)
    source = Lossy("lo", Selection(ports=(port,)))
    get(port, ["/a"])
    asked = iter([False] * 3)
    anchor_ns = time.time_ns() - time.monotonic_ns()
    account = record(settings, None, b"k" * 32, lambda: next(asked, True), anchor_ns=anchor_ns, source=source)
    assert not account.balanced and account.ledger("packets").difference > 0
    assert not account_of(file).balanced


# ---------------------------------------------------------------------------- choosing, doctor


def test_the_source_is_chosen_and_the_choice_told() -> None:
    no = lambda _: PermissionError(1, "no")  # noqa: E731
    yes = lambda _: None  # noqa: E731
    proxies = (("127.0.0.1:1", "127.0.0.1:2"),)

    def chosen(refused: Any, **settings: Any) -> str:
        choice = choose(RecordSettings(to="x", **settings), refused)
        assert choice.why and "\n" not in choice.why
        return choice.kind

    assert chosen(yes) == "ring"
    assert chosen(yes, proxies=proxies) == "proxy"  # clients are going to connect to it
    assert chosen(yes, proxies=proxies, source="auto") == "ring"
    assert chosen(no, proxies=proxies, source="auto") == "proxy"
    assert chosen(yes, proxies=proxies, source="ring") == "ring"
    for refused in ({"source": "given"}, {"source": "ring", "proxies": proxies}, {"source": "auto"}):
        with pytest.raises(ConfigError, match=r"CAP_NET_RAW.*LISTEN=UPSTREAM"):
            chosen(no, **refused)
    with pytest.raises(ConfigError, match="LISTEN=UPSTREAM"):
        chosen(yes, source="proxy")


def test_the_doctor_tells_each_lack_with_a_remedy(tmp_path: Path) -> None:
    findings = doctor.findings()
    assert [f.name for f in findings] == ["packet ring", "capabilities", "packet path"]
    assert all(f.good or f.remedy for f in findings)
    assert findings[0].good == (_refused is None)
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapEff:\t0000000000002000\n")
    assert doctor.capabilities(status).says == "cap_net_raw"
    status.write_text("CapEff:\t0000000000000000\n")
    assert not doctor.capabilities(status).good


def test_interfaces_that_are_down_or_of_unknown_kind_are_left_out(tmp_path: Path) -> None:
    for name, flags, kind in (
        ("eth0", "0x1003", 1),
        ("eth1", "0x1002", 1),
        ("wlan", "0x1003", 802),
        ("tun", "0x1", 65534),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "flags").write_text(flags)
        (tmp_path / name / "type").write_text(str(kind))
    assert running_interfaces(tmp_path) == ("eth0", "tun")
    assert running_interfaces(tmp_path / "none") == ("lo",)
