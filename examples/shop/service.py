"""What the shop's services share: arguments, health, access log, stopping. Knows nothing of stress traffic."""

import argparse
import asyncio
import json
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

# As any service could, the log only looks at the header: whether it verifies is not its business.
_MARKER = "Livefire-Marker"
_RUN = re.compile(r"\brun=([^;]+)")


def arguments(what: str) -> argparse.ArgumentParser:
    """The options of every process: --log, --stdin-guard."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--log", type=Path, help="file for one JSON line a request")
    parser.add_argument("--stdin-guard", action="store_true", help="stop when stdin closes")
    return parser


def listening(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds --listen HOST:PORT."""
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    return parser


def stop_event(stdin_guard: bool) -> asyncio.Event:
    """Set on SIGTERM and SIGINT, and with the guard when stdin closes."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def wait_for_end() -> None:
        # Not sys.stdin: a thread that holds its lock at exit aborts the interpreter.
        while os.read(0, 4096):
            pass
        loop.call_soon_threadsafe(stop.set)

    if stdin_guard:
        threading.Thread(target=wait_for_end, daemon=True).start()
    return stop


class JsonLog:
    """One JSON object a line, written at once: a reader may count lines while the service runs."""

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("a", buffering=1) if path else None

    def write(self, **fields: Any) -> None:
        if self._file:
            self._file.write(json.dumps(fields) + "\n")

    def close(self) -> None:
        if self._file:
            self._file.close()


def access_logger(log: JsonLog) -> type[AbstractAccessLogger]:
    """The class that aiohttp calls once a request, when the answer has been written."""

    class AccessLogger(AbstractAccessLogger):
        def log(self, request: web.BaseRequest, response: web.StreamResponse, took_s: float) -> None:
            value = request.headers.get(_MARKER)
            run = _RUN.search(value or "")
            log.write(
                ts_ns=time.time_ns(),
                method=request.method,
                target=request.raw_path if hasattr(request, "raw_path") else request.path_qs,
                status=response.status,
                bytes=response.body_length,
                marked=value is not None,
                run=run[1] if run else "",
            )

    return AccessLogger


async def _healthz(request: web.Request) -> web.Response:
    return web.json_response({"ok": True})


async def serve(app: web.Application, options: argparse.Namespace) -> None:
    """Serves `app` on --listen until told to stop; open requests get a second to finish."""
    app.router.add_get("/healthz", _healthz)
    log = JsonLog(options.log)
    runner = web.AppRunner(app, access_log_class=access_logger(log), shutdown_timeout=1, keepalive_timeout=75)
    await runner.setup()
    host, _, port = options.listen.rpartition(":")
    await web.TCPSite(runner, host.strip("[]"), int(port), backlog=1024).start()
    await stop_event(options.stdin_guard).wait()
    await runner.cleanup()
    log.close()
