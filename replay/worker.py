"""One worker: `python -m replay.worker`. The first line on stdin is WorkerSettings as JSON; stdin's end is its end.

Exit codes: 0 done or stopped, 1 failed (the last beat says why), 2 the settings or files are wrong.
"""

from __future__ import annotations

import gc
import os
import select
import sys
from pathlib import Path

import msgspec

from bus.address import open_bus
from bus.logfile import FileBus
from bus.ports import Bus, BusAway, BusError
from replay import accounts, pipes, targets
from replay.amplify import Draws
from replay.app import anchor_ns
from replay.away import patiently
from replay.book import Books, end_partition, manifest_of
from replay.clock import clock_of
from replay.exemplars import Exemplars
from replay.feeder import Feeder
from replay.firerlink import FirerLink
from replay.hearing import FLEET, FleetControl, began_ns
from replay.identity import Identities
from replay.recording import Recording, refuse_unsafe
from replay.recover import settle
from replay.schedule import Schedule
from replay.settings import GRACE_NS, WorkerSettings
from replay.steps import Timeline
from wire import topics
from wire.config import ConfigError


def read_line(fd: int, most: int = 1 << 20) -> bytes:
    """One line, unbuffered: what follows it is not ours."""
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < most:
        data = os.read(fd, 1)
        if not data:
            break
        line += data
    return bytes(line)


def run(settings: WorkerSettings, lifeline: int) -> int:
    anchor = anchor_ns()
    now = clock_of(anchor)
    target = targets.admit(
        settings.target,
        refused_sources=settings.refused_sources,
        named_sources=settings.named_sources,
        pinned=settings.pinned,
    )
    if settings.fetch and not _fetch(settings, lifeline):
        print("told to leave while the recording was fetched", file=sys.stderr)
        return 1
    recording = Recording(settings.recording)
    lap_ns = settings.lap_ns
    if not lap_ns or not (settings.allow_unsafe or settings.skip_unsafe):
        survey = recording.survey()
        lap_ns = lap_ns or survey.lap_ns
        if not (settings.allow_unsafe or settings.skip_unsafe):
            refuse_unsafe(survey, settings.recording)
    table = accounts.load(settings.accounts) if settings.accounts else None
    bus, fleet = _buses(settings)
    resume_ns = settle(bus, settings.run_id, settings.worker, settings.kind)
    created = now()
    books = Books(bus, manifest_of(settings, topics.CLAIMS, created), settings.run_id, settings.worker, settings.kind)
    beats = bus.writer(topics.BEATS, settings.worker, manifest_of(settings, topics.BEATS, created))
    exemplars = None
    if settings.mask_hex:
        kept = manifest_of(settings, topics.EXEMPLARS, created)
        exemplars = Exemplars(bus, kept, bytes.fromhex(settings.mask_hex))
    timeline = Timeline()
    draws = Draws(settings.index, settings.workers, settings.spread_ns)
    schedule = Schedule(
        recording.stamped, timeline, draws, speed=settings.speed, spread_ns=settings.spread_ns, laps=settings.laps,
        lap_ns=lap_ns, skip_unsafe=settings.skip_unsafe,
    )  # fmt: skip
    link = FirerLink(
        pipes.FirerSettings(
            anchor_ns=anchor, address=target.address, port=target.port, refused_sources=settings.refused_sources,
            named_sources=settings.named_sources, run_id=settings.run_id, key_id=settings.key_id,
            key_hex=settings.key_hex, marker_lifetime_s=settings.marker_lifetime_s, max_rate=settings.max_rate,
            max_open=settings.max_open, timeout_ns=settings.timeout_ns, late_ns=settings.late_ns, grace_ns=GRACE_NS,
        )
    )  # fmt: skip
    try:
        feeder = Feeder(
            settings, bus, link, schedule, timeline, Identities(recording.flows()), table, books, beats,
            target.authority.encode(), now, resume_ns=resume_ns, lifeline=lifeline, fleet=fleet,
            exemplars=exemplars,
        )  # fmt: skip
        # Slices make many objects that live for half a second and no cycles: at the usual thresholds looking for
        # those would cost an eighth of the feeder's CPU.
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        reason, why = feeder.run()
    finally:
        link.close()
    died = reason == "failed" and link.died

    def leave() -> None:
        if not died:
            feeder.settle_unclaimed()
        books.flush(now(), force=True)
        feeder.beat(now(), "failed" if reason == "failed" else "stopped", why)
        if died:
            # Without end marks, so that a worker of this name may take over.
            books.close(now())
            beats.close()
        else:
            books.end(now(), reason)
            end_partition(beats, topics.BEATS, settings.run_id, settings.worker, reason)

    try:
        patiently(leave, now)
        if exemplars is not None:
            exemplars.end(now(), reason)
    except BusAway as error:
        print(f"what became of the last shots could not be written down: {error}", file=sys.stderr)
        return 1
    if settings.bus and reason == "failed":
        print(why, file=sys.stderr)
    return 1 if reason == "failed" else 0


def _buses(settings: WorkerSettings) -> tuple[Bus, FleetControl | None]:
    """The run's bus, and where orders to all runs are said."""
    if not settings.bus:
        return FileBus(settings.run_dir), None
    fleet = FleetControl(open_bus(settings.bus, FLEET, settings.security), began_ns(settings.run_id))
    return open_bus(settings.bus, settings.run_id, settings.security), fleet


def _fetch(settings: WorkerSettings, lifeline: int) -> bool:
    """False when the process that started this worker has gone, or let go of it, before the recording was here."""
    from replay.fetch import fetch  # only a fleet's worker has recordings to fetch

    def let_go() -> bool:
        return bool(select.select((lifeline,), (), (), 0)[0]) and not os.read(lifeline, 4096)

    bus = open_bus(settings.bus, settings.fetch, settings.security)
    try:
        return fetch(bus, settings.fetch, Path(settings.recording), stop=let_go) is not None
    finally:
        bus.close()


def main() -> int:
    line = read_line(0)
    if not line:
        return 0  # whoever started us is gone already
    try:
        return run(msgspec.json.decode(line, type=WorkerSettings), 0)
    except msgspec.MsgspecError as error:
        print(f"worker settings: {error}", file=sys.stderr)
    except (ConfigError, BusError) as error:
        print(error, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
