"""What a replayed request costs: CPU of all our processes at several open-loop rates, beside h2load in the same run.

    .venv/bin/python bench/replay.py [--rates 1000,5000,10000,20000] [--seconds 4] [--repeat 3] [--json]

The target is nginx on loopback where installed (apt install nginx-light), else a small epoll server in Python.
Peers: h2load --rps (apt install nghttp2-client; open loop, paced) and wrk (apt install wrk; closed loop, as fast as
it goes). Measured next to each rate, because machines differ and this one is not alone:

    floor    a bare firing loop in Python: the same bytes at the same rate and ticks, answers received and thrown away.
             x floor = firer + feeder + front, divided by it
    jitter   how much longer than asked a sleep of 500 us takes: no send error can be below it
    slow     how much longer than in the best moment of this run a fixed piece of arithmetic takes: CPU figures of a
             core whose sibling is busy are that much larger

With --repeat, figures are medians of the runs; achieved and shed are also printed for the worst.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import resource
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
# This file is named as the package that it measures, and its folder comes first in the path.
sys.path[:] = [str(_ROOT), *(entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent)]

from bus.logfile import LogWriter  # noqa: E402
from replay import app  # noqa: E402
from replay.settings import SECOND_NS, ReplaySettings  # noqa: E402
from wire.records import Baseline, Beat, Manifest, Request, Stamped  # noqa: E402

_TICKS = os.sysconf("SC_CLK_TCK")
BODY = b"ok" * 50
_FIELDS = b"".join(b"X-Header-%d: %b\r\n" % (n, b"v" * 20) for n in range(8))
_OWN_FIELDS = 290  # bytes of marker, trace context and shot name


def recording(path: Path, rate: int, seconds: float) -> Path:
    """GETs at exact distances with a browser's headers, four to a session."""
    baseline = Baseline(200, 1, b"HTTP/1.1 200 OK\r\n\r\n", BODY, len(BODY), b"")
    made = []
    for number in range(int(rate * seconds)):
        digest = hashlib.blake2b(b"%d" % number, digest_size=16).digest()
        session = hashlib.blake2b(b"s%d" % (number // 4), digest_size=16).digest()
        head = b"GET /item/%d?page=2 HTTP/1.1\r\nHost: shop\r\nUser-Agent: bench\r\n%b\r\n" % (number, _FIELDS)
        offset, start = (n * SECOND_NS // rate for n in (number, number - number % 4))
        made.append(Stamped(digest, session, "GET /item/{id}", offset, Request(head), baseline, start, number % 4))
    with LogWriter(path, Manifest("clean", "0", "bench", 1, "bench", sorted=True)) as writer:
        for at in range(0, len(made), 500):
            writer.write_records(made[at : at + 500], first_ns=made[at].offset_ns, last_ns=made[at].offset_ns)
        writer.end(sorted=True)
    return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def target(folder: Path) -> Iterator[tuple[str, str]]:
    """(name of the server, its URL)."""
    port = free_port()
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if nginx:
        config = folder / "nginx.conf"
        config.write_text(
            f"worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; daemon off;\n"
            f"events {{ worker_connections 8192; }}\nhttp {{ access_log off; keepalive_requests 1000000000;\n"
            f"  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 200 '{BODY.decode()}'; }} }} }}\n"
        )
        argv = [nginx, "-p", str(folder), "-c", str(config)]
    else:
        print("nginx is not installed (apt install nginx-light): a server in Python is the target", file=sys.stderr)
        argv = [sys.executable, __file__, "--serve", str(port)]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if time.monotonic() > deadline:
                raise SystemExit("the target does not start")
            time.sleep(0.02)
        yield ("nginx" if nginx else "python"), f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def serve(port: int) -> None:
    """The target where there is no nginx: one thread, epoll, a fixed answer for each empty line."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
    server = socket.create_server(("127.0.0.1", port), backlog=4096)
    poller, open_ = select.epoll(), {}
    poller.register(server.fileno(), select.EPOLLIN)
    while True:
        for fd, _ in poller.poll():
            if fd == server.fileno():
                client, _ = server.accept()
                open_[client.fileno()] = client
                poller.register(client.fileno(), select.EPOLLIN)
                continue
            data = b""
            with contextlib.suppress(OSError):
                data = open_[fd].recv(65536)
            if data:
                open_[fd].sendall(answer * data.count(b"\r\n\r\n"))
            else:
                open_.pop(fd).close()


def floor_us(url: str, rate: int, seconds: float) -> float:
    """CPU us a request of the least that fires in Python: a tick, what is due, what came. Nothing is kept."""
    wire = (
        b"GET /item/1?page=2 HTTP/1.1\r\nHost: shop\r\nUser-Agent: bench\r\n%b\r\n" % _FIELDS
        + b"x" * _OWN_FIELDS + b"\r\nConnection: keep-alive\r\n\r\n"
    ).replace(b"\r\n\r\nx", b"\r\nX: x")  # fmt: skip
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    poller = select.epoll()
    by_fd: dict[int, socket.socket] = {}
    idle: list[socket.socket] = []
    tick_ns = min(max(10 * SECOND_NS // rate, 250_000), 1_000_000)
    begin, count, sent, answered = time.monotonic_ns(), int(rate * seconds), 0, 0
    used = time.process_time()
    while answered < count:
        time.sleep(tick_ns / 1e9)
        due = min((time.monotonic_ns() - begin) * rate // SECOND_NS, count, sent + 64)
        while sent < due:
            if idle:
                sock = idle.pop()
            else:
                sock = socket.create_connection(address)
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                by_fd[sock.fileno()] = sock
                poller.register(sock.fileno(), select.EPOLLIN)
            sock.send(wire)
            sent += 1
        for fd, _ in poller.poll(0, 1024):
            sock = by_fd[fd]
            sock.recv(32768)
            answered += 1
            idle.append(sock)
        if time.monotonic_ns() - begin > (seconds + 20) * SECOND_NS:
            break
    used = time.process_time() - used
    for sock in by_fd.values():
        sock.close()
    return used / max(answered, 1) * 1e6


_best = float("inf")


def slow() -> float:
    """CPU time of a fixed piece of work, beside the least that it took in this run."""
    global _best
    used = time.process_time()
    sum(n & 7 for n in range(300_000))
    used = time.process_time() - used
    _best = min(_best, used)
    return used / _best


def cpu_of(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / _TICKS


def jitter_us(seconds: float = 0.5) -> dict[str, float]:
    """How much longer than asked a sleep of 500 us takes here, now."""
    late = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begin = time.perf_counter_ns()
        time.sleep(0.0005)
        late.append((time.perf_counter_ns() - begin - 500_000) / 1000)
    late.sort()
    return {"p50": late[len(late) // 2], "p99": late[int(len(late) * 0.99)], "max": late[-1]}


def measure(folder: Path, url: str, rate: int, seconds: float) -> dict[str, Any]:
    """One replay. CPU is taken between the first and the last look at the running processes."""
    looks: list[tuple[int, float, float, float]] = []  # sent; CPU s of feeder, firer, front (this process)
    slowness: list[float] = []

    def look(beats: dict[str, Beat]) -> None:
        for beat in beats.values():
            if beat.sent:
                with contextlib.suppress(OSError, ValueError, IndexError):
                    child = Path(f"/proc/{beat.pid}/task/{beat.pid}/children").read_text().split()[0]
                    looks.append((beat.sent, cpu_of(beat.pid), cpu_of(int(child)), time.process_time() - probes[0]))
                    used = time.process_time()
                    slowness.append(slow())
                    probes[0] += time.process_time() - used

    probes = [0.0]
    clean = folder / f"{rate}.lf"
    settings = ReplaySettings(
        recording=clean if clean.exists() else recording(clean, rate, seconds), target=url, runs=folder,
        run_id=f"run-{time.monotonic_ns()}",
        key_id="bench", key_hex="00" * 32, spread_ns=0, max_rate=rate * 4.0, max_open=8000,
    )  # fmt: skip
    jitter = jitter_us()
    result = app.run(settings, on_progress=look)
    if len(looks) > 1 and looks[-1][0] > looks[0][0]:
        sent = looks[-1][0] - looks[0][0]
        feeder, firer, front = ((looks[-1][n] - looks[0][n]) / sent * 1e6 for n in (1, 2, 3))
    else:
        feeder = firer = front = float("nan")
    floor = floor_us(url, rate, min(seconds, 2))
    return {
        "rate": rate, "achieved": round(result.answered / max(result.duration_s, 1e-9)), "shed": result.shed,
        "failed": result.failed, "balanced": result.balanced,
        "firer_us": round(firer, 1), "feeder_us": round(feeder, 1),
        "front_us": round(front, 1), "floor_us": round(floor, 1), "x_floor": round((firer + feeder + front) / floor, 2),
        "slow": round(statistics.median(slowness or [1.0]), 2),
        "all_us_with_start": round(result.cpu_s / max(result.sent, 1) * 1e6, 1), "send_error_ms": result.send_error_ms,
        "latency_ms": result.latency_ms, "jitter_us": {name: round(value) for name, value in jitter.items()},
    }  # fmt: skip


def peer(argv: list[str], seconds: float) -> tuple[float, str]:
    """CPU seconds and output of a peer."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 30, check=False).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, out


def h2load(url: str, rate: int, seconds: float) -> dict[str, Any] | None:
    if not shutil.which("h2load"):
        return None
    clients = 20
    argv = ["h2load", "--h1", f"-c{clients}", f"-D{int(seconds)}", f"--rps={rate // clients}", f"{url}/item/1?page=2"]
    cpu, out = peer(argv, seconds)
    done = re.search(r"(\d+) done", out)
    count = int(done.group(1)) if done else 0
    return {"rate": rate, "achieved": round(count / int(seconds)), "us": round(cpu / max(count, 1) * 1e6, 1)}


def wrk(url: str, seconds: float) -> dict[str, Any] | None:
    if not shutil.which("wrk"):
        return None
    cpu, out = peer(["wrk", "-t1", "-c20", f"-d{int(seconds)}s", f"{url}/item/1?page=2"], seconds)
    done = re.search(r"(\d+) requests in", out)
    count = int(done.group(1)) if done else 0
    return {"achieved": round(count / int(seconds)), "us": round(cpu / max(count, 1) * 1e6, 1)}


def median_of(runs: list[Any]) -> Any:
    """Of numbers, and of numbers in dicts; other values are the first run's."""
    if isinstance(runs[0], dict):
        return {key: median_of([run[key] for run in runs]) for key in runs[0]}
    if isinstance(runs[0], bool):
        return all(runs)
    known = [run for run in runs if isinstance(run, (int, float))]
    return round(statistics.median(known), 3) if known else runs[0]


def show(row: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    error, latency, jitter, other = row["send_error_ms"], row["latency_ms"], row["jitter_us"], row["h2load"]
    beside = f"{other['us']:.1f} us at {other['achieved']:.0f}/s" if other else "not installed"
    print(
        f"{row['rate']:>6.0f} {row['achieved']:>7.0f} ({min(run['achieved'] for run in runs):>5.0f})"
        f" {row['shed']:>6.0f} ({max(run['shed'] for run in runs):>5.0f}) {row['firer_us']:>5.1f}"
        f" {row['feeder_us']:>6.1f} {row['front_us']:>5.1f} {row['floor_us']:>6.1f} {row['x_floor']:>7.2f}"
        f" {row['all_us_with_start']:>11.1f}  {error['p50']:>8.2f}/{error['p99']:<8.2f}"
        f" {latency['p50']:>8.2f}/{latency['p99']:<8.2f} {row['slow']:>4.2f}"
        f"  {jitter['p50']:>6.0f}/{jitter['p99']:.0f}/{jitter['max']:.0f} {beside:>22}"
        + ("" if row["balanced"] else "  ACCOUNT DOES NOT BALANCE"),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="1000,5000,10000,20000")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
    rows = []
    slow()
    os.chdir(_ROOT)  # the workers find the packages here
    with tempfile.TemporaryDirectory() as folder, target(Path(folder)) as (name, url):
        if not args.json:
            print(f"target: {name}, {os.cpu_count()} cores, medians of {args.repeat}; CPU in us a request, times in ms")
            print("  rate achieved(worst)   shed(worst) firer feeder front  floor x floor   all+start"
                  "  send error p50/p99    latency p50/p99  slow  jitter p50/p99/max us       h2load")  # fmt: skip
        for rate in (int(word) for word in args.rates.split(",")):
            runs = []
            for _ in range(args.repeat):
                runs.append(measure(Path(folder), url, rate, args.seconds))
                runs[-1]["h2load"] = h2load(url, rate, args.seconds)
            row = median_of(runs)
            rows.append({**row, "runs": runs})
            if not args.json:
                show(row, runs)
        closed = wrk(url, args.seconds)
    if args.json:
        print(json.dumps({"target": name, "rows": rows, "wrk": closed}))
    elif closed:
        print(f"wrk, closed loop, 20 connections: {closed['us']} us at {closed['achieved']}/s")
    for tool, package in (("h2load", "nghttp2-client"), ("wrk", "wrk")):
        if not shutil.which(tool):
            print(f"{tool} is not installed: apt install {package}", file=sys.stderr)


if __name__ == "__main__":
    main()
