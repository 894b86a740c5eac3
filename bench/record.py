"""What recording costs: CPU per exchange of all recorder processes, and what was lost, by ring and by proxy.

    python bench/record.py [--rate 2000] [--seconds 4] [--json]

A paced client talks to a small HTTP server on the loopback interface; beside them runs, one after another: nothing;
the floor (our ring, read and thrown away); `tcpdump -w` if it is installed; the recorder by ring, unmasked and
masked; the recorder by proxy. CPU is that of the recorder's own processes (threads and children, user and
system) from the first request to the last. What the kernel spends to fill a ring is charged to whoever sends: it
shows in the column of the client and the server. Everything stays on 127.0.0.1, in a temporary folder, and
ends by itself. What was lost is judged by the server's own count. Where `sent` is below rate times seconds, the client
could not keep the rate on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "sdk" / "src")]

BODY = json.dumps({"items": [{"id": n, "name": f"item {n}", "price": n * 100} for n in range(24)]}).encode()
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nServer: bench\r\nCache-Control: no-store\r\n"
    b"X-Request-Id: 5f2b9c\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
REQUEST = (
    b"GET /items?page=%d HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench/1\r\nAccept: application/json\r\n"
    b"Accept-Encoding: gzip\r\nAuthorization: Bearer 0123456789abcdef0123456789abcdef\r\n"
    b"Cookie: sid=6c1f0a2b9d; theme=dark\r\nX-Request-Id: 5f2b9c\r\n\r\n"
)
CONNECTIONS = 64
CLIENT_CONNECT_S = 5.0


# ---------------------------------------------------------------------------- roles, each a process


def serve() -> None:
    """Prints its port; at SIGTERM the number of requests that it saw."""
    seen = 0

    class Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport
            self.rest = b""

        def data_received(self, data: bytes) -> None:
            nonlocal seen
            heads = (self.rest + data).split(b"\r\n\r\n")
            self.rest = heads.pop()
            seen += len(heads)
            self.transport.write(ANSWER * len(heads))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Server, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        over = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, over.set)
        await over.wait()

    asyncio.run(main())
    print(seen, flush=True)


def fire(port: int, rate: float, seconds: float) -> None:
    """Open loop: each request has its time. Prints counts and latencies from that time."""
    selector = selectors.DefaultSelector()
    idle: deque[socket.socket] = deque()
    for _ in range(CONNECTIONS):
        sock = socket.create_connection(("127.0.0.1", port), CLIENT_CONNECT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ, [0.0, 0])
        idle.append(sock)
    start = time.perf_counter() + 0.05
    total, sent, latencies = int(rate * seconds), 0, []
    size = len(ANSWER)
    while len(latencies) < total:
        now = time.perf_counter()
        if now > start + seconds + 5:
            break
        while sent < total and idle and start + sent / rate <= now:
            sock = idle.popleft()
            state = selector.get_key(sock).data
            state[:] = [start + sent / rate, size]
            sock.send(REQUEST % sent)
            sent += 1
        for key, _ in selector.select(0.0005):
            data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
            if not data:
                raise SystemExit("the server closed a connection")
            key.data[1] -= len(data)
            if not key.data[1]:
                latencies.append(time.perf_counter() - key.data[0])
                idle.append(key.fileobj)  # type: ignore[arg-type]
    latencies.sort()
    at = {q: latencies[min(len(latencies) - 1, int(q * len(latencies)))] * 1e3 for q in (0.5, 0.99)}
    print(json.dumps({"sent": sent, "answered": len(latencies), "p50_ms": at[0.5], "p99_ms": at[0.99]}), flush=True)


def record_role(port: int, how: str, to: str) -> None:
    """Prints a line when it records, and its result when its stdin ends."""
    import select

    from capture.record import Progress, record
    from capture.settings import RecordSettings

    masker = None
    key = b"k" * 32
    if how != "ring-unmasked":
        from mask.masker import Masker
        from mask.settings import MaskSettings

        masker = Masker(key, MaskSettings())
    if how == "proxy":
        with socket.create_server(("127.0.0.1", 0)) as free:
            listen = free.getsockname()[1]
        settings = RecordSettings(to=to, proxies=((f"127.0.0.1:{listen}", f"127.0.0.1:{port}"),))
        port = listen
    else:
        settings = RecordSettings(to=to, interfaces=("lo",), ports=(port,), source="ring")
    told = False

    def progress(_: Progress) -> None:
        nonlocal told
        if not told:
            told = True
            print(port, flush=True)

    def stop() -> bool:
        return bool(select.select([0], [], [], 0)[0])

    anchor_ns = time.time_ns() - time.monotonic_ns()
    account = record(settings, masker, key, stop, progress, anchor_ns=anchor_ns)
    print(json.dumps(account.as_json()), flush=True)


def floor_role(port: int) -> None:
    """The ring, read and thrown away: what no recorder in this language can undercut."""
    import select

    from capture.bpf import Selection
    from capture.source_ring import RingSource
    from wire.account import Account

    class Sink:
        account = Account()
        packets = 0

        def packet(self, ts_ns: int, data: bytes, wire_len: int, linktype: int = 1, interface: str = "") -> None:
            self.packets += 1

        def kernel_dropped(self, count: int) -> None: ...

    sink, ring = Sink(), RingSource("lo", Selection(ports=(port,)))
    print(port, flush=True)
    while not select.select([0], [], [], 0)[0]:
        ring.feed(sink, 0.05)
    ring.finish(sink)
    print(json.dumps({"packets": sink.packets, "lost": ring.kernel_drops}), flush=True)


# ---------------------------------------------------------------------------- measuring


def cpu_ns(pid: int) -> int:
    """On-CPU time of a process and its children, threads included, as the scheduler counts it."""
    total = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
            for child in (task / "children").read_text().split():
                total += cpu_ns(int(child))
    except OSError:
        pass
    return total


def rss_mb(pid: int) -> float:
    """Resident memory of a process and its children, ring included."""
    total = 0.0
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        total += next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(rss_mb(int(child)) for child in (task / "children").read_text().split())
    except OSError:
        pass
    return total


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, "--role", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    text = process.stdout.readline()
    if not text:
        raise SystemExit(f"a process of this benchmark ended: {process.args}")
    return text


def recorded_in(path: Path) -> int:
    from bus.logfile import LogReader, headers
    from wire.codec import RecordType

    with LogReader(path) as reader:
        return sum(header.count for header in headers(reader) if header.type == RecordType.EXCHANGE)


def tcpdump_recorded(path: Path) -> int:
    """Requests found in its file by looking for their first line."""
    return path.read_bytes().count(b"GET /items?page=")


def run(name: str, rate: float, seconds: float, folder: Path) -> dict[str, Any]:
    server = start("server")
    beside: subprocess.Popen[str] | None = None
    row: dict[str, Any] = {"recorder": name}
    try:
        port = int(line(server))
        target, file = port, folder / f"{name}.lf"
        if name == "floor":
            beside = start("floor", str(port))
            line(beside)
        elif name == "tcpdump":
            beside = subprocess.Popen(
                ["tcpdump", "-i", "lo", "-w", str(file), "-B", "32768", "-s", "0", "port", str(port)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert beside.stderr is not None
            beside.stderr.readline()  # "listening on ..."
        elif name != "nothing":
            beside = start("record", str(port), name, str(file))
            target = int(line(beside))
        before, traffic_before = cpu_ns(beside.pid) if beside else 0, cpu_ns(server.pid)
        client = start("client", str(target), str(rate), str(seconds))
        client_cpu = 0
        while client.poll() is None:
            client_cpu = max(client_cpu, cpu_ns(client.pid))
            if beside:
                row["rss_mb"] = max(row.get("rss_mb", 0.0), rss_mb(beside.pid))
            time.sleep(0.1)
        fired = json.loads(line(client))
        time.sleep(0.4)  # the last batch
        answered = max(fired["answered"], 1)
        if beside:
            row["cpu_us"] = (cpu_ns(beside.pid) - before) / 1e3 / answered
        row["traffic_cpu_us"] = (cpu_ns(server.pid) - traffic_before + client_cpu) / 1e3 / answered
        row["sent"] = fired["sent"]
        row |= {"p50_ms": fired["p50_ms"], "p99_ms": fired["p99_ms"]}
        if beside:
            if name == "tcpdump":
                time.sleep(1.2)  # it reads a block of its ring once a second
                beside.send_signal(signal.SIGINT)
                beside.wait(10)
                row["recorded"] = tcpdump_recorded(file)
            else:
                assert beside.stdin is not None
                beside.stdin.close()
                result = json.loads(line(beside))
                beside.wait(10)
                if name != "floor":
                    row["recorded"] = recorded_in(file)
                    row["balanced"] = result["balanced"]
            if file.exists():
                row["file_mb"] = file.stat().st_size / 1e6
        server.send_signal(signal.SIGTERM)
        row["seen"] = int(line(server))
        if "recorded" in row:
            row["lost"] = row["seen"] - row["recorded"]
        return row
    finally:
        for process in filter(None, (beside, server)):
            if process.poll() is None:
                process.kill()
            process.wait()
        for left in folder.iterdir():
            left.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description="CPU per exchange of recording, beside tcpdump")
    parser.add_argument("--rate", type=float, default=2000)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        role, *rest = options.role
        if role == "server":
            serve()
        elif role == "client":
            fire(int(rest[0]), float(rest[1]), float(rest[2]))
        elif role == "floor":
            floor_role(int(rest[0]))
        else:
            record_role(int(rest[0]), rest[1], rest[2])
        return 0
    if options.rate * options.seconds > 200_000:
        parser.error("at most 200,000 requests in a row of the table: the disk is bounded")
    from capture.source_ring import explained, open_error

    refused = open_error()
    names = ["nothing", "proxy"] if refused else ["nothing", "floor", "tcpdump", "ring-unmasked", "ring", "proxy"]
    if refused:
        print(f"no ring here: {explained(refused)}", file=sys.stderr)
    elif not shutil.which("tcpdump"):
        names.remove("tcpdump")
        print("tcpdump is not installed (apt install tcpdump): no comparison with it", file=sys.stderr)
    columns = (
        ("recorder", 14, ""), ("sent", 8, "d"), ("seen", 8, "d"), ("recorded", 9, "d"), ("lost", 6, "d"),
        ("cpu_us", 8, ".1f"), ("times_floor", 12, ".1f"), ("rss_mb", 8, ".0f"), ("file_mb", 8, ".1f"),
        ("traffic_cpu_us", 15, ".1f"), ("p50_ms", 10, ".2f"), ("p99_ms", 10, ".2f"),
    )  # fmt: skip
    if not options.json:
        load = os.getloadavg()[0]
        print(f"{options.rate:.0f} requests/s for {options.seconds:g} s, answers of {len(ANSWER)} B, load {load:.1f}")
        print("".join(f"{name:>{width}}" for name, width, _ in columns), flush=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-record-") as folder:
        for name in names:
            row = run(name, options.rate, options.seconds, Path(folder))
            rows.append(row)
            floor = next((one.get("cpu_us") for one in rows if one["recorder"] == "floor"), None)
            if floor and "cpu_us" in row:
                row["times_floor"] = row["cpu_us"] / floor
            if not options.json:  # each as it comes: a busy machine takes half a minute for one
                print("".join(f"{format(row[n], f) if n in row else '-':>{w}}" for n, w, f in columns), flush=True)
    if options.json:
        print(json.dumps({"rate": options.rate, "seconds": options.seconds, "load": os.getloadavg(), "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
