"""Batches: how records travel.

A message is a batch of records of one type, of one partition:

    2s  magic "LF"
    B   format version (VERSION)
    B   record type (RecordType)
    B   compression of the body: 0 none, 1 zstd
    x
    H   length of meta
    I   number of records
    q   first time, q last time (int64 ns; 0 where records have none)
    meta: msgpack [source ranges, account increment]
    body: msgpack array of records

The header is enough to route, to sort and to resume; the body is decoded only by who needs it. The full
description, for readers in other languages, is docs/record-format.md.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

import msgspec
import zstandard

from wire import records as r
from wire.account import Increment

VERSION: Final = 1
MAGIC: Final = b"LF"
MAX_BODY_BYTES: Final = 64 << 20  # of records that carry bodies: any batch of them fits in a frame of the bus
MAX_SMALL_BODY_BYTES: Final = 8 << 20  # of all others

_HEADER = struct.Struct(">2sBBBxHIqq")
_NONE, _ZSTD = 0, 1
_COMPRESS_FROM = 256  # bytes; below, zstd costs more than it saves
#: So far back zstd looks at this level. Of records that are longer none can be alike to the one before, so what a
#: sample tells of their bytes holds: images, archives and what is encrypted or compressed already stay as they are.
_WINDOW = 512 << 10
_SAMPLES, _SAMPLE_BYTES = 16, 4096


class RecordType(IntEnum):
    """The number of each record on the wire. Numbers are never reused."""

    MANIFEST = 1
    END = 2
    EXCHANGE = 3
    STAMPED = 4
    FLOWS = 5
    ROUTE_TABLE = 6
    CLAIM = 7
    SHOT = 8
    OUTCOME = 9
    PANE = 10
    DROP = 11
    DEAD = 12
    SAMPLE = 13
    EXEMPLAR = 14
    AUDIT = 15
    CONTROL = 16
    LEASE = 17
    BEAT = 18
    ACCOUNT = 19  # no records: only an account increment


_TYPES: Final[dict[RecordType, type[r.Record]]] = {
    RecordType.MANIFEST: r.Manifest,
    RecordType.END: r.End,
    RecordType.EXCHANGE: r.Exchange,
    RecordType.STAMPED: r.Stamped,
    RecordType.FLOWS: r.Flows,
    RecordType.ROUTE_TABLE: r.RouteTable,
    RecordType.CLAIM: r.Claim,
    RecordType.SHOT: r.Shot,
    RecordType.OUTCOME: r.Outcome,
    RecordType.PANE: r.Pane,
    RecordType.DROP: r.Drop,
    RecordType.DEAD: r.Dead,
    RecordType.SAMPLE: r.Sample,
    RecordType.EXEMPLAR: r.Exemplar,
    RecordType.AUDIT: r.Audit,
    RecordType.CONTROL: r.Control,
    RecordType.LEASE: r.Lease,
    RecordType.BEAT: r.Beat,
    RecordType.ACCOUNT: r.Record,
}
# What a hostile message may make us allocate: a byte of msgpack can become up to 70 bytes of Python objects where a
# record holds lists or free-form maps, and up to 12 where it holds mostly bytes and numbers.
_LARGE: Final = frozenset(
    {
        RecordType.EXCHANGE,
        RecordType.STAMPED,
        RecordType.CLAIM,
        RecordType.SHOT,
        RecordType.OUTCOME,
        RecordType.DEAD,
        RecordType.EXEMPLAR,
    }
)
TYPE_OF: Final[dict[type[r.Record], RecordType]] = {cls: number for number, cls in _TYPES.items()}


class CodecError(Exception):
    """A message that is not a batch of this or an earlier version. `reason` is from a closed set:

    truncated, foreign, future_version, unknown_type, corrupt, too_large; for what is to be written also unwritable.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Glance(NamedTuple):
    """What the fixed part of a header says. The type is a plain number: it may be one of a later minor version."""

    type: int
    records: int
    first_ns: int
    last_ns: int


class Header(msgspec.Struct, frozen=True):
    """What can be told without decoding the records."""

    type: RecordType
    count: int
    first_ns: int
    last_ns: int
    sources: tuple[r.SourceRange, ...]
    increment: Increment
    compression: int
    body_at: int  # where the body begins in the message


class Batch(msgspec.Struct, frozen=True):
    """A decoded message."""

    header: Header
    records: tuple[Any, ...]


class _Meta(msgspec.Struct, frozen=True, array_like=True):
    sources: tuple[r.SourceRange, ...] = ()
    increment: Increment = msgspec.field(default_factory=Increment)


