"""Exchanges a second on one core: masking, and raw -> clean, beside the floor (decode and encode the same bytes).

    python bench/cleanse.py [--count 4000]

Each exchange has 500-byte JSON bodies in request and answer, every one different; 14 and 8 header fields.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bus.logfile import LogReader, LogWriter
from cleanse.app import cleanse
from cleanse.settings import CleanseSettings
from mask.masker import Masker
from wire import codec
from wire.codec import RecordType
from wire.records import Exchange, Manifest, Request, Response

REQUEST = (
    b"POST /shop/orders/%d HTTP/1.1\r\nHost: shop.test:8080\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n"
    b"Accept: application/json\r\nAccept-Encoding: gzip, deflate\r\nAccept-Language: en-GB,en;q=0.9\r\n"
    b"Connection: keep-alive\r\nOrigin: http://shop.test\r\nReferer: http://shop.test/cart\r\nSec-Fetch-Mode: cors\r\n"
    b"Sec-Fetch-Site: same-origin\r\nCookie: theme=dark; sid=%b\r\nAuthorization: Bearer %b\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)
ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: shop\r\nDate: Fri, 20 Nov 2026 12:00:00 GMT\r\nContent-Type: application/json\r\n"
    b'Cache-Control: no-store\r\nVary: Accept-Encoding\r\nETag: "17"\r\nConnection: keep-alive\r\n'
    b"Content-Length: %d\r\n\r\n"
)
START_NS = 1_800_000_000_000_000_000


def make(count: int, bodies: bool) -> list[Exchange]:
    rng = random.Random(1)
    exchanges = []
    for n in range(count):
        session = n % 100
        token = b"%032x" % (session * 0x9E3779B97F4A7C15F39CC0605CEDC835 & ((1 << 128) - 1))
        body = b""
        if bodies:
            lines = [{"sku": f"sku-{rng.randrange(10**5):05d}", "n": k, "price": rng.randrange(9999)} for k in range(7)]
            whole = {
                "lines": lines,
                "email": f"u{n}@mail.example",
                "id": f"{rng.getrandbits(64):016x}",
                "note": "ring twice, please",
            }
            body = json.dumps(whole).encode()
            body = body[:-1] + b', "pad": "' + b"x" * max(0, 489 - len(body)) + b'"}'
        start = START_NS + n * 1_000_000
        exchanges.append(
            Exchange(
                n.to_bytes(16, "big"), session.to_bytes(16, "big"), b"c" * 16, "10.0.0.1:5000", "10.0.0.2:8080",
                Request(REQUEST % (n, token, token, len(body)), body, len(body)),
                Response(200, ANSWER % len(body), body.replace(b"sku", b"uks"), len(body)),
                start, start + 1, start + 2_000_000, start + 3_000_000,
            )
        )  # fmt: skip
    return exchanges


def cpu_us(work: Callable[[], object], count: int) -> float:
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4000)
    count = parser.parse_args().count
    key = b"a masking key of 32 bytes, yes.."
    heads_only, full = make(count, False), make(count, True)

    def mask(exchanges: list[Exchange]) -> list[Exchange]:
        masker = Masker(key)
        return [masker.exchange(e) for e in exchanges]

    with tempfile.TemporaryDirectory() as folder:
        raw, to = Path(folder) / "raw.lf", Path(folder) / "clean.lf"
        with LogWriter(raw, Manifest("raw", "0", "bench", START_NS, "bench")) as writer:
            masked = mask(full)
            for at in range(0, count, 256):
                writer.write_records(masked[at : at + 256])
            writer.end()

        def floor() -> None:
            with LogReader(raw) as reader:
                while messages := reader.read():
                    for message in messages:
                        batch = codec.decode(message.data)
                        if batch.header.type is RecordType.EXCHANGE:
                            codec.encode(batch.records)

        def clean(flows: bool) -> None:
            to.unlink(missing_ok=True)
            cleanse(raw, to, CleanseSettings(learn_flows=flows))

        base = cpu_us(floor, count)
        rows = [
            ("floor: decode + encode", base),
            ("mask, heads only", cpu_us(lambda: mask(heads_only), count)),
            ("mask, two bodies of 500 bytes", cpu_us(lambda: mask(full), count)),
            ("raw -> clean, without flows", cpu_us(lambda: clean(False), count)),
            ("raw -> clean", cpu_us(lambda: clean(True), count)),
        ]
    print(f"{'':32} {'us':>8} {'a second':>10} {'x floor':>8}   ({count} exchanges, CPU time, best of 3)")
    for name, us in rows:
        print(f"{name:32} {us:8.1f} {1e6 / us:10,.0f} {us / base:8.1f}")


if __name__ == "__main__":
    main()
