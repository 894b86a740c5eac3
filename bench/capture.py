"""Packets to exchanges: microseconds of one core an exchange, from a pcap to a recording, unmasked and masked.

    python bench/capture.py [--exchanges N] [--large | --many [N ...] | --profile | --profile-masked]

Three data packets an exchange (request, two of the answer), 18 header fields, answers of 300 bytes of JSON, keep-alive
connections. In `fresh` traffic every head has an id and every connection a cookie of its own, and bodies differ; in
`alike` traffic all heads have the same fields, and all bodies are one. The floor reads the packets and gives each
payload to llhttp (httptools), and does nothing else: no order, no pairs, no records.

`--large`: answers of 1 MiB instead, in segments, in large frames and in chunks, beside the floor and
`dd conv=fdatasync` of the same recording onto the same disk.
`--many`: what an exchange costs with so many connections over time (default 10,000 and 100,000, one exchange each), and
with 1,000 and 20,000 open at once, in each row also as a ratio to the floor.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import httptools  # noqa: E402
from pcap_build import Conversation, Packet, pcap  # noqa: E402

from capture.app import import_files  # noqa: E402
from capture.assembler import Assembler  # noqa: E402
from capture.heap import collect_seldom  # noqa: E402
from capture.settings import CaptureSettings  # noqa: E402
from capture.source_pcap import PcapSource  # noqa: E402
from mask.masker import Masker  # noqa: E402
from wire.compiled import compiled  # noqa: E402

KEY = b"a key of 32 bytes for this bench"


def traffic(
    exchanges: int,
    fresh: bool,
    per_connection: int = 50,
    *,
    apart_ns: int = 1_000_000,
    step_ns: int = 20_000,
    first: int = 0,
) -> list[Packet]:
    """`apart_ns` between the beginnings of connections, `step_ns` between the packets of one; `first`: how many
    connections there were before."""
    fields = b"".join(b"X-Field-%d: value number %d of a usual length\r\n" % (i, i) for i in range(13 if fresh else 16))
    answer_head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" + fields
    packets: list[Packet] = []
    for number in range(first, first + max(1, exchanges // per_connection)):
        client = (f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 1024 + number % 60000)
        talk = Conversation(client, client_isn=number * 7919, server_isn=number * 104729, step_ns=step_ns)
        talk.now_ns += number * apart_ns
        talk.open()
        for index in range(per_connection):
            head = b"GET /orders/%d HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: bench\r\n" % index + fields
            body = b'{"x": "%s"}' % (b"y" * 291)
            answer = answer_head
            if fresh:
                one = number * per_connection + index
                own = b"X-Request-Id: %032x\r\nDate: Fri, 20 Nov 2026 12:%02d:%02d GMT\r\n" % (
                    one * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128), one // 60 % 60, one % 60,
                )  # fmt: skip
                head += own + b"Cookie: theme=dark; sid=%032x\r\n" % (number * 0x9E3779B97F4A7C15 + 1)
                answer += own + b'ETag: "%x"\r\n' % one
                items = b", ".join(b'{"sku": "sku-%05d", "n": %d, "price": %d}' % (one + k, k, one) for k in range(4))
                body = b'{"id": %d, "state": "paid", "lines": [%s], "note": "%s"}' % (one, items, b"ring twice " * 9)
                body = body[:298] + b'"}'
            talk.client(head + b"\r\n").server(answer % len(body) + b"\r\n").server(body)
        talk.close()
        packets += talk.packets
    packets.sort(key=lambda packet: packet[0])
    return packets


class Nobody:
    """What a parser tells is not listened to."""


def floor(path: Path) -> int:
    parsers: dict[bytes, httptools.HttpRequestParser | httptools.HttpResponseParser] = {}
    nobody = Nobody()
    requests = 0
    for frame in PcapSource(path).frames():
        if frame is None:
            continue
        data = frame[1]
        if len(data) <= 54:
            if data[47] & 1:  # FIN
                parsers.pop(data[26:38], None)
            continue
        key, payload = data[26:38], data[54:]
        parser = parsers.get(key)
        if parser is None:
            request = data[36:38] == b"\0\x50"
            kind = httptools.HttpRequestParser if request else httptools.HttpResponseParser
            parser = parsers[key] = kind(nobody)
        parser.feed_data(payload)
        requests += data[36:38] == b"\0\x50"
    return requests


def large(folder: Path, megabytes: int = 64) -> None:
    shapes = (
        ("segments of 1,448", 1448, 0, 0), ("an ACK after every 2", 1448, 0, 2),
        ("frames of 60,000", 60_000, 0, 0), ("chunks of 8 KB", 1448, 8192, 0),
    )  # fmt: skip
    print(f"answers of 1 MiB, masked, medians of 3{'ms CPU a MiB':>25} {'MiB/s of a core':>16} {'by the clock':>13}")
    for what, mss, chunk, acked in shapes:
        path, target = folder / "large.pcap", folder / "large.lf"
        path.write_bytes(pcap(_answers(megabytes, mss, chunk, acked)))
        rows: dict[str, list[tuple[float, float]]] = {"floor: packets, llhttp": [], "recording": [], "dd": []}
        for _ in range(3):
            with _timed(rows["floor: packets, llhttp"]):
                floor(path)
            target.unlink(missing_ok=True)
            (folder / "dd").unlink(missing_ok=True)
            with _timed(rows["recording"]):
                account = import_files([path], target, CaptureSettings(), Masker(KEY), KEY)
                with target.open("rb") as file:
                    os.fdatasync(file.fileno())
            assert account.balanced
            assert account.ledger("messages").emitted == 2 * megabytes
            with _timed(rows["dd"]):
                command = ["dd", f"if={target}", f"of={folder / 'dd'}", "bs=1M", "conv=fdatasync", "status=none"]
                subprocess.run(command, check=True)
        dd = sorted(wall for _, wall in rows["dd"])[1]
        for name, times in rows.items():
            cpu, wall = sorted(cpu for cpu, _ in times)[1], sorted(wall for _, wall in times)[1]
            share = f"{100 * dd / wall:.0f} % of dd" if name == "recording" else ""
            print(
                f"  {what:20} {name:24} {1e3 * cpu / megabytes:14.2f} {megabytes / cpu:16.0f} "
                f"{megabytes / wall:13.0f} {share}", flush=True,
            )  # fmt: skip


def _answers(megabytes: int, mss: int, chunk: int, acked: int) -> list[Packet]:
    """`acked`: after so many segments comes an ACK, as behind a switch; 0: none, as where a card answers."""
    rng = random.Random(1)
    talk = Conversation(("10.0.0.1", 40000), step_ns=2_000).open()
    for number in range(megabytes):
        talk.client(b"GET /files/%d HTTP/1.1\r\nHost: files.example\r\n\r\n" % number)
        body, how = rng.randbytes(1 << 20), b"Content-Length: %d" % (1 << 20)
        if chunk:
            parts = [body[at : at + chunk] for at in range(0, len(body), chunk)]
            body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
            how = b"Transfer-Encoding: chunked"
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n" + how + b"\r\n\r\n" + body
        step = acked * mss or len(answer)
        for at in range(0, len(answer), step):
            talk.send(1, answer[at : at + step], mss=mss)
            if acked:
                talk.ack(0)
    return talk.close().packets


@contextmanager
def _timed(into: list[tuple[float, float]]) -> Iterator[None]:
    """CPU of this process and of those it waited for, and the clock; seconds."""
    begun, cpu = time.perf_counter(), _cpu_s()
    yield
    into.append((_cpu_s() - cpu, time.perf_counter() - begun))


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in used)


_APART_NS = 50_000
_PACKETS_OF_TWO = 13  # of a connection with two exchanges


def over_time(path: Path, connections: int) -> None:
    """One exchange each, a millisecond apart, in a file that is never in memory as a whole: 2.2 GB for a million."""
    with path.open("wb") as file:
        for first in range(0, connections, 10_000):
            file.write(pcap(traffic(min(10_000, connections - first), False, 1, first=first))[24 if first else 0 :])


def many(folder: Path, counts: list[int]) -> None:
    path, target = folder / "many.pcap", folder / "many.lf"
    for n in counts:
        over_time(path, n)
        measure(f"{n:,} connections over time", path, target, n, 1, 3 if n <= 100_000 else 1)
    for n in (1000, 20_000):
        step_ns = n * _APART_NS // _PACKETS_OF_TWO  # what begins while one connection lasts is open beside it
        path.write_bytes(pcap(traffic(60_000, False, 2, apart_ns=_APART_NS, step_ns=step_ns)))
        measure(f"{n:,} open at once", path, target, 60_000, 2, 3)


def measure(what: str, path: Path, target: Path, exchanges: int, each: int, rounds: int) -> None:
    ours, floors = [], []
    for _ in range(rounds):
        target.unlink(missing_ok=True)
        floors.append(cpu_us(lambda: floor(path), exchanges))
        ours.append(cpu_us(lambda: recorded(path, target, exchanges), exchanges))
    us, least = sorted(ours)[rounds // 2], sorted(floors)[rounds // 2]
    print(f"{what:32} {each:3} exchanges each {us:8.1f} us CPU an exchange, {us / least:5.1f} x floor", flush=True)


def recorded(path: Path, target: Path, exchanges: int) -> None:
    account = import_files([path], target, CaptureSettings(), Masker(KEY), KEY)
    assert account.balanced
    assert account.ledger("messages").emitted == 2 * exchanges


def cpu_us(run: Callable[[], object], exchanges: int) -> float:
    cpu = time.process_time()
    run()
    return 1e6 * (time.process_time() - cpu) / exchanges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exchanges", type=int, default=20_000)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--many", type=int, nargs="*", metavar="N")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--profile-masked", action="store_true")
    count = (args := parser.parse_args()).exchanges
    settings = CaptureSettings()
    print(f"load {os.getloadavg()[0]:.1f}; packet path {'compiled' if compiled() else 'interpreted'}")
    collect_seldom()  # as the command does
    with tempfile.TemporaryDirectory() as folder:
        if args.large:
            return large(Path(folder))
        if args.many is not None:
            return many(Path(folder), args.many or [10_000, 100_000])
        for name in ("fresh", "alike"):
            path = Path(folder) / f"{name}.pcap"
            path.write_bytes(pcap(traffic(count, name == "fresh")))

            def assemble(masked: bool, path: Path = path) -> int:
                masker = Masker(KEY) if masked else None
                assembler = Assembler("bench", settings, masker, KEY)
                total = 0
                for _ in PcapSource(path).read_into(assembler, 3000):
                    total += len(assembler.take())
                total += len(assembler.finish())
                assert assembler.account.balanced
                return total

            def record(masked: bool, path: Path = path) -> int:
                target = Path(folder) / "x.lf"
                target.unlink(missing_ok=True)
                account = import_files([path], target, settings, Masker(KEY) if masked else None, KEY)
                assert account.balanced
                return account.ledger("messages").emitted // 2

            if args.profile or args.profile_masked:
                profile = cProfile.Profile()
                profile.runcall(assemble, args.profile_masked)
                pstats.Stats(profile).sort_stats("tottime").print_stats(30)
                continue
            print(f"{name} traffic")
            lowest = 0.0
            for what, run in (
                ("floor: packets and llhttp", lambda path=path: floor(path)),
                ("pcap -> exchanges", lambda: assemble(False)),
                ("pcap -> exchanges, masked", lambda: assemble(True)),
                ("pcap -> recording", lambda: record(False)),
                ("pcap -> recording, masked", lambda: record(True)),
            ):
                best, wall, total = float("inf"), 0.0, 0
                for _ in range(3):
                    begun, cpu = time.perf_counter(), time.process_time()
                    total = run()
                    cpu = time.process_time() - cpu
                    if cpu < best:
                        best, wall = cpu, time.perf_counter() - begun
                us = 1e6 * best / total
                lowest = lowest or us
                print(f"  {what:28} {us:7.1f} us CPU each {us / lowest:6.1f} x floor {total / wall:10,.0f}/s")


if __name__ == "__main__":
    main()
