import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from livefire_shadow import (
    HEADER,
    PRODUCTION,
    LostContext,
    OutboundBlocked,
    Settings,
    Stress,
    bind,
    current,
    run_id,
    shadow_setup,
    sign,
    verify,
)
from livefire_shadow.aiohttp_client import shadow_client
from livefire_shadow.aiohttp_server import shadow_middleware
from livefire_shadow.asgi import ShadowASGI
from livefire_shadow.audit import Audit

KEY = b"0123456789abcdef"
SETTINGS = Settings("shop", {"k1": KEY})
AUDIT_PATH = "/.livefire/audit"


def marker(run: str = "run-1", ahead: int = 60, key: bytes = KEY) -> str:
    return sign(run, int(time.time()) + ahead, "k1", key)


def stress() -> Stress:
    value = marker()
    return Stress(verify(value, SETTINGS.keys, time.time()), value)


@asynccontextmanager
async def shop(audit: Audit, settings: Settings = SETTINGS) -> AsyncIterator[tuple[TestClient[Any, Any], list[str]]]:
    calls: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        calls.append(run_id())
        return web.Response(text=run_id() or "production")

    app = web.Application(middlewares=[shadow_middleware(settings, audit=audit)])
    app.router.add_get("/", handler)
    async with TestClient(TestServer(app)) as client:
        yield client, calls


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()

    asyncio.run(main())


def test_aiohttp_no_marker_is_production_and_a_valid_one_is_stress() -> None:
    async def test() -> None:
        audit = Audit()
        async with shop(audit) as (client, _):
            assert await (await client.get("/")).text() == "production"
            assert await (await client.get("/", headers={HEADER: marker("run-9")})).text() == "run-9"
            assert (await client.get("/nowhere", headers={HEADER: marker()})).status == 404
            # The same connection, back to production.
            assert await (await client.get("/")).text() == "production"
            assert (await client.get(AUDIT_PATH)).status == 403
            answer = await (await client.get(AUDIT_PATH, headers={HEADER: marker()})).json()
        assert answer["service"] == "shop"
        assert (answer["marked_requests"], answer["production_requests"]) == (2, 2)
        assert (answer["audit_reads"], answer["audit_reads_refused"]) == (1, 1)

    run(test)


BAD = [
    ("malformed", [(HEADER, "")]),
    ("malformed", [(HEADER, marker()), (HEADER, marker())]),
    ("signature", [(HEADER, marker(key=b"another key, 16+"))]),
    ("expired", [(HEADER, marker(ahead=-1))]),
    ("too_far", [(HEADER, marker(ahead=7200))]),
]


@pytest.mark.parametrize(("reason", "headers"), BAD)
def test_aiohttp_bad_marker_is_403_counted_and_the_handler_not_called(
    reason: str, headers: list[tuple[str, str]]
) -> None:
    async def test() -> None:
        audit = Audit()
        async with shop(audit) as (client, calls):
            for path in ("/", AUDIT_PATH):
                answer = await client.get(path, headers=headers)
                assert answer.status == 403
                assert (await answer.json())["reason"] == reason
        assert calls == []
        assert audit.snapshot()["refused"] == {reason: 2}

    run(test)


def test_aiohttp_without_keys_every_marker_is_refused() -> None:
    async def test() -> None:
        audit = Audit()
        async with shop(audit, Settings("shop")) as (client, calls):
            assert (await client.get("/", headers={HEADER: marker()})).status == 403
            assert (await client.get("/")).status == 200
        assert calls == [""]
        assert audit.snapshot()["refused"] == {"unknown_key": 1}

    run(test)


async def asgi_call(
    app: ShadowASGI, headers: list[tuple[bytes, bytes]], path: str = "/", kind: str = "http"
) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": f"{kind}.connect" if kind == "websocket" else "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": kind, "path": path, "headers": headers}, receive, send)
    return sent


