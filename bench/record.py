"""What recording costs, live on the loopback: what is lost, CPU an exchange, memory, production's latency; with peers.

    python bench/record.py [--rate N ...] [--seconds S] [--rounds N] [--only NAME ...] [--fresh] [--goreplay PATH]
    python bench/record.py --open 20000
    python bench/record.py --minutes 10 --rate 2000

A server (nginx, on one core) answers with 300 bytes; a paced client and the recorder share another core. Beside them
runs, one after another in each round: nothing; the floor (our ring, read and thrown away); `tcpdump -w` with 32 MB of
ring; GoReplay in its best configuration, where `--goreplay` names the program; `livefire record`, masked as it is by
default, and unmasked; with `--only proxy`, or where no ring is permitted, by proxy. Each writes to a temporary folder,
removed in the end. nginx and tcpdump come by `apt install nginx-light tcpdump`; what is not there is said and left
out. Capturing needs root or CAP_NET_RAW.

`lost`: requests that the server's access log has and the recorder's file has not; `no_answer`: more answers than
requests that it has not. `unaccounted`: what of both is more than the recorder itself admits to have lost. CPU is user
and system time of the recorder's processes, to 10 ms, from the first request until 2 s after the last. What the kernel
spends to fill a ring, in softirqs, is charged to who sends: see `traffic_us`, server and client together. `rss_mb` is
the most, ring included. p50 and p99 count from the time for which a request was planned, so they hold what the client
itself was late, who shares its core with the recorder; `p99_added` is against nothing in the same round. `rate` is
what the client reached.

`--open N`: memory of a recorder with so many open connections, one exchange done on each. `--minutes N`: its memory
at each half minute, and the slope.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import record_bed as bed
from record_peers import Recorder, Written, missing

sys.path[:0] = [str(bed.ROOT), str(bed.ROOT / "sdk" / "src")]

RATES = (2000.0, 5000.0, 10_000.0, 20_000.0)
NAMES = ("nothing", "floor", "tcpdump", "goreplay", "masked", "unmasked")
ASKED_FOR = ("proxy",)  # with --only, or where there is no ring
CONNECTIONS = 100
SETTLE_S = 2.0  # GoReplay flushes once a second, tcpdump reads a block once a second
MOST_REQUESTS = 400_000  # of a row: the disk is bounded
HALF_MINUTE_S = 30.0
RSS_TARGET_MB = 128
FLAT_MB = 2.0  # over all the time
COLUMNS = (
    ("recorder", 10, ""), ("rate", 8, ".0f"), ("served", 8, "d"), ("lost", 8, "d"), ("no_answer", 10, "d"),
    ("unaccounted", 12, "d"), ("cpu_us", 8, ".1f"), ("rss_mb", 8, ".0f"), ("file_mb", 8, ".1f"),
    ("traffic_us", 11, ".1f"), ("p50_ms", 8, ".2f"), ("p99_ms", 8, ".2f"), ("p99_added", 10, "+.2f"),
)  # fmt: skip


def client(where: set[int], *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--role", *map(str, arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=bed.pinned(where)
    )


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"the client ended: {process.wait()}")
    found: dict[str, Any] = json.loads(line)
    return found


def judged(row: dict[str, Any], server: bed.Server, recorder: Recorder, least: int) -> None:
    """What the recorder has, against the server's log."""
    served = server.served(least)
    row["served"] = len(served)
    written = recorder.written()
    if recorder.file.exists():
        row["file_mb"] = recorder.file.stat().st_size / 1e6
    if written is not None:
        row |= verdict(served, written)


def verdict(served: list[int], written: Written) -> dict[str, Any]:
    lost = len(set(served) - written.requests)
    no_answer = max(0, len(served) - lost - written.answers)
    found: dict[str, Any] = {"lost": lost, "no_answer": no_answer, "admitted": written.admitted}
    found["unaccounted"] = max(0, lost + no_answer - written.admitted)
    if written.balanced is not None:
        found |= {"balanced": written.balanced, "said": written.said}
    return found