_encoder = msgspec.msgpack.Encoder()
_meta_decoder = msgspec.msgpack.Decoder(_Meta)
_decoders: Final[dict[RecordType, msgspec.msgpack.Decoder[Any]]] = {
    number: msgspec.msgpack.Decoder(tuple[cls, ...])  # type: ignore[valid-type]
    for number, cls in _TYPES.items()
}


class _Zstd(threading.local):
    """zstd contexts are not thread-safe: one pair a thread."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=1)
        self.decompressor = zstandard.ZstdDecompressor()


_zstd = _Zstd()


def _named(manifests: Sequence[Any]) -> Sequence[Any]:
    """The same; in inputs and settings, which name files, with a backslash for each byte that is not UTF-8."""

    def of(value: Any) -> Any:
        if isinstance(value, str):
            return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if isinstance(value, (list, tuple)):
            return tuple(map(of, value))
        return {of(name): of(each) for name, each in value.items()} if isinstance(value, dict) else value

    return [
        msgspec.structs.replace(m, inputs=of(m.inputs), settings=of(m.settings)) if isinstance(m, r.Manifest) else m
        for m in manifests
    ]


def max_body_bytes(type: RecordType) -> int:
    """How long the uncompressed records of one batch of this type may be, together."""
    return MAX_BODY_BYTES if type in _LARGE else MAX_SMALL_BODY_BYTES


def encode(
    records: Sequence[r.Record] | Sequence[tuple[Any, ...]],
    type: RecordType | None = None,
    *,
    first_ns: int = 0,
    last_ns: int = 0,
    sources: tuple[r.SourceRange, ...] = (),
    increment: Increment | None = None,
    compress: bool = True,
) -> bytes:
    """One message. All records are of one type, which must be named when there are none, or where they are given as
    their fields in order (and those of the records in them): the bytes are the same, and not checked.

    `compress=False` leaves that to `compressed`, for who has a better place for the work.

    Raises CodecError: too_large for more than `max_body_bytes`, or more than 64 KiB of sources and increment;
    unwritable for text that is not UTF-8 and numbers of more than 64 bits.
    """
    if type is None and not (records and isinstance(records[0], r.Record)):
        raise ValueError("a batch without records must name its type")
    number = type if type is not None else TYPE_OF[records[0].__class__]  # type: ignore[index]
    try:
        body: bytes = _encoder.encode(_named(records) if number is RecordType.MANIFEST else records)
    except (UnicodeEncodeError, OverflowError) as error:
        what = f"{len(records)} {number.name.lower()} records"
        raise CodecError("unwritable", f"a batch of {what} cannot be written: {error}") from None
    limit = max_body_bytes(number)
    if len(body) > limit:
        what = f"{len(records)} {number.name.lower()} records"
        raise CodecError("too_large", f"a batch of {what} has {len(body)} bytes, at most {limit} are written")
    compression = _NONE
    if compress and _yields(body, len(records)):
        body = _zstd.compressor.compress(body)
        compression = _ZSTD
    meta = _encoder.encode(_Meta(sources, increment)) if increment is not None else _encoder.encode((sources,))
    if len(meta) > 0xFFFF:
        raise CodecError("too_large", f"batch meta of {len(meta)} bytes: too many source ranges or drop reasons")
    return b"".join(
        (_HEADER.pack(MAGIC, VERSION, number, compression, len(meta), len(records), first_ns, last_ns), meta, body)
    )


def glance(data: bytes) -> Glance | None:
    """The fixed part of a header, unchecked otherwise; None for what is no batch of a version that is known here."""
    if len(data) < _HEADER.size:
        return None
    magic, version, number, _, _, count, first_ns, last_ns = _HEADER.unpack_from(data)
    return Glance(number, count, first_ns, last_ns) if magic == MAGIC and 1 <= version <= VERSION else None


def compressed(data: bytes) -> bytes:
    """The same message with its body compressed, as `encode` would have made it. Raises CodecError."""
    head = decode_header(data)
    body = memoryview(data)[head.body_at :]
    if head.compression != _NONE or not _yields(body, head.count):
        return data
    start = bytearray(data[: head.body_at])
    start[4] = _ZSTD
    return bytes(start) + _zstd.compressor.compress(body)


def _yields(body: bytes | memoryview, count: int) -> bool:
    """Whether it is of use to compress the body of `count` records."""
    size = len(body)
    if size < max(_COMPRESS_FROM, count * _WINDOW):
        return size >= _COMPRESS_FROM
    view = memoryview(body)
    step = (size - _SAMPLE_BYTES) // (_SAMPLES - 1)
    sample = b"".join(view[at * step : at * step + _SAMPLE_BYTES] for at in range(_SAMPLES))
    return len(_zstd.compressor.compress(sample)) < len(sample) * 31 // 32


def with_increment(data: bytes, head: Header, increment: Increment) -> bytes:
    """The same message, whose header is `head`, with another increment. Raises CodecError (too_large)."""
    meta = _encoder.encode(_Meta(head.sources, increment))
    if len(meta) > 0xFFFF:
        raise CodecError("too_large", f"batch meta of {len(meta)} bytes: too many source ranges or drop reasons")
    front = _HEADER.pack(
        MAGIC, data[2], head.type, head.compression, len(meta), head.count, head.first_ns, head.last_ns
    )
    return b"".join((front, meta, memoryview(data)[head.body_at :]))


def decode_header(data: bytes) -> Header:
    """The header of a message. Raises CodecError."""
    if len(data) < _HEADER.size:
        raise CodecError("truncated", f"{len(data)} bytes are less than a header")
    magic, version, number, compression, meta_bytes, count, first_ns, last_ns = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise CodecError("foreign", "does not begin with 'LF'")
    if version > VERSION:
        raise CodecError("future_version", f"format version {version}, this program reads up to {VERSION}")
    if version < 1:
        raise CodecError("corrupt", "there is no format version 0")
    body_at = _HEADER.size + meta_bytes
    if body_at > len(data):
        raise CodecError("truncated", "ends inside its meta")
    try:
        kind = RecordType(number)
    except ValueError:
        raise CodecError("unknown_type", f"record type {number}") from None
    try:
        meta = _meta_decoder.decode(memoryview(data)[_HEADER.size : body_at])
    except _UNDECODABLE as error:
        raise CodecError("corrupt", f"meta: {error}") from None
    return Header(kind, count, first_ns, last_ns, meta.sources, meta.increment, compression, body_at)


def decode(data: bytes, header: Header | None = None) -> Batch:
    """A whole message. Raises CodecError. Give the header if it has been decoded already."""
    head = header if header is not None else decode_header(data)
    body: bytes | memoryview = memoryview(data)[head.body_at :]
    if head.compression == _ZSTD:
        body = _decompress(body, max_body_bytes(head.type))
    elif head.compression != _NONE:
        raise CodecError("corrupt", f"unknown compression {head.compression}")
    elif len(body) > max_body_bytes(head.type):
        raise CodecError("too_large", f"a body of {len(body)} bytes, at most {max_body_bytes(head.type)} are read")
    # Before any record is made: a record may take one byte here and a hundred in memory.
    announced = _array_length(body)
    if announced != head.count:
        raise CodecError("corrupt", f"{announced} records where the header says {head.count}")
    if head.type == RecordType.ACCOUNT and announced:
        raise CodecError("corrupt", "an account batch has no records")
    try:
        records = _decoders[head.type].decode(body)
    except _UNDECODABLE as error:
        raise CodecError("corrupt", f"{head.type.name.lower()} records: {error}") from None
    return Batch(head, records)


# msgspec lets these two through: text that is not UTF-8, and free-form maps nested without end.
_UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def _array_length(body: bytes | memoryview) -> int:
    """How many elements a msgpack array says that it has; -1 when it is none."""
    if len(body) and body[0] & 0xF0 == 0x90:
        return body[0] & 0x0F
    if len(body) >= 3 and body[0] == 0xDC:
        return int.from_bytes(body[1:3], "big")
    if len(body) >= 5 and body[0] == 0xDD:
        return int.from_bytes(body[1:5], "big")
    return -1


def _decompress(body: bytes | memoryview, limit: int) -> bytes:
    """zstd writes the content's size into its frame, and so does every writer of ours: without it, or beyond the
    limit, nothing is decompressed."""
    try:
        size = zstandard.frame_content_size(body)
        if size < 0:
            raise CodecError("corrupt", "zstd: the content's size is not written in the frame")
        if size > limit:
            raise CodecError("too_large", f"a body of {size} bytes, at most {limit} are read")
        if size == 0:
            return b""  # the library would take 0 for "unknown"
        return _zstd.decompressor.decompress(body)
    except zstandard.ZstdError as error:
        raise CodecError("corrupt", f"zstd: {error}") from None
