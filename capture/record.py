"""The record loop: a live source feeds the assembler, and what is complete goes to the writer's queue.

One thread reads, reassembles and masks; a second one compresses and writes (`capture.writer` says why), to a file or to
the streams of a bus (`capture.dealer`). A batch leaves at least every 250 ms, with the counts of what is in it, so
who tails it sees exchanges soon, and a recorder that is killed leaves what opens and balances. When it is
started again with the same file or name it goes on behind what is there: what was in flight is dropped as
`crash`, and the account notes how long nobody was looking (`blind`, `blind_ns`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from bus.logfile import account_of
from bus.logreader import LogReader
from bus.logwriter import LogWriter
from bus.ports import Bus, BusError, BusFull
from capture.assembler import Assembler
from capture.choose import choose, open_source
from capture.dealer import LINGER_S, Clock, Dealer, after_crash
from capture.exchange import Masker
from capture.governor import BOUNDS, Deaf, Governor, queue_bytes, use_now, within
from capture.message import Message
from capture.output import Output
from capture.privileges import become, give, user_of
from capture.progress import Progress
from capture.sample import Filter, filter_of, sampled
from capture.segments import Rotation, Segments, check_goes_on, used_bytes
from capture.settings import BUS_BODY_BYTES, CaptureSettings, RecordSettings
from capture.shed import Shedder
from capture.source import Source
from capture.steps import Steps
from capture.watch import LOOK_NS, KillFile, Links
from capture.writer import LAST_IS_LOST, QueuedWriter
from livefire_shadow.marker import HEADER
from wire import codec, topics
from wire.account import Account, Increment
from wire.codec import RecordType
from wire.ids import ulid
from wire.records import Manifest

FLUSH_NS: Final = 250_000_000
_WAIT_S: Final = 0.05  # how long the loop waits for traffic before it looks at the time
_EXPIRE_NS: Final = 100_000_000
_TICK_NS: Final = 1_000_000_000
OURS: Final = (f"{topics.RAW}-*.lf", f"{topics.RAW}-*.mark")  # in the folder of a recording, or of a spool
_MARKER: Final = b"\n" + HEADER.lower().encode() + b":"


class RecordingFailed(BusError):
    """It ended before it was to. What was recorded is there, with the account, which is `account` too."""

    def __init__(self, text: str, account: Account) -> None:
        super().__init__(text)
        self.account = account


def record(
    settings: RecordSettings,
    masker: Masker | None,
    key: bytes,
    stop: Callable[[], bool],
    progress: Callable[[Progress], None] | None = None,
    *,
    anchor_ns: int,
    monotonic_ns: Callable[[], int] = time.monotonic_ns,
    host: str = "",
    source: Source | None = None,
    bus: Bus | None = None,
    wall_ns: Callable[[], int] | None = None,
) -> Account:
    """Record until `stop()` is true or `settings.for_ns` have passed; the account of this process's part.

    `anchor_ns` is unix time at monotonic 0. `bus` is that of `settings.bus`, and closed in the end; `wall_ns` is the
    clock that the bus's is measured against (default: the anchor, carried on).

    Raises ConfigError and BusError: before the first packet for what cannot be used, later when the file or the bus is
    lost for good; what was recorded till then is there, has no end mark and may be gone on with. RecordingFailed when
    the source is lost (then there is an end mark), or there is no room for what came last (then there is none).
    BusAway in the end: what the bus did not take waits in the spool.
    """
    why = "given"
    kill_file, user = KillFile(settings.kill_file), user_of(settings.user) if settings.user else None
    leave_out = _leave_out(settings)
    if source is None:
        choice = choose(settings)
        why = choice.why
        source = open_source(settings, choice, anchor_ns=anchor_ns, monotonic_ns=monotonic_ns)
    host = settings.agent or host
    log: LogWriter | Segments | Dealer
    blind: Increment | None = None
    try:
        manifest = _manifest(settings, masker is not None, source, anchor_ns + monotonic_ns(), host)
        if settings.segmented:
            folder = Path(settings.to)
            rotation = Rotation(
                settings.rotate_bytes, settings.rotate_ns, settings.keep_last_ns, settings.max_disk_bytes
            )
            log = Segments(
                folder,
                manifest,
                rotation,
                process=settings.process,
                processes=settings.processes,
                now_ns=lambda: anchor_ns + monotonic_ns(),
            )
            blind = log.blind
        elif bus is None:
            log, blind = _open(Path(settings.to), manifest)
        else:
            ahead = source.kernel_times or wall_ns is None
            skew_ns = (lambda: 0) if ahead or wall_ns is None else (lambda: wall_ns() - anchor_ns - monotonic_ns())
            folder, most = Path(settings.spool).expanduser() / settings.recording, settings.spool_max_bytes
            log = Dealer(bus, manifest, host, folder, most, monotonic_ns=monotonic_ns, skew_ns=skew_ns)
        if user is not None:
            give(Path(settings.to) if bus is None else folder, user, OURS)
            if settings.socket:
                give(Path(settings.socket), user)
            become(user, folder if bus is not None or settings.segmented else None)
    except BaseException:
        source.close()
        if bus is not None:
            bus.close()
        raise
    capture = within(settings.capture, settings.max_memory_bytes)
    capture = msgspec.structs.replace(capture, batch_ns=min(capture.batch_ns, FLUSH_NS))
    tick, buffer_s = None, settings.buffer_s
    if isinstance(log, Dealer):
        capture = msgspec.structs.replace(capture, max_body_bytes=min(capture.max_body_bytes, BUS_BODY_BYTES))
        tick, buffer_s = log.tick, settings.bus_buffer_s
    elif isinstance(log, Segments):
        tick = log.tick
    most = queue_bytes(settings.max_memory_bytes)
    writer = QueuedWriter(log, buffer_ns=round(buffer_s * 1e9), max_bytes=most, monotonic_ns=monotonic_ns, tick=tick)
    try:
        assembler = Assembler(log.manifest.owner_id, capture, masker, key, host=host)
        assembler.leave_out = leave_out
        if blind is not None:
            writer.write_records((), RecordType.ACCOUNT, increment=blind)
        loop = _Loop(settings, capture, source, assembler, writer, log, why, anchor_ns, monotonic_ns, kill_file)
        loop.blind_ns = blind.notes["blind_ns"] if blind is not None else -1
        return loop.run(stop, progress)
    finally:
        writer.close()
        source.close()


def stress(low: bytes) -> str:
    """The reason for which a request is left out: it carries the marker, valid or not; "" for production. `low`: its
    fields in lower case."""
    return "stress" if _MARKER in low else ""


def _leave_out(settings: RecordSettings) -> Filter | None:
    wanted = filter_of(settings.sample)
    if settings.keep_stress:
        return wanted

    def why(request: Message) -> str:
        return stress(request.low) or (wanted(request) if wanted is not None else "")

    return why


def _manifest(settings: RecordSettings, masked: bool, source: Source, now_ns: int, host: str) -> Manifest:
    return Manifest(
        topic=topics.RAW,
        partition="0",
        owner_id=settings.recording or ulid(now_ns),
        created_ns=now_ns,
        writer="livefire",
        hosts=settings.agents or ((host,) if host else ()),
        scale=settings.scale * settings.sample.share,
        settings=msgspec.to_builtins(msgspec.structs.replace(settings, sample=settings.sample.without_values)),
        inputs=source.inputs,
        masked=masked,
    )


def _open(path: Path, manifest: Manifest) -> tuple[LogWriter, Increment | None]:
    """The file, made or gone on with; and what must be said of the time in which nobody wrote it."""
    found = _manifest_of(path)
    if found is None:
        return LogWriter(path, manifest), None
    check_goes_on(path, found, manifest)
    log = LogWriter(path, msgspec.structs.replace(manifest, owner_id=found.owner_id))
    account = account_of(path)
    in_flight = {name: ledger.in_flight for name, ledger in account.ledgers.items() if ledger.in_flight}
    return log, after_crash(in_flight, max(0, manifest.created_ns - max(log.last_ns, found.created_ns)))


def _manifest_of(path: Path) -> Manifest | None:
    if not path.is_file() or not path.stat().st_size:
        return None
    with LogReader(path) as reader:
        return reader.manifest


class _Loop:
    def __init__(
        self,
        settings: RecordSettings,
        capture: CaptureSettings,
        source: Source,
        assembler: Assembler,
        writer: QueuedWriter,
        log: LogWriter | Segments | Dealer,
        why: str,
        anchor_ns: int,
        monotonic_ns: Callable[[], int],
        kill_file: KillFile,
    ) -> None:
        self._settings = settings
        self._source = source
        self._assembler = assembler
        self._writer = writer
        self._log = log
        self._why = why
        self._anchor_ns = anchor_ns
        self._monotonic_ns = monotonic_ns
        self._output = Output(writer, capture, bus=isinstance(log, Dealer))
        self._started_ns = monotonic_ns()
        self._last_exchanges = 0
        self._last_tick_ns = self._started_ns
        self._shedder = Shedder()
        self._governor = Governor(settings, self._shedder, lambda: use_now(log.next_offset))
        self._deaf = Deaf(assembler)
        self._links = Links(source.inputs)
        self._kill_file = kill_file
        self._steps, self._stepped = Steps(monotonic_ns=monotonic_ns), (0, 0)
        self._clock: Clock | None = None
        self.blind_ns = -1
        sheds = self._shedder.sheds if isinstance(log, Dealer) or settings.bounded else None
        assembler.sheds = sampled(settings.sample.share, sheds)
        if isinstance(log, Dealer):
            self._follow_bus(log)

    def run(self, stop: Callable[[], bool], progress: Callable[[Progress], None] | None) -> Account:
        source, assembler, settings = self._source, self._assembler, self._settings
        now = self._started_ns
        ends_ns = now + settings.for_ns if settings.for_ns else 0
        next_tick, next_expire, next_look, heard_ns = now, now, now, now
        reason = "done"
        failed: BusError | None = None
        while True:
            now = self._monotonic_ns()
            if now >= next_tick:
                next_tick = now + _TICK_NS
                source.count(assembler)
                self._writer.check()
                if progress is not None:
                    progress(self._progress(now))
            if ends_ns and now >= ends_ns:
                break
            if stop():
                reason = "stopped"
                break
            if self._disk_is_used_up():
                assembler.account.note("disk_limit_reached")
                break
            if now >= next_look:
                next_look = now + LOOK_NS
                self._governor.look(now)
                self._links.look(now, assembler.note)
                self._tell_steps()
                if self._kill_file.there():
                    assembler.account.note("stopped.kill_file")
                    reason = "stopped"
                    break
            try:
                heard = source.feed(self._deaf if self._governor.deaf else assembler, _WAIT_S)
            except BusError as error:
                reason, failed = "failed", error
                break
            if heard:
                heard_ns = self._monotonic_ns()
            if now >= next_expire:
                # The packets' own clock, carried on while there are none: the wall clock may be set meanwhile.
                next_expire = now + _EXPIRE_NS
                if isinstance(self._log, Dealer):
                    self._follow_bus(self._log)
                if assembler.now_ns:
                    assembler.expire(assembler.now_ns + max(0, now - heard_ns))
            self._pump()
        self._tell_steps()  # one of a moment ago, too
        stopped_ns = self._anchor_ns + self._monotonic_ns() + (self._clock.offset_ns if self._clock is not None else 0)
        source.finish(assembler)
        self._pump()
        if not self._writer.settle(LINGER_S if isinstance(self._log, Dealer) else self._settings.buffer_s):
            self._output.shed(assembler)
        self._links.end(self._monotonic_ns(), assembler.note)
        self._governor.account(assembler.account)
        try:
            self._output.end(assembler, reason, stopped_ns=stopped_ns)
        except BusFull as error:  # a full disk, or one that is slower than what came
            self._give_up()
            why = str(error).removesuffix(LAST_IS_LOST)
            failed = failed or BusError(why + LAST_IS_LOST)
        if progress is not None:
            progress(self._progress(self._monotonic_ns()))
        if failed is not None:
            raise RecordingFailed(str(failed), assembler.account)
        return assembler.account

    def _give_up(self) -> None:
        """What waits finds no room, and so is not recorded, though it was counted when it was handed over. What is to
        be said of that is small, and may find room."""
        assembler, writer = self._assembler, self._writer
        self._output.shed(assembler)
        ended = writer.give_up()
        self._output.written_exchanges -= writer.lost_exchanges
        assembler.note_masked()
        account = assembler.account
        for increment in writer.lost:
            account.put_back(increment)
            for name in ("messages", "bytes"):
                count = increment.ledgers[name].emitted if name in increment.ledgers else 0
                if count:
                    account.ledger(name).emitted -= count
                    account.ledger(name).drop("no_room", count)
        if ended and not isinstance(self._log, Dealer):
            with contextlib.suppress(BusError):
                self._log.write(codec.encode((), RecordType.ACCOUNT, increment=account.take()))

    def _tell_steps(self) -> None:
        """That the wall clock was set, and by how much: times go on as if it had not been."""
        steps, (count, ns) = self._steps, self._stepped
        steps.look()
        if steps.count != count:
            self._assembler.note("clock_steps", steps.count - count)
            self._assembler.note("clock_step_ns", steps.ns - ns)
            self._stepped = steps.count, steps.ns

    def _disk_is_used_up(self) -> bool:
        """A ring makes room by itself. What is ready or waits is counted as it is, though it is going to be compressed;
        so what may come on top is only what is open in the end."""
        most = self._settings.max_disk_bytes
        if not most or self._settings.keep_last_ns:
            return False
        return used_bytes(self._log) + self._writer.waiting_bytes + self._assembler.ready.memory_bytes >= most

    def _follow_bus(self, dealer: Dealer) -> None:
        """Its clock, and how much room is left while it is away."""
        self._shedder.filled(dealer.fill)
        clock, before = dealer.clock, self._clock
        if clock is None or clock is before:
            return
        self._clock = clock
        self._assembler.set_clock(clock.offset_ns)
        if before is not None or clock.offset_ns != dealer.manifest.clock_offset_ns:
            # The manifest tells what was measured when the stream began; with the sum of these it is the latest.
            was = before or Clock(dealer.manifest.clock_offset_ns, dealer.manifest.clock_error_ns)
            account = self._assembler.account
            account.note("clock_measured")
            account.note(f"clock_drift_ns.{self._settings.agent}", clock.offset_ns - was.offset_ns)
            account.note(f"clock_error_drift_ns.{self._settings.agent}", clock.error_ns - was.error_ns)

    def _pump(self) -> None:
        try:
            self._output.pump(self._assembler, self._anchor_ns + self._monotonic_ns())
        except BusFull:
            self._output.shed(self._assembler)

    def _progress(self, now: int) -> Progress:
        account = self._assembler.account
        exchanges = self._output.written_exchanges
        span = now - self._last_tick_ns
        rate = (exchanges - self._last_exchanges) / (span / 1e9) if span else 0.0
        self._last_exchanges, self._last_tick_ns = exchanges, now
        return Progress(
            elapsed_ns=now - self._started_ns,
            source=self._source.described,
            why=self._why,
            exchanges=exchanges,
            exchanges_per_s=rate,
            connections=self._assembler.connections,
            file_bytes=used_bytes(self._log),
            written_bytes=self._log.next_offset,
            lost_packets=account.ledger("packets").drops.get("kernel", 0),
            shed=sum(account.ledger("messages").drops.get(name, 0) for name in ("shed", "no_room", *BOUNDS)),
            recording_id=self._log.manifest.owner_id,
            waiting_bytes=self._log.waiting_bytes if isinstance(self._log, Dealer) else 0,
            away=isinstance(self._log, Dealer) and self._log.away,
            full=self._writer.full,
            unreached=account.notes.get("upstream_failures", 0),
            blind_ns=self.blind_ns,
        )