def run(name: str, rate: float, seconds: float, options: argparse.Namespace, sample: bool = False) -> dict[str, Any]:
    """A row. `sample`: the recorder's memory is told at each half minute."""
    of_server, of_rest = bed.cores()
    row: dict[str, Any] = {"recorder": name}
    with tempfile.TemporaryDirectory(prefix="bench-record-") as place:
        folder = Path(place)
        server = bed.Server(folder, of_server, fresh=options.fresh)
        recorder: Recorder | None = None
        load: subprocess.Popen[str] | None = None
        try:
            if name != "nothing":
                recorder = Recorder(name, folder / "recorded", of_rest, server.port, options.goreplay)
            before = bed.cpu_us(recorder.process.pid) if recorder else 0.0
            server_before = bed.cpu_us(server.process.pid)
            target = recorder.target if recorder else server.port
            load = client(of_rest, "fire", target, rate, seconds, CONNECTIONS, int(options.fresh))
            begun, next_look, series = time.monotonic(), HALF_MINUTE_S, []
            while load.poll() is None:
                time.sleep(0.1)
                if recorder is None:
                    continue
                now = bed.rss_mb(recorder.process.pid)
                row["rss_mb"] = max(row.get("rss_mb", 0.0), now)
                if sample and time.monotonic() - begun >= next_look:
                    series.append((next_look / 60, now))
                    print(f"{next_look / 60:6.1f} min {now:8.1f} MB", flush=True)
                    next_look += HALF_MINUTE_S
            fired = told(load)
            row |= {name: fired[name] for name in ("sent", "answered", "rate", "p50_ms", "p99_ms")}
            answered = max(1, fired["answered"])
            row["traffic_us"] = fired["client_us"] + (bed.cpu_us(server.process.pid) - server_before) / answered
            if recorder is None:
                row["served"] = len(server.served(answered))
                return row
            time.sleep(SETTLE_S)
            row["cpu_us"] = (bed.cpu_us(recorder.process.pid) - before) / answered
            recorder.end()
            judged(row, server, recorder, answered)
            if sample:
                row["series"] = series
            return row
        finally:
            if load is not None and load.poll() is None:
                load.kill()
                load.wait()
            if recorder is not None:
                recorder.end()
            server.stop()