def test_asgi_three_ways_and_the_audit() -> None:
    async def test() -> None:
        audit, seen = Audit(), []

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                with pytest.raises(LostContext):
                    current()
            else:
                seen.append(run_id())

        app = ShadowASGI(inner, SETTINGS, audit=audit)
        good = [(b"livefire-marker", marker("run-3").encode())]
        await asgi_call(app, [])
        await asgi_call(app, good)
        await asgi_call(app, [], kind="lifespan")
        assert seen == ["", "run-3"]

        for bad in ([(b"livefire-marker", b"\xff")], good * 2, [(b"Livefire-Marker", b"v1;")]):
            refused = await asgi_call(app, bad)
            assert refused[0]["status"] == 403
        closed = await asgi_call(app, [(b"livefire-marker", b"x")], kind="websocket")
        assert [message["type"] for message in closed] == ["websocket.close"]
        assert seen == ["", "run-3"]
        assert audit.snapshot()["refused"] == {"malformed": 4}

        assert (await asgi_call(app, [], AUDIT_PATH))[0]["status"] == 403
        start, body = await asgi_call(app, good, AUDIT_PATH)
        assert start["status"] == 200
        assert json.loads(body["body"])["marked_requests"] == 1

    run(test)


@asynccontextmanager
async def far_end(log: list[tuple[str, Any]], name: str) -> AsyncIterator[str]:
    async def handler(request: web.Request) -> web.Response:
        log.append((name, {**request.headers, "path": request.path_qs, "body": await request.text()}))
        if "to" in request.query:
            raise web.HTTPFound(request.query["to"])
        return web.Response(text=name)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(app) as server:
        yield f"127.0.0.1:{server.port}"


def test_client_production_untouched_stress_inside_mocked_or_blocked() -> None:
    async def test() -> None:
        audit, log = Audit(), []
        async with (
            far_end(log, "stock") as stock,
            far_end(log, "payments") as payments,
            far_end(log, "mock") as mock,
            far_end(log, "elsewhere") as elsewhere,
        ):
            shadow = shadow_client(inside=[stock], mocks={payments: f"http://{mock}"}, audit=audit)
            async with aiohttp.ClientSession(middlewares=[shadow]) as session:

                async def get(host: str, path: str = "/", **options: Any) -> str:
                    async with session.post(f"http://{host}{path}", data=b"body", **options) as answer:
                        return await answer.text()

                with pytest.raises(LostContext):
                    await get(stock)
                with bind(PRODUCTION):
                    for host in (stock, payments, elsewhere):
                        await get(host)
                assert [name for name, _ in log] == ["stock", "payments", "elsewhere"]
                assert not any(HEADER in headers for _, headers in log)
                log.clear()

                context = stress()
                with bind(context):
                    assert await get(stock) == "stock"
                    secret = {"Authorization": "Bearer live"}
                    assert await get(payments, "/pay?amount=1%2B1", headers=secret) == "mock"
                    with pytest.raises(OutboundBlocked, match="neither inside nor mocked"):
                        await get(elsewhere)
                    # A redirect is a call too, and the mock's answer may not send it to the real one.
                    with pytest.raises(OutboundBlocked):
                        await get(stock, f"/?to=http://{elsewhere}/x")
                    assert await get(stock, f"/?to=http://{payments}/y") == "mock"

        assert all(headers[HEADER] == context.value for _, headers in log)
        assert [name for name, _ in log] == ["stock", "mock", "stock", "stock", "mock"]
        paid = log[1][1]
        assert (paid["path"], paid["body"], paid["Host"]) == ("/pay?amount=1%2B1", "body", payments)
        assert "Authorization" not in paid
        counts = audit.snapshot()
        assert (counts["propagated"], counts["mocked"]) == (3, {payments: 2})
        blocked = counts["blocked_outbound"]
        assert [(row["host"], row["count"]) for row in blocked] == [(elsewhere, 2)]
        assert "test_livefire_shadow_web.py" in blocked[0]["place"]

    run(test)


