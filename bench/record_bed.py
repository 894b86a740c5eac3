"""What the recorder's bench stands on: a server whose access log is the truth, a paced client, CPU and memory of
processes, and the cores that they keep to.

The server is nginx, one process, with a configuration of its own in a temporary folder; without nginx it is a small one
of Python, which cannot do more than some thousand requests a second. Each request has a number of its own in its
target, and the server logs it: that log says what there was to record.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BODY = json.dumps({"items": [{"id": n, "name": f"item {n}", "price": n * 100} for n in range(7)]})
BODY += " " * (300 - len(BODY))
FIELDS = {
    "Cache-Control": "no-store",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
#: Every target is as long as the other, so that every answer is.
REQUEST = (
    b"GET /r/%08d HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: bench/1\r\nAccept: application/json\r\n"
    b"Accept-Encoding: gzip\r\nAuthorization: Bearer 0123456789abcdef0123456789abcdef\r\n"
    b"Cookie: sid=6c1f0a2b9d; theme=dark\r\n\r\n"
)
#: With `fresh`: each head, of the request and of its answer, has a field of its own.
FRESH = REQUEST[:-2] + b"X-Request-Id: 5f2b9c0e7a614d3a%016x\r\n\r\n"
ASKED = re.compile(rb"GET /r/(\d{8}) ")
LOGGED = re.compile(rb" /r/(\d{8})$", re.MULTILINE)
_PATIENCE_S = 10.0
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


# ---------------------------------------------------------------------------- cores and files


def cores() -> tuple[set[int], set[int]]:
    """Of the server; of client and recorder. The same where there is one core."""
    known = sorted(os.sched_getaffinity(0))
    return {known[0]}, {known[1 % len(known)]}


def more_files(count: int) -> int:
    """Let this process and its children open so many files; how many they may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limits in ((count, max(most, count)), (min(count, most), most)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            break
        except (OSError, ValueError):
            continue
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def pinned(where: set[int]) -> Callable[[], None]:
    return lambda: os.sched_setaffinity(0, where)


# ---------------------------------------------------------------------------- the server


class Server:
    """Raises SystemExit where it does not come up."""

    def __init__(self, folder: Path, where: set[int], *, fresh: bool = False, connections: int = 1024) -> None:
        self._log = folder / "access.log"
        self._log.touch()
        self.name = "nginx" if nginx() else "a server of Python"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        command = [sys.executable, str(Path(__file__)), str(self.port), str(self._log), "fresh" if fresh else ""]
        if found := nginx():
            (folder / "nginx.conf").write_text(_configuration(folder, self.port, fresh, connections))
            command = [found, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, preexec_fn=pinned(where)
        )
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > until:
                    self.stop()
                    raise SystemExit(f"{self.name} does not come up on port {self.port}") from None
                time.sleep(0.05)

    def served(self, least: int) -> list[int]:
        """The numbers of the requests that it answered; it is given a moment to log `least` of them."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            numbers = [int(number) for number in LOGGED.findall(self._log.read_bytes())]
            if len(numbers) >= least or time.monotonic() > until:
                return numbers
            time.sleep(0.2)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(_PATIENCE_S)


def nginx() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def _configuration(folder: Path, port: int, fresh: bool, connections: int) -> str:
    fields = FIELDS | ({"X-Request-Id": "$http_x_request_id"} if fresh else {})
    added = " ".join(f"add_header {name} '{value}';" for name, value in fields.items())
    paths = " ".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return f"""daemon off; master_process off; pid {folder}/nginx.pid;
events {{ worker_connections {connections}; }}
http {{
    {paths}
    log_format bench '$msec $request_uri';
    access_log {folder}/access.log bench buffer=256k flush=200ms;
    keepalive_timeout 3600; keepalive_requests 1000000000;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{ default_type application/json; {added} return 200 '{BODY}'; }}
    }}
}}
"""


def serve(port: int, log: Path, fresh: bool) -> None:
    """Where there is no nginx: the same answers, the same log."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in FIELDS.items())
    head = f"HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: application/json\r\n{fields}".encode()
    end = b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY.encode())
    file = log.open("ab", buffering=1 << 18)
    own = re.compile(rb"\r\n(X-Request-Id: [0-9a-f]+\r\n)")

    class Answers(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport
            self.rest = b""

        def data_received(self, data: bytes) -> None:
            requests = (self.rest + data).split(b"\r\n\r\n")
            self.rest = requests.pop()
            for request in requests:
                file.write(b"%.3f %b\n" % (time.time(), request.split(b" ", 2)[1]))
                found = own.search(request + b"\r\n") if fresh else None
                self.transport.write(head + (found.group(1) if found else b"") + end)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        await loop.create_server(Answers, "127.0.0.1", port, backlog=4096)
        over = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, over.set)
        while not over.is_set():
            file.flush()
            try:
                await asyncio.wait_for(over.wait(), 0.2)
            except TimeoutError:
                pass
        file.close()

    asyncio.run(main())


