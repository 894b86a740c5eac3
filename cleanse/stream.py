"""Cleansing batch by batch, wherever batches come from: a pure function of one message.

A recording is spread over raw streams (`<agent>.<k>`); what becomes of stream `a.3` goes to the clean streams
`a.3.0`, `a.3.1` ... one for each partition of `clean`, chosen by the session. Nothing is kept from one batch to the
next, so any cleanser may go on where another was killed. What is cleansed twice is known by its `sources`, the range
of the raw stream that a message was made from; readers drop it (`bus.highwater`).

What only a whole recording knows is left to who has all of it (`replay.fetch`): `offset_ns` counts from 1970 rather
than from the first request, sessions are not numbered, and an `End` carries the count of the raw stream.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import msgspec

from bus.ports import Message
from cleanse.learned import Learned
from cleanse.plain import Row
from cleanse.plain import row as plain_row
from cleanse.settings import CleanseSettings
from cleanse.sieve import LEDGER, Sieve, lose
from cleanse.stamp import stamped
from wire import codec, head, ids, topics
from wire.account import Account, Increment, kept_and_shed
from wire.codec import RecordType
from wire.records import Dead, End, Exchange, Manifest, Record, SourceRange, Stamped
from wire.routes import RouteMatcher
from wire.streams import CLEAN_WIDTH, RECORDED_NOTE, SERVER_NOTE, SHED_NOTE, clean_stream

WRITER: Final = "livefire cleanse"
STAGE: Final = "cleanse"
#: More is not written into a dead letter: it must fit into a message, and the bytes are still where they came from.
MAX_DEAD_BYTES: Final = 7 << 20
_SESSION: Final = Stamped.__struct_fields__.index("session_id")
_OFFSET_NS: Final = Stamped.__struct_fields__.index("offset_ns")


class Output(msgspec.Struct, frozen=True):
    """One message to be written."""

    topic: str
    stream: str  # clean: "<agent>.<k>.<j>"; dead: the raw stream's name
    partition: int  # j: where the stream lies, 0 <= j < width
    data: bytes
    type: RecordType


class StreamPipeline:
    """`apply` turns one raw message into messages of `clean`. Rules, stamping and counting are those of a file."""

    def __init__(
        self,
        settings: CleanseSettings,
        learned: Learned,
        width: int,
        *,
        from_ns: int | None = None,
        until_ns: int | None = None,
        max_bytes: int = 64 << 20,
    ) -> None:
        """`width`: partitions of `clean`; `max_bytes`: how long a message of it may be.

        Raises ConfigError for rules that cannot be meant.
        """
        self.width = width
        self._max_bytes = max_bytes
        self._settings = settings
        self._learned = learned
        self._sieve = Sieve(settings, from_ns, until_ns)
        self._matcher = RouteMatcher(learned.routes)
        self._of_path = self._matcher.of_path

    def apply(self, message: Message) -> list[Output]:
        """What a message of `raw` becomes, to be written in this order; `partition` names its stream.

        Exchanges become one message for each clean partition that gets any; the growth of the account is in exactly
        one of them, alone where nothing stays. Manifest and End go to every partition, the former with what was
        learned. An account alone gives what was shed, if anything was; other batches give nothing. Raises CodecError
        for what is no batch of this or an earlier version.
        """
        header = codec.decode_header(message.data)
        if header.type is RecordType.EXCHANGE:
            return self._exchanges(message, codec.decode(message.data, header).records, header.increment)
        if header.type is RecordType.MANIFEST:
            return self._manifest(message, codec.decode(message.data, header).records)
        if header.type is RecordType.END:
            return self._end(message, codec.decode(message.data, header).records)
        if header.type is RecordType.ACCOUNT and _recorded(account := Account(), header.increment):
            return [self._account(message, self._home(message), account)]
        return []

    def poison(self, message: Message, reason: str) -> list[Output]:
        """What becomes of a message that `apply` raised for: a dead letter, and the count of what was lost with it."""
        sources = _sources(message)
        letter = Dead(message.topic, message.partition, message.offset, message.data, reason, STAGE)
        data = codec.encode((letter,), sources=sources)
        if len(data) > MAX_DEAD_BYTES:
            kept = f"{reason}; its {len(message.data)} bytes are left where they are"
            data = codec.encode((msgspec.structs.replace(letter, data=b"", error=kept),), sources=sources)
        home = self._home(message)
        account = Account()
        lose(account, count_of(message.data))
        dead = Output(topics.DEAD, message.partition, home, data, RecordType.DEAD)
        return [dead, self._account(message, home, account)]

    # -- one kind of batch each

    def _exchanges(self, message: Message, batch: tuple[Exchange, ...], grown: Increment) -> list[Output]:
        account = Account()
        _recorded(account, grown)
        ledger = account.ledger(LEDGER)
        parts: dict[int, list[Row]] = {}
        servers: set[str] = set()
        width, limit, route_of = self.width, self._settings.max_baseline_bytes, self._of_path
        sieve, asks = self._sieve, self._sieve.asks
        for exchange in batch:
            row = plain_row(exchange, route_of, limit)
            if row is None or asks:
                found = sieve.asked(exchange) if row is not None else sieve.reason(exchange)
                if found is not None:
                    ledger.drop(found[0], intentional=found[1])
                    continue
                if row is None:
                    row = self._row(exchange)
            parts.setdefault(partition_of(row[_SESSION], width), []).append(row)
            servers.add(exchange.server)
        for server in sorted(servers):
            account.note(SERVER_NOTE + server)
        ledger.seen = len(batch)
        ledger.emitted = sum(map(len, parts.values()))
        if not parts:
            return [self._account(message, self._home(message), account)] if batch else []
        outputs: list[Output] = []
        for j in sorted(parts):
            times = [row[_OFFSET_NS] for row in parts[j]]
            data = codec.encode(
                parts[j],
                RecordType.STAMPED,
                first_ns=min(times),
                last_ns=max(times),
                sources=_sources(message),
                increment=account.take() if not outputs else None,
            )
            outputs.append(self._clean(message, j, data, RecordType.STAMPED))
        return outputs

    def _row(self, exchange: Exchange) -> Row:
        """What stays, whatever it looks like."""
        line = exchange.request.head
        route = self._matcher.name(head.method_of(line), head.target_of(line))
        return msgspec.structs.astuple(stamped(exchange, route, 0, 0, 0, self._settings.max_baseline_bytes))

    def heads(self, manifest: Manifest, raw: str) -> list[Manifest]:
        """The manifests of the clean streams that are made of one raw stream."""
        settings = {**msgspec.to_builtins(self._settings), CLEAN_WIDTH: self.width}
        return [
            msgspec.structs.replace(
                manifest,
                topic=topics.CLEAN,
                partition=clean_stream(raw, j),
                writer=WRITER,
                settings=settings,
                inputs=(raw,),
                sorted=False,
                servers=(),
            )
            for j in range(self.width)
        ]

    def _manifest(self, message: Message, batch: tuple[Manifest, ...]) -> list[Output]:
        outputs = []
        for manifest in batch:
            for j, clean in enumerate(self.heads(manifest, message.partition)):
                records: tuple[Record, ...] = (clean, self._learned.routes, self._learned.flows)
                for record in records:
                    data = codec.encode(
                        (record,), first_ns=clean.created_ns, last_ns=clean.created_ns, sources=_sources(message)
                    )
                    outputs.append(self._clean(message, j, data, codec.TYPE_OF[type(record)]))
        return outputs

    def _end(self, message: Message, batch: tuple[End, ...]) -> list[Output]:
        outputs = []
        for end in batch:
            for j in range(self.width):
                clean = msgspec.structs.replace(end, partition=clean_stream(message.partition, j), sorted=False)
                data = codec.encode((clean,), first_ns=end.first_ns, last_ns=end.last_ns, sources=_sources(message))
                outputs.append(self._clean(message, j, data, RecordType.END))
        return outputs

    def _account(self, message: Message, j: int, account: Account) -> Output:
        data = codec.encode((), RecordType.ACCOUNT, sources=_sources(message), increment=account.take())
        return self._clean(message, j, data, RecordType.ACCOUNT)

    def _clean(self, message: Message, j: int, data: bytes, type: RecordType) -> Output:
        if len(data) > self._max_bytes:
            raise codec.CodecError("too_large", f"becomes a message of {len(data)} bytes, at most {self._max_bytes}")
        return Output(topics.CLEAN, clean_stream(message.partition, j), j, data, type)

    def _home(self, message: Message) -> int:
        """Where a count goes that no exchange leads anywhere."""
        return partition_of(message.partition.encode(), self.width)


def _recorded(account: Account, grown: Increment) -> bool:
    """Note what the recorder kept and shed: only who has all of it knows the recording's scale. Whether it shed."""
    told = kept_and_shed(grown.ledgers, grown.notes)
    for ledger, both in told.items():
        for name, count in zip((RECORDED_NOTE, SHED_NOTE), both, strict=True):
            if count:
                account.note(name + ledger, count)
    return any(shed for _, shed in told.values())


@lru_cache(1 << 14)  # those of a session come one after another
def partition_of(session: bytes, width: int) -> int:
    """Which clean partition a session belongs to: the same in every cleanser."""
    return ids.shard_of(session, 0, width)


def count_of(data: bytes) -> int:
    """How many exchanges a message held that cannot be read, as far as its header says so; else 0."""
    glance = codec.glance(data)
    return glance.records if glance is not None and glance.type == RecordType.EXCHANGE else 0


def _sources(message: Message) -> tuple[SourceRange, ...]:
    return (SourceRange(message.topic, message.partition, message.offset, message.offset + 1),)
