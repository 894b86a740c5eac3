"""Dead letters: messages that no cleanser could read. Each is kept once, with its reason, until somebody decides.

A letter that can be read by now (the cleansers were upgraded, a rule was mended) becomes a stream of its own beside
the one that it came from, which has gone on since, and the account takes back what was counted as lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from bus.ports import Bus, BusError, Message
from cleanse.sieve import LEDGER, lose
from cleanse.stream import WRITER, StreamPipeline, count_of
from wire import codec, topics
from wire.account import Account
from wire.codec import RecordType
from wire.records import Audit, Dead, End, Manifest, SourceRange
from wire.streams import retried_stream

#: The stream of `audit` that says what was decided of dead letters.
AUDIT_STREAM: Final = "dead"
RETRIED: Final = "dead.retried"
DROPPED: Final = "dead.dropped"


class Letter(msgspec.Struct, frozen=True):
    """One dead letter that nobody has decided on."""

    dead: Dead
    at_ns: int  # when the batch began that it was; 0 = unknown

    @property
    def name(self) -> str:
        """How it is called on the command line: stream@offset."""
        return f"{self.dead.partition}@{self.dead.offset}"


def letters(bus: Bus) -> list[Letter]:
    """Those that wait for a decision, by stream and offset. Raises BusError."""
    done = _done(bus)
    found: dict[tuple[str, str, int], Letter] = {}
    for stream in bus.partitions(topics.DEAD):
        reader = bus.reader(topics.DEAD, stream)
        while messages := reader.read():
            for message in messages:
                try:
                    header = codec.decode_header(message.data)
                    if header.type is not RecordType.DEAD:
                        continue
                    for dead in codec.decode(message.data, header).records:
                        key = (dead.topic, dead.partition, dead.offset)
                        if key not in done:
                            found.setdefault(key, Letter(dead, _began_ns(dead.data)))
                except codec.CodecError:
                    continue
        reader.close()
    return [found[key] for key in sorted(found)]


def _began_ns(data: bytes) -> int:
    glance = codec.glance(data)
    return max(glance.first_ns, 0) if glance is not None else 0


def _done(bus: Bus) -> set[tuple[str, str, int]]:
    if AUDIT_STREAM not in bus.partitions(topics.AUDIT):
        return set()
    done = set()
    reader = bus.reader(topics.AUDIT, AUDIT_STREAM)
    while messages := reader.read():
        for message in messages:
            try:
                header = codec.decode_header(message.data)
                if header.type is not RecordType.AUDIT:
                    continue
                for audit in codec.decode(message.data, header).records:
                    detail = audit.detail
                    done.add((detail["topic"], detail["partition"], detail["offset"]))
            except (codec.CodecError, KeyError, TypeError):
                continue
    reader.close()
    return done


def drop(bus: Bus, name: str, chosen: Sequence[Letter], who: str, now_ns: int) -> None:
    """They are done with: an Audit record says who said so. Raises BusError."""
    _decide(bus, name, chosen, DROPPED, who, now_ns)


def retry(
    bus: Bus, name: str, chosen: Sequence[Letter], pipeline: StreamPipeline, who: str, now_ns: int
) -> tuple[list[Letter], list[tuple[Letter, str]]]:
    """Through the pipeline again: (those that went, those that did not and why). Raises BusError."""
    went: list[Letter] = []
    stayed: list[tuple[Letter, str]] = []
    for letter in chosen:
        try:
            _retry(bus, letter.dead, pipeline)
        except codec.CodecError as error:
            stayed.append((letter, str(error)))
        else:
            went.append(letter)
            _decide(bus, name, [letter], RETRIED, who, now_ns)
    return went, stayed


def _retry(bus: Bus, dead: Dead, pipeline: StreamPipeline) -> None:
    raw = bus.reader(dead.topic, dead.partition)
    try:
        manifest = raw.manifest
        data = dead.data or _still_there(raw.seek, raw.read, dead)
    finally:
        raw.close()
    header = codec.decode_header(data)
    if header.type is not RecordType.EXCHANGE or manifest is None:
        raise codec.CodecError("foreign", "is no batch of exchanges: cleanse the recording again instead")
    stream = retried_stream(dead.partition, dead.offset)
    outputs = pipeline.apply(Message(topics.RAW, stream, dead.offset, dead.offset + 1, data))
    lost, taken_back = Account(), Account()
    lose(lost, count_of(data))
    taken_back.notes = {note: -count for note, count in lost.notes.items()}
    ledger = taken_back.ledger(LEDGER)
    ledger.seen = -lost.ledger(LEDGER).seen
    ledger.drops = {reason: -count for reason, count in lost.ledger(LEDGER).drops.items()}
    by_partition = {output.partition: output for output in outputs}
    for j, clean in enumerate(pipeline.heads(manifest, stream)):
        try:
            writer = bus.writer(topics.CLEAN, clean.partition, clean)
        except BusError:
            if bus.whole(topics.CLEAN, clean.partition):
                continue  # a retry before this one got as far as here
            raise
        if j in by_partition:
            writer.write(by_partition[j].data)
        if j == 0:
            # A place of its own, behind that of the batch: readers count each place once.
            sources = (SourceRange(topics.RAW, stream, dead.offset + 1, dead.offset + 2),)
            writer.write_records((), RecordType.ACCOUNT, sources=sources, increment=taken_back.take())
        writer.end(End(manifest.owner_id, clean.partition, 0, 0, 0))
        writer.close()


def _still_there(seek: Callable[[int], None], read: Callable[[int], list[Message]], dead: Dead) -> bytes:
    """The bytes of a letter that was too large to hold them, from where they came."""
    seek(dead.offset)
    messages = read(1)
    if not messages or messages[0].offset != dead.offset:
        raise codec.CodecError("truncated", f"its bytes are in {dead.topic} {dead.partition} no more")
    return messages[0].data


def _decide(bus: Bus, name: str, chosen: Sequence[Letter], action: str, who: str, now_ns: int) -> None:
    manifest = Manifest(topics.AUDIT, AUDIT_STREAM, name, now_ns, WRITER)
    writer = bus.writer(topics.AUDIT, AUDIT_STREAM, manifest)
    try:
        for letter in chosen:
            dead = letter.dead
            detail = {"topic": dead.topic, "partition": dead.partition, "offset": dead.offset, "error": dead.error}
            writer.write_records((Audit(now_ns, who, action, detail),), first_ns=now_ns, last_ns=now_ns)
    finally:
        writer.close()