# ---------------------------------------------------------------------------- clients, each a process


def connected(port: int, number: int) -> socket.socket:
    """Of many: each 16,000 from an address of their own, so that ports do not run out."""
    while True:
        try:
            sock = socket.create_connection(("127.0.0.1", port), 5.0, (f"127.0.0.{2 + number // 16_000}", 0))
            break
        except TimeoutError:  # the server's queue was full
            continue
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def fire(port: int, rate: float, seconds: float, connections: int, fresh: bool) -> dict[str, float]:
    """Open loop: each request has its time, on whichever connection is idle then. Counts, and latencies from that time
    to the last byte of the answer, so a late client shows in them too."""
    socks = {sock.fileno(): sock for sock in (connected(port, n) for n in range(connections))}
    first = next(iter(socks.values()))
    first.sendall(REQUEST % 0 if not fresh else FRESH % (0, 0))
    size = len(first.recv(1 << 16))
    poll = select.epoll()
    for fd, sock in socks.items():
        sock.setblocking(False)
        poll.register(fd, select.EPOLLIN)
    idle, due, left = deque(socks), dict.fromkeys(socks, 0.0), dict.fromkeys(socks, size)
    latencies: list[float] = []
    total, sent, begun, clock = int(rate * seconds), 0, time.process_time(), time.perf_counter
    start = clock() + 0.05
    while len(latencies) < total:
        now = clock()
        if now > start + seconds + 5:
            break
        until = min(total, int((now - start) * rate) + 1)
        while sent < until and idle:
            fd = idle.popleft()
            due[fd] = start + sent / rate
            sent += 1
            socks[fd].send(FRESH % (sent, sent * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) if fresh else REQUEST % sent)
        pause = start + sent / rate - clock() if sent < total and idle else 0.05
        if pause > 0:  # epoll's own time is in whole ms
            select.select([poll], [], [], pause)
        for fd, _ in poll.poll(0):
            count = len(socks[fd].recv(1 << 16))
            if not count:
                raise SystemExit("the server closed a connection")
            left[fd] -= count
            if not left[fd]:
                left[fd] = size
                latencies.append(clock() - due[fd])
                idle.append(fd)
    if not latencies:
        raise SystemExit("no request was answered")
    took = clock() - start
    latencies.sort()
    at = {q: latencies[min(len(latencies) - 1, int(q * len(latencies)))] * 1e3 for q in (0.5, 0.99)}
    return {
        "sent": sent + 1, "answered": len(latencies) + 1, "rate": len(latencies) / took, "p50_ms": at[0.5],
        "p99_ms": at[0.99], "client_us": (time.process_time() - begun) * 1e6 / max(1, len(latencies)),
    }  # fmt: skip


def hold(port: int, count: int) -> int:
    """Open so many connections, one exchange on each, some thousand a second; how many there are. They stay open."""
    more_files(count + 100)
    socks = []
    for number in range(count):
        try:
            sock = connected(port, number)
        except OSError as error:
            print(f"connection {number}: {error}", file=sys.stderr)
            break
        sock.sendall(REQUEST % number)
        if not sock.recv(1 << 16):
            break
        socks.append(sock)
        time.sleep(0.0002)
    _HELD.append(socks)
    return len(socks)


_HELD: list[list[socket.socket]] = []


# ---------------------------------------------------------------------------- processes


def cpu_us(pid: int) -> float:
    """User and system time of a process, all threads, and of its children, those that ended too."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, words[11:15])) * 1e6 / _TICKS + sum(cpu_us(child) for child in children(pid))


def children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except OSError:
        pass
    return found


def rss_mb(pid: int) -> float:
    """Resident memory of a process and its children, with the pages of a ring that they map."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * _PAGE / 1048576 + sum(rss_mb(child) for child in children(pid))


def memory_parts(pid: int) -> dict[str, float]:
    """MB of Rss and Pss as `smaps_rollup` has them, and how much of Rss are the pages of rings."""
    found = {"rss_mb": 0.0, "pss_mb": 0.0, "ring_mb": 0.0}
    for one in (pid, *children(pid)):
        try:
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
            whole = Path(f"/proc/{one}/smaps").read_text()
        except OSError:
            continue
        for name in ("Rss", "Pss"):
            found[f"{name.lower()}_mb"] += sum(int(kb) for kb in re.findall(rf"^{name}: +(\d+)", rollup, re.M)) / 1024
        ring = re.findall(r"(?:socket:\[|\[?anon_inode:packet)[^\n]*\n(?:[A-Z]\w+:[^\n]*\n)*?Rss: +(\d+)", whole)
        found["ring_mb"] += sum(map(int, ring)) / 1024
    return found


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]), bool(sys.argv[3]))
