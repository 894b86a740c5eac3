"""Puts the mock together: an HTTP server that answers marked requests from a recording.

Nothing is ever passed on. A request that no recorded one resembles is 501; one without a valid marker is
403: production that arrives here by mistake must fail, not be given somebody's old answer.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler
from multidict import CIMultiDict

from bus.ports import Bus, BusError
from livefire_shadow import HEADER, BadMarker
from livefire_shadow import Settings as ShadowSettings
from livefire_shadow.marker import verify_headers
from livefire_shadow.settings import wall_s
from mock.answers import Answer, messages_of_file, messages_on_bus, read_answers
from mock.match import Matcher, describe
from mock.settings import Settings
from wire.config import ConfigError

AUDIT_PATH = "/.livefire/audit"
READY_PATH = "/.livefire/ready"
_MAX_LISTED = 200

OpenBus = Callable[[str], Bus]  # the bus of the recording of this name


class Mock:
    """The answers and the counts. `now_s` is unix time in seconds."""

    def __init__(
        self,
        settings: Settings,
        shadow: ShadowSettings,
        *,
        open_bus: OpenBus | None = None,
        now_s: Callable[[], float] = wall_s,
    ) -> None:
        """Reads the recordings: files, or with `open_bus` names on a bus. Raises BusError when one cannot be read, or
        when there is nothing to answer from."""
        self._settings = settings
        self._keys = shadow.keys
        self._now_s = now_s
        self.unusable: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.unmatched: Counter[str] = Counter()
        self._unmatched_elsewhere = 0
        servers = frozenset(server.lower() for server in settings.servers)
        answers = chain.from_iterable(
            read_answers(
                messages_of_file(Path(name)) if open_bus is None else messages_on_bus(open_bus(name), name),
                name, servers, self.unusable,
            )
            for name in settings.recordings
        )  # fmt: skip
        self._matcher = Matcher(answers, settings.max_answers)
        if self._matcher.count == 0:
            raise BusError(
                f"{', '.join(settings.recordings)}: no answer to serve"
                + (
                    f" (left out: {', '.join(f'{n:,} {why}' for why, n in self.unusable.items())})"
                    if self.unusable
                    else ""
                )
            )

    @property
    def answer_count(self) -> int:
        return self._matcher.count

    def application(self) -> web.Application:
        """The aiohttp application. A middleware answers everything, so that no routing rule can get in between."""

        @web.middleware
        async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._answer(request)

        return web.Application(middlewares=[answer], client_max_size=64 << 20)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        arrived_s = loop.time()
        if request.raw_path == READY_PATH:
            return web.json_response({"ready": True})
        try:
            found = verify_headers(request.headers.getall(HEADER, []), self._keys, self._now_s())
        except BadMarker as bad:
            self.refused[bad.reason] += 1
            return web.json_response({"error": "marker refused", "reason": bad.reason}, status=403)
        if found is None:
            self.refused["missing"] += 1
            return web.json_response({"error": "a mock answers marked requests only"}, status=403)
        if request.raw_path == AUDIT_PATH:
            return web.json_response(self.counts())
        body = await request.read()
        recorded = self._matcher.find(request.method, request.raw_path, body, request.headers.get("Content-Type", ""))
        if recorded is None:
            return self._unmatched(request)
        latency_s = min(recorded.latency_ns / 1e9 * self._settings.latency_factor, self._settings.max_latency_s)
        left_s = latency_s - (loop.time() - arrived_s)
        if left_s > 0:
            await asyncio.sleep(left_s)
        self.statuses[recorded.status] += 1
        return _response(recorded, request.method)

    def _unmatched(self, request: web.Request) -> web.Response:
        group, _ = describe(request.method, request.raw_path)
        what = f"{group[0]} {group[1]}" + (f"?{'&'.join(group[2])}" if group[2] else "")
        if what in self.unmatched or len(self.unmatched) < _MAX_LISTED:
            self.unmatched[what] += 1
        else:
            self._unmatched_elsewhere += 1
        return web.json_response({"error": "no recorded answer resembles this request", "request": what}, status=501)

    def counts(self) -> dict[str, object]:
        """What `GET /.livefire/audit` answers."""
        return {
            "service": self._settings.service,
            "pid": os.getpid(),
            "answers": self._matcher.count,
            "surplus": self._matcher.surplus,
            "unusable": dict(self.unusable),
            "served": self.statuses.total(),
            "served_by_status": {str(status): count for status, count in self.statuses.items()},
            "unmatched": self.unmatched.total() + self._unmatched_elsewhere,
            "unmatched_requests": dict(self.unmatched),
            "refused": dict(self.refused),
        }


def _response(recorded: Answer, method: str) -> web.Response:
    fields = CIMultiDict(recorded.fields)
    if method == "HEAD" and recorded.head_length is not None:
        fields["Content-Length"] = recorded.head_length
    return web.Response(status=recorded.status, reason=recorded.reason or None, headers=fields, body=recorded.body)


def serve(
    settings: Settings,
    shadow: ShadowSettings | None = None,
    announce: Callable[[str], None] | None = None,
    open_bus: OpenBus | None = None,
) -> None:
    """Serves until SIGTERM, SIGINT, or stdin closes. Ready when `GET /.livefire/ready` answers 200.

    Keys come from `LIVEFIRE_SHADOW_KEYS` unless `shadow` gives them. Raises BusError for recordings that cannot be
    served from, ConfigError for an address of the wrong shape or one that cannot be had, ValueError for keys.
    `announce` gets one line when it listens, and one with the counts at the end.
    """
    address_of(settings.listen)
    keys = shadow if shadow is not None else ShadowSettings.from_env(settings.service)
    mock = Mock(settings, keys, open_bus=open_bus)
    say = announce if announce is not None else _nobody
    asyncio.run(_serve(mock, settings, say))
    counts = mock.counts()
    say(f"{counts['served']:,} served, {counts['unmatched']:,} unmatched, {mock.refused.total():,} refused")


def address_of(text: str) -> tuple[str, int]:
    """Host and port. Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{text!r} is no place to listen; write host:port, as in 127.0.0.1:9090")
    return host.strip("[]"), int(port)


def _nobody(line: str) -> None:
    """Hears a mock that runs under a supervisor."""


async def _serve(mock: Mock, settings: Settings, say: Callable[[str], None]) -> None:
    host, port = address_of(settings.listen)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(mock.application(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, backlog=1024).start()
        except OSError as error:
            raise ConfigError(f"cannot listen on {settings.listen}: {os.strerror(error.errno or 0).lower()}") from None
        say(f"{mock.answer_count:,} recorded answers, at http://{settings.listen}")
        if settings.stdin_guard:
            threading.Thread(target=_wait_for_stdin, args=(loop, stop), daemon=True).start()
        await stop.wait()
    finally:
        await runner.cleanup()


def _wait_for_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    # Not sys.stdin: a thread that holds its lock at exit aborts the interpreter.
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(stop.set)
