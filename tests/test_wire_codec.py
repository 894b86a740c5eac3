"""A message is a batch, or a CodecError of the closed set; never another exception, never unbounded memory."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bus.logfile import LogReader
from wire import codec
from wire.account import Account, Increment
from wire.codec import CodecError, RecordType
from wire.records import Drop, Manifest, Pane, Request, SourceRange

GOLDEN = Path(__file__).resolve().parent / "golden"
_spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
assert _spec is not None and _spec.loader is not None
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)

REASONS = {"truncated", "foreign", "future_version", "unknown_type", "corrupt", "too_large"}
INT64 = st.integers(-(2**63), 2**63 - 1)
HEADER = codec._HEADER


def message(body: bytes, kind: int, count: int, *, compression: int = 0, meta: bytes | None = None) -> bytes:
    """A message made by hand, also of what `encode` would not write."""
    meta = msgspec.msgpack.encode([[]]) if meta is None else meta
    return HEADER.pack(b"LF", 1, kind, compression, len(meta), count, 0, 0) + meta + body


def outcome_of(data: bytes) -> str:
    """'batch', or the reason of the CodecError. Any other exception goes through, and fails the test."""
    try:
        codec.decode(data)
    except CodecError as error:
        assert error.reason in REASONS
        assert "\n" not in str(error)
        return error.reason
    return "batch"


def samples() -> list[bytes]:
    out = []
    for kind, records in make.RECORDS.items():
        out.append(codec.encode(records, kind, first_ns=1, last_ns=2, sources=make.SOURCES, increment=make.increment()))
    out.append(codec.encode(make.RECORDS[RecordType.EXCHANGE] * 20))
    return out


def test_what_the_header_carries_comes_back() -> None:
    @given(INT64, INT64, st.lists(st.builds(SourceRange, st.text(), st.text(), INT64, INT64), max_size=3).map(tuple))
    def comes_back(first: int, last: int, sources: tuple[SourceRange, ...]) -> None:
        account = Account()
        account.ledger("messages").seen = 3
        increment = account.take()
        data = codec.encode(
            [Drop("a", "b", False, 1)], first_ns=first, last_ns=last, sources=sources, increment=increment
        )
        header = codec.decode_header(data)
        assert (header.first_ns, header.last_ns, header.sources, header.increment) == (first, last, sources, increment)
        assert codec.glance(data) == (RecordType.DROP, 1, first, last)
        assert codec.decode(data, header) == codec.decode(data)

    comes_back()


def test_a_batch_without_records_names_its_type() -> None:
    data = codec.encode((), RecordType.ACCOUNT, increment=make.increment())
    assert codec.decode(data).records == ()
    assert codec.decode_header(data).increment == make.increment()
    with pytest.raises(ValueError, match="name its type"):
        codec.encode(())


def test_compression_can_be_left_for_later() -> None:
    for sent in samples():
        records = codec.decode(sent).records
        head = codec.decode_header(sent)
        options = {"first_ns": head.first_ns, "last_ns": head.last_ns, "sources": head.sources}
        plain = codec.encode(records, head.type, increment=head.increment, compress=False, **options)  # type: ignore[arg-type]
        assert codec.decode_header(plain).compression == 0
        assert codec.decode(codec.compressed(plain)).records == codec.decode(plain).records == records
        assert codec.compressed(codec.compressed(plain)) == codec.compressed(plain)
        assert codec.decode_header(codec.compressed(plain)).increment == head.increment


def test_large_batches_are_compressed_and_small_ones_are_not() -> None:
    small, large = codec.encode([Drop("a", "b", False, 1)]), codec.encode([Drop("a", "b", False, 1)] * 1000)
    assert codec.decode_header(small).compression == 0 and codec.decode_header(large).compression == 1
    assert len(large) < 1000 and len(codec.decode(large).records) == 1000


def test_large_bodies_that_do_not_compress_are_left_as_they_are() -> None:
    noise = random.Random(1).randbytes(600 << 10)
    text = b"".join(b'{"sku": "sku-%d"}, ' % number for number in range(40_000))

    def compression(*bodies: bytes) -> int:
        one = make.RECORDS[RecordType.EXCHANGE][0]
        records = [msgspec.structs.replace(one, request=Request(b"", body)) for body in bodies]
        data = codec.encode(records)
        assert codec.decode(data).records == tuple(records)
        assert data == codec.compressed(codec.encode(records, compress=False))
        return codec.decode_header(data).compression

    assert compression(noise) == compression(noise, noise) == 0
    assert compression(text) == compression(noise, text) == compression(noise[:300_000] + text) == 1
    assert compression(noise[:100_000], noise[:100_000]) == 1, "one is alike to the one before"


def test_every_truncation_is_an_error_of_the_set() -> None:
    for data in samples():
        for length in range(len(data)):
            assert outcome_of(data[:length]) != "batch", length
        assert outcome_of(data) == "batch"  # negative control: the whole message is one


def test_every_byte_changed_gives_a_batch_or_an_error_of_the_set() -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    choose = random.Random(seed)
    seen: set[str] = set()
    for data in samples():
        for at in range(len(data)):
            changed = bytearray(data)
            changed[at] ^= choose.randrange(1, 256)
            seen.add(outcome_of(bytes(changed)))
    assert {"batch", "corrupt", "foreign", "future_version", "unknown_type"} <= seen


@given(st.binary(max_size=200), st.sampled_from(RecordType), st.sampled_from([0, 1]), st.integers(0, 20))
def test_any_body_gives_a_batch_or_an_error_of_the_set(body: bytes, kind: RecordType, zip: int, count: int) -> None:
    assert outcome_of(message(body, kind, count, compression=zip)) in REASONS | {"batch"}
    assert outcome_of(body) in REASONS | {"batch"}


MANIFEST_FRONT = b"\x91\x98\xa1a\xa1b\xa1c\x00\xa1d\x90\xcb\x3f\xf0\0\0\0\0\0\0\x81\xa1k"  # up to settings["k"]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty", b"", "truncated"),
        ("foreign", b"PK" + bytes(60), "foreign"),
        ("later version", b"LF\x02" + bytes(60), "future_version"),
        ("version 0", b"LF\x00" + bytes(60), "corrupt"),
        ("later type", message(b"\x90", 200, 0), "unknown_type"),
        ("unknown compression", message(b"\x90", 11, 0, compression=9), "corrupt"),
        ("count lies", message(b"\x91\x94\xa0\xa0\xc2\x01", 11, 2), "corrupt"),
        ("not an array", message(b"\x01", 11, 1), "corrupt"),
        ("wrong field type", message(b"\x91\x94\xa0\xa0\xc2\xa1x", 11, 1), "corrupt"),
        ("text that is not UTF-8", message(b"\x91\x94\xa1\xff\xa0\xc2\x01", 11, 1), "corrupt"),
        ("meta that is not UTF-8", message(b"\x90", 11, 0, meta=b"\x91\x91\x94\xa1\xff\xa0\x01\x01"), "corrupt"),
        ("nested without end", message(MANIFEST_FRONT + b"\x91" * 200_000 + b"\x90", 1, 1), "corrupt"),
        ("map as a key", message(MANIFEST_FRONT + b"\x81\x81\x01\x02\x03", 1, 1), "corrupt"),
        ("array of 2**32", message(b"\xdd\xff\xff\xff\xff\x90", 11, 0xFFFFFFFF), "corrupt"),
        ("map of 2**32", message(MANIFEST_FRONT + b"\xdf\xff\xff\xff\xff", 1, 1), "corrupt"),
        ("zstd garbage", message(b"\x28\xb5\x2f\xfd" + bytes(20), 11, 1, compression=1), "corrupt"),
        ("account with records", message(b"\x91\x90", 19, 1), "corrupt"),
    ],
)
def test_what_is_no_batch_says_why(name: str, data: bytes, reason: str) -> None:
    assert outcome_of(data) == reason


BOMBS = """
import resource, sys
import msgspec, zstandard
from wire import codec
meta = msgspec.msgpack.encode([[]])

