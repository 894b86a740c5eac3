"""How streams lie in Kafka: names of topics, keys, headers, the entries of the directory. Knows no driver.

The port's (topic, partition) of an owner is a *stream*. It lies in one partition of one Kafka topic, among others:
its messages are those with its key. Whoever writes or reads by other means (a Faust worker, a foreign program)
finds here all that it needs; docs/record-format.md says the same in words.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from bus.ports import BusError, check_names, is_partition
from wire import topics

STREAMS: Final = "streams"  # the directory: one entry a stream, compacted
HEADER: Final = "lf"
HOLD_MS: Final = 3_000  # a hold that was not renewed for so long has lapsed
MAX_MESSAGE_BYTES: Final = (8 << 20) - (64 << 10)  # what topics take (8 MiB), less room for key, header and framing
TOPIC_BYTES: Final = 8 << 20  # max.message.bytes of the topics
MARK: Final = b""  # the value of a message that says only: from here on this epoch holds

_STATES: Final = ("open", "released", "ended")
_SEQUENCE = struct.Struct(">qq")
_NUMBERED = re.compile(r".*\.(\d{1,9})")
_SHARED: Final = {topics.BEATS: topics.CONTROL}  # one Kafka topic, one partition: a stop and a beat arrive in order

#: Port topics that have a Kafka topic of their own.
OWN: Final = tuple(topic for topic in topics.ALL if topic not in _SHARED)
#: Kafka topics with exactly one partition.
SINGLE: Final = (topics.CONTROL, STREAMS)


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """What the directory says of a stream. `at` is the broker's time of the record, so it is not in it."""

    state: str  # open | released | ended
    writer: str  # who wrote the entry; constant where several processes write one stream in turn
    epoch: int  # grows by one with each writer; the first is 1
    partition: int  # of the Kafka topic
    first: int  # nothing of the stream is before this offset
    last: int = -1  # offset of the latest message that was known then; of the end mark when ended


class Known(NamedTuple):
    """An entry, when the broker got it (ms since 1970), and its place in the directory."""

    entry: Entry
    at_ms: int
    offset: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


def encode_entry(entry: Entry) -> bytes:
    return _encoder.encode(entry)


def decode_entry(data: bytes) -> Entry | None:
    """None for what is no entry: the directory is a topic, and anybody may write into one."""
    try:
        entry = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return entry if entry.state in _STATES and min(entry.epoch - 1, entry.partition, entry.first) >= 0 else None


def kafka_topic(prefix: str, topic: str) -> str:
    """`livefire.raw`; beats travel with control."""
    return f"{prefix}.{_SHARED.get(topic, topic)}"


def key_of(scope: str, topic: str, partition: str) -> bytes:
    """The key of every message of a stream, and of its entry in the directory."""
    return f"{scope}/{topic}/{partition}".encode()


def stream_of(key: bytes) -> tuple[str, str, str] | None:
    """(scope, topic, partition) of a key; None for what is none."""
    try:
        scope, topic, partition = key.decode().split("/")
        check_names(topic, partition)
    except (ValueError, BusError):
        return None
    return (scope, topic, partition) if is_partition(scope) else None


def partition_of(name: str, count: int) -> int:
    """The Kafka partition of a stream: its number where the name ends in one (`a.3`), else by our own hash."""
    if match := _NUMBERED.fullmatch(name):
        return int(match[1]) % count
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % count


def header(epoch: int, sequence: int) -> list[tuple[str, bytes]]:
    """The headers of a message. A reader drops a message whose epoch is over, and one whose sequence it has seen.

    Sequences grow from 1 along an epoch; gaps are allowed. 0 is the mark that opens an epoch.
    """
    return [(HEADER, _SEQUENCE.pack(epoch, sequence))]


def sequence_in(headers: Sequence[tuple[str, bytes | None]]) -> tuple[int, int] | None:
    """(epoch, sequence); None for a message without them: it is taken as it is."""
    for name, value in headers:
        if name == HEADER and value is not None and len(value) == _SEQUENCE.size:
            epoch, sequence = _SEQUENCE.unpack(value)
            return int(epoch), int(sequence)
    return None


def missing(address: str, names: Sequence[str]) -> BusError:
    """The one line about topics that are not there."""
    what = f"there is no topic {names[0]}" if len(names) == 1 else f"there are no topics {', '.join(names)}"
    ours = names[0].startswith(address.rpartition("/")[2] + ".")  # a topic of somebody else is his to make
    return BusError(
        f"{address}: {what}" + (f" (make them with: livefire topics create --bus {address})" if ours else "")
    )
