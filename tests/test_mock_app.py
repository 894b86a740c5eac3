import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

import livefire_shadow
from bus.logfile import FileBus, LogWriter
from bus.ports import BusError
from livefire_shadow import HEADER, sign
from livefire_shadow import Settings as ShadowSettings
from mock.app import Mock
from mock.settings import Settings
from wire.records import Baseline, Exchange, Fault, Manifest, Record, Request, Response, Stamped

KEY = b"0123456789abcdef"
SHADOW = ShadowSettings("mock", {"k1": KEY})
MS = 1_000_000


def marked() -> dict[str, str]:
    return {HEADER: sign("run-1", int(time.time()) + 60, "k1", KEY)}


def exchange(
    line: str = "POST /payments",
    body: bytes = b'{"amount": 5}',
    status: int = 200,
    fields: str = "Content-Type: application/json\r\n",
    answer: bytes = b'{"ok": 1}',
    latency_ms: int = 0,
    server: str = "10.0.0.1:443",
    **more: Any,
) -> Exchange:
    request = Request(f"{line} HTTP/1.1\r\nHost: pay.example\r\n\r\n".encode(), body, len(body))
    response = Response(status, f"HTTP/1.1 {status} Fine\r\n{fields}\r\n".encode(), answer, len(answer))
    end = 10**18 + latency_ms * MS
    return Exchange(
        b"e" * 16, b"s" * 16, b"c" * 16, "10.0.0.9:5000", server, request, more.pop("response", response),
        10**18, 10**18, end, end, **more,
    )  # fmt: skip


def recording(path: Path, *records: Record) -> str:
    with LogWriter(path, Manifest("raw", "0", "rec", 1, "test")) as writer:
        for record in records:
            writer.write_records([record])
        writer.end()
    return str(path)


@asynccontextmanager
async def serving(tmp_path: Path, *records: Record, **options: Any) -> AsyncIterator[tuple[TestClient[Any, Any], Mock]]:
    settings = Settings("127.0.0.1:0", (recording(tmp_path / "pay.lf", *records),), **options)
    mock = Mock(settings, SHADOW)
    async with TestClient(TestServer(mock.application()), auto_decompress=False) as client:
        yield client, mock


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()

    asyncio.run(main())


def test_the_recorded_answer_is_served_framed_anew(tmp_path: Path) -> None:
    fields = (
        "Content-Type: application/json; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
        "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nSet-Cookie: a=1\r\n"
        "Set-Cookie: b=2\r\nX-Own: v\r\nContent-Encoding: gzip\r\n"
    )

    async def test() -> None:
        async with serving(tmp_path, exchange(fields=fields, answer=b"packed bytes", status=201)) as (client, mock):
            answer = await client.post("/payments", data=b'{"amount": 6}', headers=marked())
            assert (answer.status, answer.reason, await answer.read()) == (201, "Fine", b"packed bytes")
            assert answer.headers["Content-Length"] == "12"
            assert answer.headers["Content-Encoding"] == "gzip" and answer.headers["X-Own"] == "v"
            assert answer.headers.getall("Set-Cookie") == ["a=1", "b=2"]
            assert not {"Transfer-Encoding", "X-Hop", "Keep-Alive"} & set(answer.headers)
            assert mock.counts()["served_by_status"] == {"201": 1}

    run(test)


def test_without_a_valid_marker_403_and_unmatched_501_all_counted(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, exchange()) as (client, _):
            good = marked()
            for headers in ({}, {HEADER: ""}, {HEADER: good[HEADER][:-1] + "x"}):
                for path in ("/payments", "/.livefire/audit"):
                    assert (await client.get(path, headers=headers)).status == 403
            assert (await client.get("/refunds/12345?a=secret", headers=good)).status == 501
            assert (await client.get("/.livefire/ready")).status == 200
            counts = await (await client.get("/.livefire/audit", headers=good)).json()
        assert counts["refused"] == {"missing": 2, "malformed": 4}
        assert (counts["unmatched"], counts["served"], counts["answers"]) == (1, 0, 1)
        assert counts["unmatched_requests"] == {"GET /refunds/{}?a": 1}

    run(test)


def test_empty_answers_and_head(tmp_path: Path) -> None:
    async def test() -> None:
        records = (
            exchange("DELETE /a", b"", 204, "", b""),
            exchange("GET /b", b"", 304, 'ETag: "x"\r\n', b""),
            exchange("HEAD /c", b"", 200, "Content-Length: 123\r\n", b""),
        )
        async with serving(tmp_path, *records) as (client, _):
            assert (await client.delete("/a", headers=marked())).status == 204
            not_modified = await client.get("/b", headers=marked())
            assert (not_modified.status, not_modified.headers["ETag"]) == (304, '"x"')
            head = await client.head("/c", headers=marked())
            assert (head.status, head.headers["Content-Length"]) == (200, "123")
            # The connection is still in step.
            assert (await client.delete("/a", headers=marked())).status == 204

    run(test)