def test_client_refuses_a_plan_that_is_unclear() -> None:
    with pytest.raises(ValueError, match="both"):
        shadow_client(inside=["a:1"], mocks={"A:1": "http://m:2"})
    for address in ("a", "http://a:1", "a:1/path"):
        with pytest.raises(ValueError):
            shadow_client(inside=[address])
    with pytest.raises(ValueError):
        shadow_client(mocks={"a:1": "m:2"})


def test_client_a_proxy_is_a_host_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that the environment names: it would see the request before the host that is inside."""

    async def test() -> None:
        audit, log = Audit(), []
        async with far_end(log, "stock") as stock, far_end(log, "mock") as mock, far_end(log, "proxy") as proxy:
            monkeypatch.setenv("http_proxy", f"http://{proxy}")
            shadow = shadow_client(inside=[stock], mocks={"payments.example:80": f"http://{mock}"}, audit=audit)
            with_proxy = shadow_client(inside=[stock, proxy], audit=audit)
            async with (
                aiohttp.ClientSession(middlewares=[shadow], trust_env=True) as session,
                aiohttp.ClientSession(middlewares=[with_proxy], trust_env=True) as through,
            ):
                with bind(stress()):
                    with pytest.raises(OutboundBlocked, match=proxy):
                        await session.get(f"http://{stock}/")
                    assert log == []
                    async with session.get("http://payments.example/") as answer:
                        assert await answer.text() == "mock"
                    async with through.get(f"http://{stock}/") as answer:
                        assert await answer.text() == "proxy"
                with bind(PRODUCTION):
                    async with session.get(f"http://{stock}/") as answer:
                        assert await answer.text() == "proxy"
        assert [name for name, _ in log] == ["mock", "proxy", "proxy"]
        assert audit.snapshot()["blocked_outbound"][0]["host"] == proxy

    run(test)


def test_client_start_up_code_for_shadows_calls_nobody() -> None:
    async def test() -> None:
        log: list[Any] = []
        async with (
            far_end(log, "stock") as stock,
            aiohttp.ClientSession(middlewares=[shadow_client(inside=[stock], audit=Audit())]) as session,
        ):
            with shadow_setup(), pytest.raises(OutboundBlocked):
                await session.get(f"http://{stock}/")
            with bind(stress()), pytest.raises(OutboundBlocked):
                await session.ws_connect("http://127.0.0.1:1/ws")
        assert log == []

    run(test)


def test_aiohttp_what_runs_behind_the_middleware_has_no_context() -> None:
    """Neither the request's own, nor, worse, that of the one before it on the connection."""

    async def test() -> None:
        seen: list[str] = []

        def note(where: str) -> None:
            try:
                seen.append(f"{where} {run_id() or 'production'}")
            except LostContext:
                seen.append(f"{where} lost")

        async def lines() -> AsyncIterator[bytes]:
            note("body")
            yield b"x"

        async def generated(request: web.Request) -> web.Response:
            return web.Response(body=lines())

        async def streamed(request: web.Request) -> web.StreamResponse:
            answer = web.StreamResponse()
            await answer.prepare(request)
            note("stream")
            await answer.write_eof()
            return answer

        async def prepare(request: web.Request, answer: web.StreamResponse) -> None:
            note("prepare")

        app = web.Application(middlewares=[shadow_middleware(SETTINGS, audit=Audit())])
        app.on_response_prepare.append(prepare)
        app.router.add_get("/generated", generated)
        app.router.add_get("/streamed", streamed)
        async with TestClient(TestServer(app)) as client:
            for path, headers in (
                ("/streamed", {}), ("/generated", {HEADER: marker("run-1")}), ("/streamed", {HEADER: marker("run-1")}),
                ("/generated", {}),
            ):  # fmt: skip
                await (await client.get(path, headers=headers)).read()
        assert seen == [
            "prepare production", "stream production", "prepare lost", "body lost", "prepare run-1", "stream run-1",
            "prepare lost", "body lost",
        ]  # fmt: skip

    run(test)