def table(names: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    say(options, "".join(f"{name:>{width}}" for name, width, _ in COLUMNS))
    for rate in options.rate:
        of_rate: list[dict[str, Any]] = []
        for _ in range(options.rounds):
            alone: float | None = None
            for name in names:
                row = run(name, rate, options.seconds, options)
                if name == "nothing":
                    alone = row["p99_ms"]
                elif alone is not None:
                    row["p99_added"] = row["p99_ms"] - alone
                of_rate.append(row | {"wanted": rate})
                tell(options, row)
        rows += of_rate
        if options.rounds > 1:
            say(options, f"medians of {options.rounds} rounds, {rate:.0f} a second; of what is lost the sum")
            for name in names:
                tell(options, middle([row for row in of_rate if row["recorder"] == name]))
    return rows


def middle(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"recorder": rows[0]["recorder"]}
    for name, _, form in COLUMNS[1:]:
        if values := [row[name] for row in rows if name in row]:
            found[name] = sum(values) if form == "d" else statistics.median(values)
    return found


def say(options: argparse.Namespace, text: str) -> None:
    if not options.json:
        print(text, flush=True)


def tell(options: argparse.Namespace, row: dict[str, Any]) -> None:
    cells = "".join(f"{format(row[n], f) if n in row else '-':>{w}}" for n, w, f in COLUMNS)
    unbalanced = "" if row.get("balanced", True) else "  NOT BALANCED"
    say(options, cells + unbalanced + (f"  ({row['said']})" if row.get("said") else ""))


def many_open(names: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    count: int = options.open
    may = bed.more_files(2 * count + 1000)
    if may < count + 100:
        print(f"this user may open {may} files: fewer connections than {count}", file=sys.stderr)
        count = may - 100
    of_server, of_rest = bed.cores()
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="bench-record-") as place:
            folder = Path(place)
            server = bed.Server(folder, of_server, connections=count + 100)
            recorder = holding = None
            try:
                recorder = Recorder(name, folder / "recorded", of_rest, server.port, options.goreplay)
                idle = bed.rss_mb(recorder.process.pid)
                holding = client(of_rest, "hold", recorder.target, count)
                got = told(holding)["open"]
                time.sleep(SETTLE_S)
                row = {"recorder": name, "open": got, "idle_mb": idle, **bed.memory_parts(recorder.process.pid)}
                recorder.end()
                judged(row, server, recorder, got)
            finally:
                for process in (holding,):
                    if process is not None:
                        process.kill()
                        process.wait()
                if recorder is not None:
                    recorder.end()
                server.stop()
        rows.append(row)
        verdict = "" if name in ("tcpdump", "goreplay") else f", at most {RSS_TARGET_MB} asked"
        say(
            options,
            f"{name}: {row['open']:,} connections open: Rss {row['rss_mb']:.0f} MB (Pss {row['pss_mb']:.0f}; "
            f"{row['ring_mb']:.0f} of Rss are the ring's pages; {idle:.0f} before the first){verdict}; "
            f"served {row['served']:,}, lost {row['lost']}, unaccounted {row['unaccounted']}",
        )
    return rows


def minutes(names: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        say(options, f"{name}, {options.rate[0]:.0f} a second for {options.minutes:g} minutes")
        row = run(name, options.rate[0], options.minutes * 60, options, sample=not options.json)
        later = [(at, mb) for at, mb in row.get("series", ()) if at >= 1]  # caches are full then
        if len(later) > 2:
            slope = statistics.linear_regression([at for at, _ in later], [mb for _, mb in later]).slope
            row["mb_a_minute"] = slope
            grown = slope * (later[-1][0] - later[0][0])
            word = "flat" if grown <= FLAT_MB else "NOT FLAT"
            say(options, f"slope after the first minute {slope:+.2f} MB a minute, {grown:+.1f} in all: {word}")
        say(options, "".join(f"{name:>{width}}" for name, width, _ in COLUMNS))
        tell(options, row)
        rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, nargs="+", metavar="N", help="requests a second (default: 2000 to 20000)")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--only", nargs="+", choices=NAMES + ASKED_FOR, metavar="NAME", help=", ".join(NAMES + ASKED_FOR)
    )
    parser.add_argument("--fresh", action="store_true", help="each head has a field of its own (X-Request-Id)")
    parser.add_argument("--goreplay", default=shutil.which("gor") or "", metavar="PATH")
    parser.add_argument("--open", type=int, metavar="N")
    parser.add_argument("--minutes", type=float, metavar="N")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        role, port, *rest = options.role
        if role == "hold":
            print(json.dumps({"open": bed.hold(int(port), int(rest[0]))}), flush=True)
            sys.stdin.read()
        else:
            rate, seconds, connections, fresh = map(float, rest)
            print(json.dumps(bed.fire(int(port), rate, seconds, int(connections), bool(fresh))), flush=True)
        return 0
    options.rate = options.rate or ([2000.0] if options.minutes else list(RATES))
    if not options.minutes and max(options.rate) * options.seconds > MOST_REQUESTS:
        parser.error(f"at most {MOST_REQUESTS:,} requests in a row of the table: the disk is bounded")
    if options.minutes and max(options.rate) * options.minutes * 60 > 99_999_999:
        parser.error("at most 99,999,999 requests: each has a number of eight digits")
    from capture.source_ring import explained, open_error

    if refused := open_error():
        print(f"no ring here: {explained(refused)}; by proxy alone", file=sys.stderr)
    asked = options.only or (["masked"] if options.open or options.minutes else list(NAMES))
    if refused:
        asked = ["proxy"] if options.open or options.minutes else ["nothing", "proxy"]
    without = missing(options.goreplay)
    for name in asked:
        if name in without:
            print(without[name], file=sys.stderr)
    names = [name for name in asked if name not in without]
    if bed.nginx() is None:
        print("nginx is not installed: a server of Python stands in for it (apt install nginx-light)", file=sys.stderr)
    of_server, of_rest = bed.cores()
    say(
        options,
        f"server ({'nginx' if bed.nginx() else 'Python'}) on core {min(of_server)}, client and recorder on core "
        f"{min(of_rest)}, {CONNECTIONS} connections; load of the machine {os.getloadavg()[0]:.1f}",
    )
    if options.open:
        rows = many_open([name for name in names if name not in ("nothing", "floor")], options)
    elif options.minutes:
        rows = minutes(names, options)
    else:
        rows = table(names, options)
    if options.json:
        print(json.dumps({"server": "nginx" if bed.nginx() else "python", "load": os.getloadavg(), "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
