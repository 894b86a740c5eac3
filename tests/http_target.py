"""A real HTTP server in a process of its own, with a log of its own: what it says does not come from Livefire.

`python tests/http_target.py LOG [PORT]` prints its port, serves until its stdin closes, and appends one line of JSON a
request to LOG, when the request has been read; a body of 64 KiB or more by its length alone. Paths decide what it does
(a query is logged and passed over). `late_ns` is how long before `at_ns` it may have been there, as the server stood still:

    /status/404   that status          /sleep/250    answers after 250 ms       /bytes/1000   a body of 1000
    /chunked/3    3 chunks             /close        close-delimited            /cut          closes inside the body
    /interim      103, then 200        /stall/1000   the whole server stops for 1000 ms, once
    /login        {"token"} and a cookie; POST /orders wants both and gives {"id"}; GET /orders/<id> wants them too
    anything else "ok"
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

STATUS_LINE = {200: "OK", 201: "Created", 204: "No Content", 304: "Not Modified", 401: "Unauthorized", 404: "Not Found"}


class Target:
    """The running server, from a test's side."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "target.log"
        self.log.touch()
        self.port = 0
        self.start()

    def start(self) -> None:
        """Also after it died: on the same port, with the same log."""
        self.process = subprocess.Popen(
            (sys.executable, __file__, str(self.log), str(self.port)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def requests(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]

    def shots(self) -> Counter[str]:
        """How often each shot was received, by its Livefire-Shot."""
        return Counter(request["fields"].get("livefire-shot", "") for request in self.requests())

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class _Pace:
    """How long this server stood still, when others had the processor: what it reads then may have waited so long."""

    _TICK_S = 0.02
    _REMEMBERED = 50  # a second of them

    def __init__(self) -> None:
        self._gaps: deque[int] = deque(maxlen=self._REMEMBERED)
        self._last_ns = time.monotonic_ns()

    async def keep(self) -> None:
        while True:
            await asyncio.sleep(self._TICK_S)
            now_ns = time.monotonic_ns()
            self._gaps.append(now_ns - self._last_ns)
            self._last_ns = now_ns

    def late_ns(self) -> int:
        """The longest that it stood still in the last second, and now."""
        longest = max((time.monotonic_ns() - self._last_ns, *self._gaps))
        return max(0, longest - round(self._TICK_S * 1e9))


class _App:
    """A tiny shop of which nothing can be guessed: tokens, cookies and order ids are new each time."""

    def __init__(self) -> None:
        self.tokens: dict[str, str] = {}  # token -> cookie that was handed out with it
        self.orders: dict[str, str] = {}  # order -> token
        self.stalled = False

    def login(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        try:
            user = json.loads(body)
        except ValueError:
            return 400, {}, b""
        if user.get("password") != "pw-" + str(user.get("user")):
            return 401, {}, b"{}"
        token, cookie = os.urandom(12).hex(), os.urandom(12).hex()
        self.tokens[token] = cookie
        return 200, {"Set-Cookie": f"sid={cookie}; Path=/"}, json.dumps({"token": token}).encode()

    def _who(self, fields: dict[str, str]) -> str | None:
        token = fields.get("authorization", "").removeprefix("Bearer ")
        cookie = self.tokens.get(token)
        return token if cookie and fields.get("cookie") == f"sid={cookie}" else None

    def order(self, method: str, path: str, fields: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        token = self._who(fields)
        if token is None:
            return 401, {}, b"{}"
        if method == "POST":
            order = os.urandom(6).hex()
            self.orders[order] = token
            return 201, {}, json.dumps({"id": order}).encode()
        order = path.rpartition("/")[2]
        return (200, {}, json.dumps({"id": order}).encode()) if self.orders.get(order) == token else (404, {}, b"{}")


async def _serve(log_path: str, port: int) -> None:
    app, pace = _App(), _Pace()
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await one(reader, writer):
                pass
        except (OSError, EOFError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        raw = await reader.readuntil(b"\r\n\r\n")
        at = time.time_ns()
        line, *rest = raw.decode("latin-1").split("\r\n")
        method, path, _ = line.split(" ")
        pairs = [(name.lower(), value.strip()) for name, _, value in (text.partition(":") for text in rest if text)]
        fields = dict(pairs)
        length = int(fields.get("content-length", 0))
        body = await reader.readexactly(length) if length else b""
        entry = {
            "at_ns": at, "late_ns": pace.late_ns(), "method": method, "path": path, "fields": fields, "names": [name for name, _ in pairs],
            "body_bytes": length, "body": body.decode("latin-1") if length < 1 << 16 else "",
        }  # fmt: skip
        os.write(log, json.dumps(entry).encode() + b"\n")
        word, _, argument = path.partition("?")[0].lstrip("/").partition("/")
        status, extra, answer = 200, {}, b"ok"
        if word == "status":
            status, answer = int(argument), b"" if argument in ("204", "304") else b"status"
        elif word == "sleep":
            await asyncio.sleep(int(argument) / 1000)
        elif word == "stall" and not app.stalled:
            app.stalled = True
            time.sleep(int(argument) / 1000)
        elif word == "bytes":
            answer = b"x" * int(argument)
        elif word == "chunked":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(int(argument)):
                writer.write(b"5\r\nhello\r\n")
                await writer.drain()
                await asyncio.sleep(0.002)
            writer.write(b"0\r\n\r\n")
            return True
        elif word == "close":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
            return False
        elif word == "cut":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            return False
        elif word == "garbage":
            writer.write(b"this is no HTTP\r\n\r\n")
            return False
        elif word == "interim":
            writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        elif word == "login":
            status, extra, answer = app.login(body)
        elif word == "orders":
            status, extra, answer = app.order(method, path, fields)
        lines = [f"HTTP/1.1 {status} {STATUS_LINE.get(status, 'Other')}"]
        if status not in (204, 304):
            lines.append(f"Content-Length: {len(answer)}")
        if answer.startswith(b"{"):
            lines.append("Content-Type: application/json")
        lines += [f"{name}: {value}" for name, value in extra.items()]
        writer.write("\r\n".join((*lines, "", "")).encode() + (b"" if method == "HEAD" else answer))
        return True

    server = await asyncio.start_server(handle, "127.0.0.1", port, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    ticking = asyncio.create_task(pace.keep())
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    ticking.cancel()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0))