def bomb(kind, count, body, **options):
    packed = zstandard.ZstdCompressor(level=1, **options).compress(body)
    return codec._HEADER.pack(b"LF", 1, kind, 1, len(meta), count, 0, 0) + meta + packed

def plain(kind, packed):
    return codec._HEADER.pack(b"LF", 1, kind, 1, len(meta), 1, 0, 0) + meta + packed

def array(length):
    return b"\\xdd" + length.to_bytes(4, "big")

n = 1_500_000
m = 1_500_000
sketch = b"\\x94\\x06\\x00" + array(m) + b"\\xe0" * m + b"\\x90"
pane = b"\\x91\\xdc\\x00\\x10\\x01\\xa0\\x00\\xa0\\xa6stress" + b"\\x00" * 9 + sketch + sketch[:3] + b"\\x90\\x90"
front = b"\\x91\\x98\\xa1a\\xa1b\\xa1c\\x00\\xa1d\\x90\\xcb\\x3f\\xf0\\0\\0\\0\\0\\0\\0\\x81\\xa1k"
cases = {
    "empty records": bomb(19, n, array(n) + b"\\x90" * n),
    "nested lists": bomb(1, 1, front + array(n) + b"\\x90" * n),
    "small integers": bomb(10, 1, pane),
    "zeros": bomb(3, 1, bytes(65 << 20)),
    "no content size": bomb(3, 1, bytes(10 << 20), write_content_size=False),
    "within the limit": bomb(12, 1, bytes(20 << 20)),
    "content size lies": plain(12, b"\\x28\\xb5\\x2f\\xfd\\xa0\\x00\\x00\\x00\\x04\\x01\\x00\\x00"),
}
"""


WRITE_BOMBS = """
for name, data in cases.items():
    with open(f"{sys.argv[1]}/{name}", "wb") as file:
        file.write(data)
