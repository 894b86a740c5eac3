"""A worker's two books: claims, written before a slice is fired, and outcomes, one for every claimed shot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from bus.ports import Bus, Reader, Writer
from replay.settings import WorkerSettings
from wire import codec, topics
from wire.codec import RecordType
from wire.records import Claim, End, Failure, Kind, Manifest, Outcome, ShotKey, Verdict

FLUSH_NS: Final = 100_000_000
FLUSH_COUNT: Final = 2_000
_MOST: Final = 10_000  # outcomes in one message

#: What tells a shot from all others of a run.
ShotName = tuple[bytes, int, int]  # exchange id, copy, lap


def name_of(shot: ShotKey | Outcome) -> ShotName:
    return shot.exchange_id, shot.copy, shot.lap


class Books:
    """Opens both partitions at their end. Raises BusError when another process writes them."""

    def __init__(self, bus: Bus, manifest: Manifest, run_id: str, worker: str, kind: Kind) -> None:
        self._run_id, self._worker, self._kind = run_id, worker, kind
        self._claims = bus.writer(topics.CLAIMS, worker, _renamed(manifest, topics.CLAIMS, worker))
        self._outcomes = bus.writer(topics.OUTCOMES, worker, _renamed(manifest, topics.OUTCOMES, worker))
        self._pending: list[Outcome] = []
        self._batch: list[Outcome] = []  # under way: written again just as it is until the bus has taken it
        self._ended: set[str] = set()
        self._slice = 0
        self._flushed_ns = 0

    def claim(self, shots: tuple[ShotKey, ...]) -> None:
        """When this returns, none of these shots will ever be fired by another process.

        Raises BusAway: then they may be claimed or not, and the next call is with the same shots.
        """
        record = Claim(self._run_id, self._worker, self._slice, shots)
        self._claims.write_records((record,), first_ns=shots[0].due_ns, last_ns=shots[-1].due_ns)
        self._slice += 1

    def outcome(
        self, key: ShotKey, failure: Failure, *, sent_ns: int = 0, first_byte_ns: int = 0, done_ns: int = 0,
        pool_wait_ns: int = 0, status: int = 0, bytes_out: int = 0, bytes_in: int = 0, verdict: Verdict = Verdict.NONE,
    ) -> Outcome:  # fmt: skip
        outcome = Outcome(
            self._run_id, key.exchange_id, key.copy, key.lap, key.step, key.route, self._kind, key.due_ns, sent_ns,
            first_byte_ns, done_ns, pool_wait_ns, status, failure, bytes_out, bytes_in, verdict, self._worker,
        )  # fmt: skip
        self._pending.append(outcome)
        return outcome

    def flush(self, now_ns: int, *, force: bool = False) -> None:
        """Write what is pending, when it is due. Raises BusAway; nothing is lost by it, call again."""
        due = force or now_ns - self._flushed_ns >= FLUSH_NS or len(self._pending) >= FLUSH_COUNT
        while self._batch or (due and self._pending):
            if not self._batch:
                self._batch, self._pending = self._pending[:_MOST], self._pending[_MOST:]
            write_outcomes(self._outcomes, self._batch)
            self._batch = []
            self._flushed_ns = now_ns

    def end(self, now_ns: int, reason: str) -> None:
        """Raises BusAway: call again."""
        self.flush(now_ns, force=True)
        for writer, topic in ((self._outcomes, topics.OUTCOMES), (self._claims, topics.CLAIMS)):
            if topic not in self._ended:
                end_partition(writer, topic, self._run_id, self._worker, reason)
                self._ended.add(topic)

    def close(self, now_ns: int) -> None:
        """Leave both without an end mark, for a worker that takes over. Raises BusAway: call again."""
        self.flush(now_ns, force=True)
        self._outcomes.close()
        self._claims.close()


def write_outcomes(writer: Writer, outcomes: list[Outcome]) -> None:
    times = [outcome.due_ns for outcome in outcomes]
    writer.write_records(outcomes, first_ns=min(times), last_ns=max(times))


def end_partition(writer: Writer, topic: str, run_id: str, worker: str, reason: str) -> None:
    count, first_ns, last_ns = (getattr(writer, name, 0) for name in ("count", "first_ns", "last_ns"))
    writer.end(End(run_id, worker, count, first_ns, last_ns, reason))


def unsettled(claims: Reader, outcomes: Reader | None) -> tuple[list[ShotKey], int]:
    """The claimed shots that have no outcome, in order of claim, and the latest claimed due time (0 = none)."""
    done: set[ShotName] = set()
    if outcomes is not None:
        for record in records_of(outcomes, RecordType.OUTCOME):
            done.add(name_of(record))
    left: list[ShotKey] = []
    last_due = 0
    for record in records_of(claims, RecordType.CLAIM):
        for shot in record.shots:
            last_due = max(last_due, shot.due_ns)
            if name_of(shot) not in done:
                left.append(shot)
    return left, last_due


def manifest_of(settings: WorkerSettings, topic: str, created_ns: int) -> Manifest:
    """Settings of the run without what is secret."""
    shown = msgspec.to_builtins(settings)
    for secret in ("key_hex", "mask_hex", "security"):
        del shown[secret]
    return Manifest(
        topic, settings.worker, settings.run_id, created_ns, "livefire replay", settings=shown,
        inputs=(settings.recording,),
    )  # fmt: skip


def claimed(bus: Bus) -> int:
    """How many shots the workers of a run have claimed, all together."""
    count = 0
    for worker in bus.partitions(topics.CLAIMS):
        reader = bus.reader(topics.CLAIMS, worker)
        try:
            count += sum(len(claim.shots) for claim in records_of(reader, RecordType.CLAIM))
        finally:
            reader.close()
    return count


def unknown(shot: ShotKey, run_id: str, worker: str, kind: Kind) -> Outcome:
    """The outcome of a shot of which only the claim is known: it may or may not have been sent."""
    return Outcome(
        run_id, shot.exchange_id, shot.copy, shot.lap, shot.step, shot.route, kind, shot.due_ns, 0, 0, 0, 0, 0,
        Failure.UNKNOWN, 0, 0, Verdict.NONE, worker,
    )  # fmt: skip


def records_of(reader: Reader, kind: RecordType) -> Iterator[Any]:
    """All records of one type that can be read now; what is damaged is passed over."""
    while messages := reader.read():
        for message in messages:
            try:
                header = codec.decode_header(message.data)
                if header.type == kind:
                    yield from codec.decode(message.data, header).records
            except codec.CodecError:
                continue


def _renamed(manifest: Manifest, topic: str, partition: str) -> Manifest:
    return Manifest(
        topic, partition, manifest.owner_id, manifest.created_ns, manifest.writer, settings=manifest.settings,
        inputs=manifest.inputs,
    )  # fmt: skip
