"""Packets to exchanges: microseconds of one core an exchange, from a pcap to a recording.

    python bench/capture.py [--exchanges N]

Three data packets an exchange (request, two of the answer), 18 header fields, answers of 300 bytes, keep-alive
connections.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from pcap_build import Conversation, Packet, pcap  # noqa: E402

from capture.app import import_files  # noqa: E402
from capture.assembler import Assembler  # noqa: E402
from capture.settings import CaptureSettings  # noqa: E402
from capture.source_pcap import PcapSource  # noqa: E402


def traffic(exchanges: int, per_connection: int = 50) -> list[Packet]:
    fields = b"".join(b"X-Field-%d: value number %d of a usual length\r\n" % (i, i) for i in range(16))
    answer_head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 300\r\n" + fields + b"\r\n"
    body = b'{"x": "%s"}' % (b"y" * 291)
    packets: list[Packet] = []
    for number in range(max(1, exchanges // per_connection)):
        client = (f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 1024 + number % 60000)
        talk = Conversation(client, client_isn=number * 7919, server_isn=number * 104729, step_ns=20_000)
        talk.now_ns += number * 1_000_000
        talk.open()
        for index in range(per_connection):
            head = b"GET /orders/%d HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: bench\r\n" % index
            talk.client(head + fields + b"\r\n").server(answer_head).server(body)
        talk.close()
        packets += talk.packets
    packets.sort(key=lambda packet: packet[0])
    return packets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exchanges", type=int, default=50_000)
    parser.add_argument("--profile", action="store_true")
    count = (args := parser.parse_args()).exchanges
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.pcap"
        path.write_bytes(pcap(traffic(count)))
        settings = CaptureSettings()

        def assemble() -> int:
            assembler = Assembler("bench", settings, None, b"bench")
            total = 0
            for frame in PcapSource(path).frames():
                if frame is not None:
                    assembler.packet(*frame)
                if len(assembler.ready) >= 1000:
                    total += len(assembler.take())
            total += len(assembler.finish())
            assert assembler.account.balanced
            return total

        def record() -> int:
            target = Path(folder) / "x.lf"
            target.unlink(missing_ok=True)
            account = import_files([path], target, settings)
            assert account.balanced
            return account.ledger("messages").emitted // 2

        if args.profile:
            profile = cProfile.Profile()
            profile.runcall(assemble)
            pstats.Stats(profile).sort_stats("tottime").print_stats(40)
            return
        for name, run in (("pcap -> exchanges", assemble), ("pcap -> recording, unmasked", record)):
            begun, cpu = time.perf_counter(), time.process_time()
            total = run()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - begun
            print(f"{name}: {total} exchanges, {total / wall:,.0f}/s, {1e6 * cpu / total:.1f} us CPU each")


if __name__ == "__main__":
    main()