def test_recorded_latency_is_reproduced_and_can_be_turned_off(tmp_path: Path) -> None:
    async def test() -> None:
        for factor, latency_ms, at_least, at_most in ((1.0, 200, 0.2, 60.0), (0.0, 20_000, 0.0, 19.9)):
            (tmp_path / "pay.lf").unlink(missing_ok=True)
            async with serving(tmp_path, exchange(latency_ms=latency_ms), latency_factor=factor) as (client, _):
                await client.get("/.livefire/ready")
                started = time.perf_counter()
                await client.post("/payments", data=b"{}", headers=marked())
                assert at_least <= time.perf_counter() - started + 0.001 <= at_most + 0.001

    run(test)


def test_a_clean_recording_serves_too(tmp_path: Path) -> None:
    made = exchange()
    assert made.response is not None
    baseline = Baseline(200, 0, made.response.head, b"whole", 5, b"")
    cut = Baseline(200, 0, made.response.head, b"x" * 65_536, 70_000, b"")

    async def test() -> None:
        stamped = [Stamped(b"e" * 16, b"s" * 16, "POST /payments", 0, made.request, b) for b in (baseline, cut)]
        async with serving(tmp_path, *stamped) as (client, mock):
            answer = await client.post("/payments", data=b"{}", headers=marked())
            assert await answer.read() == b"whole"
            assert (mock.counts()["answers"], mock.counts()["unusable"]) == (1, {"incomplete": 1})

    run(test)


def test_what_cannot_be_served_is_counted_and_a_mock_with_nothing_does_not_start(tmp_path: Path) -> None:
    unusable = [
        exchange(response=None),
        exchange(status=101),
        exchange(faults=(Fault.GAP,)),
        exchange(server="10.0.0.2:80"),
    ]
    path = recording(tmp_path / "a.lf", *unusable, exchange())
    mock = Mock(Settings("127.0.0.1:0", (path,), servers=("10.0.0.1:443",)), SHADOW)
    assert mock.counts()["answers"] == 1
    assert mock.unusable == {"no_answer": 1, "informational": 1, "incomplete": 1, "other_server": 1}
    by_host = Mock(Settings("127.0.0.1:0", (path,), servers=("PAY.example",)), SHADOW)
    assert by_host.counts()["answers"] == 2
    with pytest.raises(BusError, match=r"no answer to serve.*other_server"):
        Mock(Settings("127.0.0.1:0", (path,), servers=("10.9.9.9:1",)), SHADOW)


def test_a_recording_on_a_bus_serves_with_all_who_recorded_it(tmp_path: Path) -> None:
    for agent, line in (("a.0", "POST /payments"), ("b.0", "GET /rates")):
        with FileBus(tmp_path / "monday").writer("raw", agent, Manifest("raw", agent, "monday", 1, "test")) as writer:
            writer.write_records([exchange(line)])
    settings = Settings("127.0.0.1:0", ("monday",))
    assert Mock(settings, SHADOW, open_bus=lambda name: FileBus(tmp_path / name)).counts()["answers"] == 2
    with pytest.raises(BusError, match="tuesday: no recording of this name on the bus"):
        Mock(Settings("127.0.0.1:0", ("tuesday",)), SHADOW, open_bus=lambda name: FileBus(tmp_path / name))


@pytest.mark.parametrize("how", ["stdin", "sigterm"])
def test_serve_runs_until_told_to_stop(tmp_path: Path, how: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    path = recording(tmp_path / "pay.lf", exchange())
    code = f"from mock.app import serve; from mock.settings import Settings; serve(Settings({listen!r}, ({path!r},)))"
    root = Path(__file__).parents[1]
    environ = {
        **os.environ,
        "PYTHONPATH": f"{root}:{Path(livefire_shadow.__file__).parents[1]}",
        "LIVEFIRE_SHADOW_KEYS": f"k1:{KEY.hex()}",
    }
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environ)
    assert process.stdin is not None and process.stderr is not None
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"http://{listen}/.livefire/ready", timeout=30).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline
                threading.Event().wait(0.05)
        asked = urllib.request.Request(f"http://{listen}/payments", b'{"amount": 1}', marked())
        with urllib.request.urlopen(asked) as answer:
            assert json.loads(answer.read()) == {"ok": 1}
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"http://{listen}/payments")
        if how == "stdin":
            process.stdin.close()
        else:
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
        process.stdin.close()
