"""Fuzzing by mutation of real inputs: a record, a drop or need-more; never another exception, no hang, no bloat.

    python tests/fuzz/run.py --minutes 1 [--seed N] [--target NAME]

Seeds are golden files, small captures (the corpus beside the checkout, when it is there) and messages written here.
A failure prints the target, the seed, and writes the input to a temporary file.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bus.logfile import LogReader  # noqa: E402
from bus.ports import BusError  # noqa: E402
from capture.app import import_files, import_tool  # noqa: E402
from capture.assembler import Assembler  # noqa: E402
from capture.importing import Choice  # noqa: E402
from capture.log_format import LogFormat  # noqa: E402
from capture.settings import CaptureSettings  # noqa: E402
from capture.source_pcap import PcapSource  # noqa: E402
from livefire_shadow import BadMarker, verify  # noqa: E402
from mask.masker import Masker  # noqa: E402
from mask.settings import MaskSettings  # noqa: E402
from wire import codec, config, places  # noqa: E402

MAX_S = 1.0
MAX_RSS_BYTES = 256 << 20
KEY = b"k" * 32

HTTP = (
    b'POST /a/b?x=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\nCookie: sid=abcdef123456\r\n\r\n{"a": 12}'
    b"GET /c HTTP/1.1\r\nHost: h\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nT: x\r\n\r\n"
    b"HTTP/1.1 204 No Content\r\n\r\n",
)


_LINE = (
    b'10.0.0.7 - bob [07/Dec/2016:10:43:18 +0100] "POST /a?b=1 HTTP/1.1" 200 571 "-" "Mozilla/5.0 (\\"x\\") \\\\ y"\n'
)
_MONKEYS = "\n\U0001f435\U0001f648\U0001f649\n".encode()
_HAR = b"""{"log": {"version": "1.2", "creator": {"name": "x", "version": "1"}, "entries": [
{"startedDateTime": "2024-05-01T10:00:00.123+02:00", "time": 12.5, "request": {"method": "POST", "url":
"https://h:8443/a?b=1", "httpVersion": "HTTP/1.1", "headers": [{"name": "Host", "value": "h"}], "queryString": [],
"cookies": [], "headersSize": -1, "bodySize": 7, "postData": {"mimeType": "application/x-www-form-urlencoded", "params":
[{"name": "a", "value": "b c"}]}}, "response": {"status": 200, "statusText": "OK", "httpVersion": "h2", "headers":
[{"name": "content-type", "value": "text/plain"}], "cookies": [], "content": {"size": 2, "mimeType": "text/plain",
"text": "b2s=", "encoding": "base64"}, "redirectURL": "", "headersSize": -1, "bodySize": 2}, "cache": {}, "timings":
{"blocked": 1, "dns": -1, "connect": 2, "ssl": -1, "send": 0.5, "wait": 3, "receive": 4}}]}}"""
#: What other tools write, one each.
FOREIGN = {
    "har": [_HAR],
    "access_log": [
        _LINE,
        _LINE.replace(b' "-" "Mozilla', b' "http://r/" "Mozilla') * 2,
        _LINE.split(b' "-" ')[0] + b"\n",
        _LINE.replace(b" - bob ", b' - jo hn [x] \\"q\\" ').rstrip()
        + b" 87 0.250 [web] [] a:1, b:2 0, 1 0.1, 0.2 502, 200 id\n",
    ],
    "log_format": [
        b'$remote_addr [$time_local] "$request" $status $request_time\n\n'
        b'10.0.0.7 [07/Dec/2016:10:43:18 +0100] "GET /a HTTP/1.1" 200 0.012\n',
        b'%h %l %u %t "%r" %>s %b %D\n\n' + _LINE.split(b" 571 ")[0] + b" 571 1200\n",
        b'{"t": "$msec", "r": "$request", "s": "$status"}\n\n{"t": "1481103798.5", "r": "GET / HTTP/1.1", "s": "200"}\n',
        b'LogFormat "%{X-Forwarded-For}i %h %l %u %{%d/%b/%Y %T}t.%{msec_frac}t %{%z}t \\"%r\\" %s" x\n\n'
        b'9.9.9.9, a b 1.2.3.4 - "" 12/Mar/2024 10:00:01.250 +0000 "GET / HTTP/1.1" 200\n',
        rb"""log_format x 't:$time_iso8601\tr:$request\tu:$upstream_addr $upstream_response_time $server_protocol';"""
        b"\n\nt:2024-03-12T10:00:01+00:00\tr:GET / HTTP/1.1\tu:a:1, b:2 : c:3 0.1, 0.2 : 0.3 HTTP/2.0\n",
    ],
    "alb": [
        b"https 2018-07-02T22:23:00.186641Z app/lb/50dc6c495c0c9188 192.168.131.39:2817 10.0.0.1:80 0.086 0.048 0.037 200"
        b' 200 0 57 "GET https://www.example.com:443/ HTTP/1.1" "curl/7.46.0" ECDHE-RSA-AES128-GCM-SHA256 TLSv1.2 arn:aws'
        b' "Root=1-58337281-1d84f3d73c47ec4e58577259" "www.example.com" "arn:aws:acm:x" 1 2018-07-02T22:22:48.364000Z'
        b' "authenticate,forward" "-" "-" "10.0.0.1:80" "200" "-" "-" TID_123456\n'
    ],
    "goreplay": [
        b"1 aa 1000000000 0\n" + HTTP[0] + _MONKEYS + b"2 aa 1000001000 500\n" + HTTP[1] + _MONKEYS,
        b"1 bb 1000000000\n" + HTTP[0] + _MONKEYS + b"2 bb 1000001000 500\n" + HTTP[1] + _MONKEYS,
    ],
}


def fuzz_message(data: bytes) -> None:
    try:
        codec.decode(data)
    except codec.CodecError:
        pass


def fuzz_log_file(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".lf") as file:
        file.write(data)
        file.flush()
        try:
            with LogReader(file.name) as reader:
                while messages := reader.read():
                    for message in messages:
                        fuzz_message(message.data)
        except BusError:
            pass


def fuzz_capture_file(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "x.pcap"
        source.write_bytes(data)
        try:
            account = import_files([source], Path(folder) / "x.lf", CaptureSettings(), Masker(KEY, MaskSettings()), KEY)
        except (BusError, config.ConfigError):
            return
        assert account.balanced, f"the account does not balance: {account.as_json()}"


def imported(data: bytes, choice: Choice) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, to = Path(folder) / "input", Path(folder) / "x.lf"
        source.write_bytes(data)
        try:
            account = import_tool([source], to, choice, CaptureSettings(), Masker(KEY, MaskSettings()), KEY)
        except (BusError, config.ConfigError):
            return
        assert account.balanced, f"the account does not balance: {account.as_json()}"
        assert all(ledger.in_flight == 0 for ledger in account.ledgers.values())


def fuzz_har(data: bytes) -> None:
    imported(data, Choice("har"))


def fuzz_access_log(data: bytes) -> None:
    imported(data, Choice("nginx"))


def fuzz_log_format(data: bytes) -> None:
    """A log of a format of its own, and the format, behind which it stands."""
    written, _, log = data.partition(b"\n\n")
    text = written.decode("utf-8", "replace")
    try:
        LogFormat(text)
    except config.ConfigError:
        return
    imported(log, Choice("nginx", text))


def fuzz_alb(data: bytes) -> None:
    imported(data, Choice("alb"))


def fuzz_goreplay(data: bytes) -> None:
    imported(data, Choice("goreplay"))


def fuzz_stream(data: bytes) -> None:
    """The first byte says where the request side ends and how both are cut into pieces."""
    cut = 1 + (data[0] if data else 0) % 64
    middle = len(data) * (data[1] if len(data) > 1 else 128) // 256
    assembler = Assembler("fuzz", CaptureSettings(), Masker(KEY, MaskSettings()), KEY)
    channel = assembler.connection_opened("127.0.0.1:1", "127.0.0.1:2", 1)
    at = 2
    for from_client, part in ((True, data[2:middle]), (False, data[max(2, middle) :])):
        for start in range(0, len(part), cut):
            at += 1
            channel.data(from_client, part[start : start + cut], at)
    channel.closed(True, at)
    channel.closed(False, at)
    assembler.finish()
    assert assembler.account.balanced, f"the account does not balance: {assembler.account.as_json()}"


def fuzz_frame(data: bytes) -> None:
    """Two bytes that choose the link type, two for what was cut off, then frames, each behind its length."""
    links = (1, 0, 12, 101, 113, 276, 9, 104, 127, 239, 228, 229)
    assembler = Assembler("fuzz", CaptureSettings(), None, KEY)
    link, cut, at, now = links[data[0] % len(links)] if data else 1, data[1] if len(data) > 1 else 0, 2, 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "big") % 2000
        frame = data[at + 2 : at + 2 + size]
        now += 1 + 1000 * len(frame)
        assembler.packet(now, frame, len(frame) + cut, link)
        at += 2 + size
    assembler.finish()
    assert assembler.account.balanced, f"the account does not balance: {assembler.account.as_json()}"


def fuzz_segments(data: bytes) -> None:
    """Of one connection: seven bytes a segment say who sends it, where from its stream, which flags, how much of what."""
    assembler = Assembler("fuzz", CaptureSettings(max_connection_bytes=1 << 16, max_pipelined=4), None, KEY)
    streams, base = HTTP, (0xFFFFFF00, 0x7FFFFFF0)
    now, keys = 0, (bytes((10, 0, 0, 1, 10, 0, 0, 2, 4, 0, 0, 80)), bytes((10, 0, 0, 2, 10, 0, 0, 1, 0, 80, 4, 0)))
    for at in range(0, min(len(data), 7000) - 6, 7):
        who, flags, size, where, other, far, wait = data[at : at + 7]
        who &= 1
        text = streams[(who + (far >> 7)) % 2]
        payload = text[where % len(text) :][:size] if far & 1 else bytes((text[where % len(text)],)) * size
        if far & 2:
            payload = text[where % len(text) :][:size]
        sequence = (base[who] + 1 + where + ((far >> 2 & 31) << 27 if far & 64 else 0)) & 0xFFFFFFFF
        segment = (
            keys[who][8:] + sequence.to_bytes(4, "big") + ((base[1 - who] + other) & 0xFFFFFFFF).to_bytes(4, "big")
        )
        segment += bytes((0x50, flags & 0x1F, 1, 0, 0, 0, 0, 0)) + payload
        packet = bytes((0x45, 0)) + (20 + len(segment)).to_bytes(2, "big") + bytes((0, 0, 0, 0, 64, 6, 0, 0))
        frame = bytes(12) + bytes((8, 0)) + packet + keys[who][:8] + segment
        now += 1 + wait * wait * 1_000_000
        assembler.packet(now, frame, len(frame) + (size if wait == 255 else 0))
        assert assembler.account.balanced, f"the account does not balance: {assembler.account.as_json()}"
    assembler.finish()
    assert assembler.account.balanced
    assert all(ledger.in_flight == 0 for ledger in assembler.account.ledgers.values())


def fuzz_places(data: bytes) -> None:
    head, _, body = data.partition(b"\r\n\r\n")
    for place, _ in places.values_of_request(head + b"\r\n\r\n", body):
        places.substitute(head + b"\r\n\r\n", body, place, lambda value: value + "x")
    places.values_of_response(head + b"\r\n\r\n", body)


def fuzz_marker(data: bytes) -> None:
    try:
        verify(data.decode("latin-1"), {"k1": KEY}, 1_700_000_000.0)
    except BadMarker:
        return
    raise AssertionError("a mutated marker was believed")


def fuzz_config(data: bytes) -> None:
    try:
        config.load_yaml(data.decode("utf-8", "replace"), "fuzz.yaml")
    except config.ConfigError:
        pass


TARGETS: dict[str, Callable[[bytes], None]] = {
    "message": fuzz_message,
    "log_file": fuzz_log_file,
    "capture_file": fuzz_capture_file,
    "har": fuzz_har,
    "access_log": fuzz_access_log,
    "log_format": fuzz_log_format,
    "alb": fuzz_alb,
    "goreplay": fuzz_goreplay,
    "stream": fuzz_stream,
    "frame": fuzz_frame,
    "segments": fuzz_segments,
    "places": fuzz_places,
    "marker": fuzz_marker,
    "config": fuzz_config,
}


def seeds() -> dict[str, list[bytes]]:
    golden = [path.read_bytes() for path in sorted((ROOT / "tests" / "golden").glob("*.lf"))]
    messages = []
    for path in sorted((ROOT / "tests" / "golden").glob("*.lf")):
        with LogReader(path) as reader:
            messages += [message.data for message in reader.read()]
    corpus = Path(os.environ.get("LIVEFIRE_CORPUS", ROOT.parent / "shared" / "corpus")) / "pcap"
    captures = [
        p.read_bytes() for p in sorted(corpus.glob("*.pcap*")) if p.suffix != ".json" and p.stat().st_size < 20_000
    ]
    streams = [b"\x20\x80" + request + answer for request in HTTP for answer in HTTP]
    return {
        "message": messages,
        "log_file": golden,
        "capture_file": captures or [b"\xd4\xc3\xb2\xa1" + bytes(64)],
        **FOREIGN,
        "stream": [*streams, *_http_cases(corpus.parent / "http1")],
        "frame": _frames(captures),
        "segments": [bytes(random.Random(n).randrange(256) for _ in range(7 * 60)) for n in range(20)],
        "places": list(HTTP),
        "marker": [b"v1;run=r;exp=1700000100;kid=k1;sig=" + b"0" * 32],
        "config": [b"a: 1\nb: [1, {c: on}]\n", b"steps:\n  - {load: 1x, for: 10s}\n"],
    }


def _http_cases(folder: Path) -> list[bytes]:
    cases = [path.read_bytes() for path in sorted(folder.glob("*.raw"))]
    return [b"\x20" + (b"\xff" if b"HTTP/" not in case[:8] else b"\0") + case for case in cases]


def _frames(captures: list[bytes]) -> list[bytes]:
    """The first frames of each capture, as `fuzz_frame` takes them."""
    found = []
    for data in captures:
        frames = []
        try:
            for frame in PcapSource("x", stream=io.BytesIO(data)).frames():
                if frame is not None and len(frames) < 30:
                    frames.append(len(frame[1][:1999]).to_bytes(2, "big") + frame[1][:1999])
        except config.ConfigError:
            continue
        if frames:
            found.append(b"\0\0" + b"".join(frames))
    return found or [b"\0\0\0\x40" + bytes(64)]


def mutate(data: bytes, pool: list[bytes], chance: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        where = chance.randrange(len(out) + 1)
        what = chance.randrange(6)
        if what == 0 and out:
            out[where % len(out)] ^= 1 << chance.randrange(8)
        elif what == 1:
            del out[where : where + chance.randint(1, 40)]
        elif what == 2:
            out[where:where] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 8)))
        elif what == 3 and out:
            out[where % len(out)] = chance.choice((0, 0x7F, 0x80, 0xFF, 0x0D, 0x0A, 0x20, 0x3A))
        elif what == 4:
            other = chance.choice(pool)
            start = chance.randrange(len(other) + 1)
            out[where:where] = other[start : start + chance.randint(1, 200)]
        else:
            del out[where:]
    return bytes(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--target", choices=sorted(TARGETS))
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    inputs = seeds()
    names = [options.target] if options.target else list(TARGETS)
    print(f"seed {seed}")
    end = time.monotonic() + options.minutes * 60
    counts = dict.fromkeys(names, 0)
    slowest = dict.fromkeys(names, 0.0)
    while time.monotonic() < end:
        for name in names:
            data = mutate(chance.choice(inputs[name]), inputs[name], chance)
            began = time.process_time()
            try:
                TARGETS[name](data)
                took = time.process_time() - began
                assert took <= MAX_S, f"took {took:.2f} s"
                rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
                assert rss <= MAX_RSS_BYTES, f"{rss / 1e6:.0f} MB of memory"
            except Exception as error:
                with tempfile.NamedTemporaryFile(delete=False, suffix=f".{name}") as file:
                    file.write(data)
                print(f"FAILED {name}, seed {seed}, input {counts[name]}: {error!r}; kept in {file.name}")
                raise
            counts[name] += 1
            slowest[name] = max(slowest[name], took)
    for name in names:
        print(f"{name:<14} {counts[name]:>9,} inputs, slowest {slowest[name] * 1000:.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
