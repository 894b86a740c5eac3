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
from typing import Any, Final

import msgspec
import zstandard

from wire import records as r
from wire.account import Increment

VERSION: Final = 1
MAGIC: Final = b"LF"
MAX_BODY_BYTES: Final = 256 << 20  # a bound on what a corrupt or hostile header may make us allocate

_HEADER = struct.Struct(">2sBBBxHIqq")
_NONE, _ZSTD = 0, 1
_COMPRESS_FROM = 256  # bytes; below, zstd costs more than it saves


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
TYPE_OF: Final[dict[type[r.Record], RecordType]] = {cls: number for number, cls in _TYPES.items()}


class CodecError(Exception):
    """A message that is not a batch of this or an earlier version. `reason` is from a closed set:

    truncated, foreign, future_version, unknown_type, corrupt, too_large.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


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


def encode(
    records: Sequence[r.Record],
    type: RecordType | None = None,
    *,
    first_ns: int = 0,
    last_ns: int = 0,
    sources: tuple[r.SourceRange, ...] = (),
    increment: Increment | None = None,
) -> bytes:
    """One message. All records are of one type, which must be named when there are none."""
    number = type if type is not None else TYPE_OF[records[0].__class__]
    body = _encoder.encode(records)
    compression = _NONE
    if len(body) >= _COMPRESS_FROM:
        body = _zstd.compressor.compress(body)
        compression = _ZSTD
    meta = _encoder.encode(_Meta(sources, increment)) if increment is not None else _encoder.encode((sources,))
    if len(meta) > 0xFFFF:
        raise ValueError(f"batch meta of {len(meta)} bytes: too many source ranges or drop reasons")
    return b"".join(
        (_HEADER.pack(MAGIC, VERSION, number, compression, len(meta), len(records), first_ns, last_ns), meta, body)
    )


def decode_header(data: bytes) -> Header:
    """The header of a message. Raises CodecError."""
    if len(data) < _HEADER.size:
        raise CodecError("truncated", f"{len(data)} bytes are less than a header")
    magic, version, number, compression, meta_bytes, count, first_ns, last_ns = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise CodecError("foreign", "does not begin with 'LF'")
    if version > VERSION:
        raise CodecError("future_version", f"format version {version}, this program reads up to {VERSION}")
    body_at = _HEADER.size + meta_bytes
    if body_at > len(data):
        raise CodecError("truncated", "ends inside its meta")
    try:
        kind = RecordType(number)
    except ValueError:
        raise CodecError("unknown_type", f"record type {number}") from None
    try:
        meta = _meta_decoder.decode(data[_HEADER.size : body_at])
    except msgspec.MsgspecError as error:
        raise CodecError("corrupt", f"meta: {error}") from None
    return Header(kind, count, first_ns, last_ns, meta.sources, meta.increment, compression, body_at)


def decode(data: bytes, header: Header | None = None) -> Batch:
    """A whole message. Raises CodecError. Give the header if it has been decoded already."""
    head = header if header is not None else decode_header(data)
    body = data[head.body_at :]
    if head.compression == _ZSTD:
        body = _decompress(body)
    elif head.compression != _NONE:
        raise CodecError("corrupt", f"unknown compression {head.compression}")
    try:
        records = _decoders[head.type].decode(body)
    except msgspec.MsgspecError as error:
        raise CodecError("corrupt", f"{head.type.name.lower()} records: {error}") from None
    if len(records) != head.count:
        raise CodecError("corrupt", f"{len(records)} records where the header says {head.count}")
    return Batch(head, records)


def _decompress(body: bytes) -> bytes:
    try:
        size = zstandard.frame_content_size(body)
        if size > MAX_BODY_BYTES:
            raise CodecError("too_large", f"a body of {size} bytes, at most {MAX_BODY_BYTES} are read")
        return _zstd.decompressor.decompress(body, max_output_size=MAX_BODY_BYTES if size < 0 else 0)
    except zstandard.ZstdError as error:
        raise CodecError("corrupt", f"zstd: {error}") from None