"""
READ_BOMBS = """
import resource, sys
from wire import codec
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        data = file.read()
    try:
        codec.decode(data)
        said = "batch"
    except codec.CodecError as error:
        said = error.reason
    print(said, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_stays_bounded_whatever_a_message_says(tmp_path: Path) -> None:
    root = GOLDEN.parent.parent
    subprocess.run([sys.executable, "-c", BOMBS + WRITE_BOMBS, str(tmp_path)], cwd=root, check=True)
    paths = sorted(str(path) for path in tmp_path.iterdir())
    ran = subprocess.run([sys.executable, "-c", READ_BOMBS, *paths], cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    lines = ran.stdout.splitlines()
    assert len(lines) == len(paths) == 7
    for path, (said, before, peak) in zip(paths, (line.split() for line in lines), strict=True):
        print(Path(path).name, Path(path).stat().st_size, said, peak)
        assert said in REASONS | {"batch"}, path
        # A byte of a body takes at most 75 bytes of memory, so the 8 MiB that such a batch may have take 600 MiB.
        assert (int(peak) - int(before)) * unit < 75 * 1_500_000 + (32 << 20), (path, said, peak)


def test_a_batch_that_is_too_large_is_refused_when_it_is_written() -> None:
    with pytest.raises(CodecError, match=r"1 drop records has \d+ bytes, at most 8388608") as caught:
        codec.encode([Drop("x" * (9 << 20), "", False, 1)])
    assert caught.value.reason == "too_large"
    with pytest.raises(CodecError, match="too many source ranges"):
        codec.encode([Drop("a", "b", False, 1)], sources=(SourceRange("t", "p", 0, 1),) * 20_000)


@pytest.mark.parametrize("drop", [Drop("caf\udce9", "", False, 1), Drop("a", "b", False, 1 << 64)])
def test_what_no_message_can_hold_is_refused_when_it_is_written(drop: Drop) -> None:
    with pytest.raises(CodecError, match="a batch of 1 drop records cannot be written") as caught:
        codec.encode([drop])
    assert caught.value.reason == "unwritable"


def test_names_of_files_that_are_not_utf8_travel_with_backslashes() -> None:
    made = Manifest(
        "raw", "0", "r", 1, "w", settings={"to": "caf\udce9.lf", "n": [1, "\udcff"]}, inputs=("\udce9.pcap",)
    )
    (found,) = codec.decode(codec.encode([made])).records
    assert found.inputs == ("\\xe9.pcap",) and found.settings == {"to": "caf\\xe9.lf", "n": [1, "\\xff"]}
    with pytest.raises(CodecError, match="cannot be written"):
        codec.encode([Manifest("raw", "0", "r\udce9", 1, "w")])
    with pytest.raises(CodecError, match="cannot be written"):
        codec.encode([Manifest("raw", "0", "r", 1, "w", inputs=("\ud800",))])


def test_a_body_that_zstd_announces_too_large_is_not_decompressed() -> None:
    packed = zstandard.ZstdCompressor(level=1).compress(bytes((8 << 20) + 1))
    assert outcome_of(message(packed, RecordType.DROP, 1, compression=1)) == "too_large"
    assert outcome_of(message(packed, RecordType.DEAD, 1, compression=1)) == "corrupt"  # read, and found no record


def test_meta_of_a_newer_minor_version_is_read() -> None:
    meta = msgspec.msgpack.encode([[["raw", "0", 1, 2, "new"]], [{}, {}, "new"], "new"])
    header = codec.decode_header(message(b"\x90", 11, 0, meta=meta))
    assert header.sources == (SourceRange("raw", "0", 1, 2),) and header.increment == Increment()


# ---------------------------------------------------------------------------- golden files


@pytest.mark.parametrize("kind", list(RecordType), ids=lambda kind: kind.name.lower())
def test_golden_files_read_as_they_were_written(kind: RecordType) -> None:
    path = GOLDEN / f"{kind.name.lower()}.lf"
    with LogReader(path) as reader:
        batches = [codec.decode(message.data) for message in reader.read()]
        assert reader.ended and reader.corrupt_frames == 0
    assert batches[0].header.type == RecordType.MANIFEST and isinstance(batches[0].records[0], Manifest)
    batch = next(batch for batch in batches if batch.header.type == kind)
    document = make.as_json(batch.records, batch.header.increment, batch.header.sources)
    assert as_far_as(json.loads(path.with_suffix(".json").read_text()), document)


def as_far_as(old: object, now: object) -> bool:
    """Whether all that was written is read; fields that were appended since come on top, with their defaults."""
    if isinstance(old, dict) and isinstance(now, dict):
        return all(name in now and as_far_as(value, now[name]) for name, value in old.items())
    if isinstance(old, list) and isinstance(now, list):
        return len(old) == len(now) and all(map(as_far_as, old, now))
    return old == now


def test_a_golden_comparison_passes_over_appended_fields_alone() -> None:
    stored = json.loads((GOLDEN / "manifest.json").read_text())
    appended = json.loads(json.dumps(stored))
    appended["records"][0]["new"] = ()
    assert as_far_as(stored, appended) and not as_far_as(appended, stored)
    appended["records"][0]["scale"] = 0.5
    assert not as_far_as(stored, appended)


def test_golden_files_are_complete_and_tracked() -> None:
    assert make.main(check=True) == 0
    names = [str(path) for path in sorted(GOLDEN.glob("*.lf"))]
    assert len(names) == len(RecordType)
    if shutil.which("git") and (GOLDEN.parent.parent / ".git").exists():
        ignored = subprocess.run(["git", "check-ignore", *names], cwd=GOLDEN, capture_output=True, text=True)
        assert (ignored.returncode, ignored.stdout) == (1, "")  # 1: none of them is ignored


def test_a_golden_comparison_sees_a_changed_field() -> None:
    pane = make.RECORDS[RecordType.PANE][0]
    assert isinstance(pane, Pane)
    changed = msgspec.structs.replace(pane, offered=pane.offered + 1)
    stored = json.loads((GOLDEN / "pane.json").read_text())
    assert make.as_json((changed,), make.increment(), make.SOURCES) != stored
    assert make.as_json((pane,), make.increment(), make.SOURCES) == stored
