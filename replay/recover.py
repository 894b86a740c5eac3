"""After a crash: what was claimed and has no outcome becomes `unknown`, and is never sent again."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from bus.logfile import FileBus
from bus.ports import Bus, BusError, BusHeld, BusWhole
from replay.book import end_partition, unknown, unsettled, write_outcomes
from replay.conductor import CONDUCTOR
from wire import topics
from wire.records import Kind, Manifest

_CHUNK: Final = 10_000


def settle(bus: Bus, run_id: str, worker: str, kind: Kind) -> int:
    """Write `unknown` for each claimed shot of a worker without an outcome; the latest claimed due time, 0 = none.

    Leaves the partitions open, for the worker that takes over. Raises BusError while a process writes them.
    """
    return _settle(bus, run_id, worker, kind, end=False)[1]


def recover(run: Bus | Path | str) -> int:
    """Settle every worker's partition that has no end mark and no writer, and end it. How many became unknown.

    `run` is its bus, or its folder. Doing it twice changes nothing. A partition that is still being written is left as
    it is; so is a whole run that has a conductor, which may be about to start a dead worker once more.
    """
    bus = FileBus(run) if isinstance(run, Path | str) else run
    if bus.held(topics.CONTROL, CONDUCTOR):
        return 0
    found = 0
    for worker in bus.partitions(topics.CLAIMS):
        with contextlib.closing(bus.reader(topics.CLAIMS, worker)) as claims:
            manifest = claims.manifest
        if manifest is None:
            continue
        kind = Kind(str(manifest.settings.get("kind", Kind.STRESS)))
        try:
            found += _settle(bus, manifest.owner_id, worker, kind, end=True)[0]
        except (BusHeld, BusWhole):  # whose worker, or another who recovers, has ended it since it was looked at
            continue
    for worker in bus.partitions(topics.BEATS):
        _end(bus, topics.BEATS, worker, "failed")
    return found


def unfinished(bus: Bus) -> bool:
    """Whether a worker of the run has a partition without an end mark."""
    return not all(
        bus.whole(topic, worker)
        for topic in (topics.CLAIMS, topics.OUTCOMES)
        for worker in bus.partitions(topics.CLAIMS)
    )


def _settle(bus: Bus, run_id: str, worker: str, kind: Kind, *, end: bool) -> tuple[int, int]:
    if worker not in bus.partitions(topics.CLAIMS):
        return 0, 0
    # The lock comes first: what is read under it has no other writer any more.
    writer = None
    if bus.whole(topics.OUTCOMES, worker):
        if end:  # in order already: its books need not be read; who wrote them may have died before the second end
            _end(bus, topics.CLAIMS, worker, "failed")
            return 0, 0
    else:
        writer = bus.writer(topics.OUTCOMES, worker, Manifest(topics.OUTCOMES, worker, run_id, 0, "livefire recover"))
    claims, outcomes = bus.reader(topics.CLAIMS, worker), bus.reader(topics.OUTCOMES, worker)
    try:
        left, last_due = unsettled(claims, outcomes)
        if writer is None:
            return 0, last_due
        for at in range(0, len(left), _CHUNK):
            write_outcomes(writer, [unknown(shot, run_id, worker, kind) for shot in left[at : at + _CHUNK]])
        if end:
            end_partition(writer, topics.OUTCOMES, run_id, worker, "failed")
            _end(bus, topics.CLAIMS, worker, "failed")
    finally:
        claims.close()
        outcomes.close()
        if writer is not None:
            writer.close()
    return len(left), last_due


def _end(bus: Bus, topic: str, worker: str, reason: str) -> None:
    """End a partition that has neither an end nor a writer."""
    if bus.whole(topic, worker):
        return
    reader = bus.reader(topic, worker)
    manifest = reader.manifest
    reader.close()
    if manifest is None:
        return
    try:
        writer = bus.writer(topic, worker, manifest)
    except BusError:
        return
    end_partition(writer, topic, manifest.owner_id, worker, reason)
