"""Deals whole batches round-robin over an agent's streams, so that as many consumers can share what comes after.

A batch and its counts stay together, so each stream gets the growth of the account that came with its batches. What is
in flight is a gauge of the whole agent; a stream is given its share of it: what changed since the batch before is
changed in the stream that this batch goes to. So each stream balances by itself, and the shares of all add up to what
is in flight; one stream's share alone may be below zero.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from bus.ports import Bus, BusAway, BusFull
from bus.spool import Spool
from bus.spooled import SpooledWriter
from wire import codec, topics
from wire.account import Increment, Ledger
from wire.records import End, Manifest

DEFAULT_SPREAD: Final = 8  # streams of an agent whose bus has not been reached yet
_MEASURE_NS: Final = 60_000_000_000
LINGER_S: Final = 15.0  # how long the end waits for a bus that is away before it leaves the rest in the spool


class Clock(msgspec.Struct, frozen=True):
    """How the bus's clock stands to that of what is recorded. Nothing measured: 0, 0."""

    offset_ns: int = 0
    error_ns: int = 0


def measured(bus: Bus) -> tuple[int, int]:
    """(The bus's clock less this machine's, how far that may be off), ns; (0, 0) for files. Raises BusAway."""
    ask = getattr(bus, "clock_offset", None)
    return ask() if ask is not None else (0, 0)


class Dealer:
    """What the writer's thread writes to. Opens the spool at once, and the bus as soon as it can be reached."""

    def __init__(
        self,
        bus: Bus,
        manifest: Manifest,
        agent: str,
        folder: Path,
        max_bytes: int,
        *,
        monotonic_ns: Callable[[], int],
        skew_ns: Callable[[], int],
        only_left: bool = False,
    ) -> None:
        """`manifest` is that of every stream, but for its partition and clock; `skew_ns`: this machine's clock less
        that of what is recorded. What a killed recorder of this agent left in the spool goes first. Raises BusError
        for what cannot be used; a bus that is away is waited for. `only_left`: nothing is going to be written but what
        was left.
        """
        self.path = f"{manifest.owner_id}, {agent}"
        self._skew_ns = skew_ns
        self.written_bytes = 0
        #: Told to the record loop's thread: bytes in the spool, how full that is (0 to 1), whether the bus is away.
        self.waiting_bytes, self.fill, self.away = 0, 0.0, False
        self._bus = bus
        self._agent = agent
        self._monotonic_ns = monotonic_ns
        self.clock: Clock | None = None  # as measured last; None = not yet
        self._measured_ns = 0
        self._turn = 0
        self._streams: list[SpooledWriter] = []
        self._shares: list[dict[str, int]] = []  # of what is in flight, by stream and ledger
        try:
            spread = bus.spread(topics.RAW)
            self.measure()
        except BusAway:
            spread, self.away = 0, True
        clock = self.clock or Clock()
        manifest = msgspec.structs.replace(
            manifest,
            created_ns=manifest.created_ns + clock.offset_ns,
            clock_offset_ns=clock.offset_ns,
            clock_error_ns=clock.error_ns,
        )
        self.manifest = manifest
        self._spool = Spool(folder, max_bytes, monotonic_ns=monotonic_ns)
        found = self._left(topics.RAW)
        try:
            wanted = range(0 if only_left else spread or (max(found) + 1 if found else DEFAULT_SPREAD))
            for number in sorted({*wanted, *found}):
                self._streams.append(self._stream(number))
            self._shares = [{} for _ in self._streams]
            for stream in self._streams if spread and not only_left else ():
                if not self._connected(stream):
                    break
        except BaseException:
            self.close()
            raise

    def _left(self, topic: str) -> set[int]:
        """The numbers of the streams that this agent has in the spool."""
        start = f"{topic}-{self._agent}."
        names = (path.stem.removeprefix(start) for path in self._spool.folder.glob(f"{start}*.mark"))
        return {int(name) for name in names if name.isdigit()}

    def _stream(self, number: int) -> SpooledWriter:
        partition = f"{self._agent}.{number}"
        return SpooledWriter(
            self._spool,
            self._bus,
            topics.RAW,
            partition,
            msgspec.structs.replace(self.manifest, partition=partition),
            after_crash if not number else _counts_after_crash,
            monotonic_ns=self._monotonic_ns,
        )

    def _connected(self, stream: SpooledWriter) -> bool:
        began_ns = self._monotonic_ns()
        try:
            stream.connect()
        except BusAway:
            self._spool.went_away(began_ns)
            return False
        return True

    # -- for the record loop's thread

    @property
    def left_bytes(self) -> int:
        """In the spool; asked by the thread that writes."""
        return self._spool.used_bytes

    @property
    def next_offset(self) -> int:
        """How many bytes were handed over, by this process."""
        return self.written_bytes

    # -- for the writer's thread

    def write(self, data: bytes) -> int:
        """Deal one batch. Raises BusFull (nothing was kept: the same batch comes again), BusError."""
        turn, shares = self._turn, self._shares[self._turn]
        header = codec.decode_header(data)
        increment, mine = header.increment, dict(shares)
        for name, ledger in increment.ledgers.items():
            others = sum(of.get(name, 0) for of in self._shares) - shares.get(name, 0)
            mine[name] = ledger.in_flight - others
        ledgers = {
            name: msgspec.structs.replace(increment.ledgers.get(name) or Ledger(), in_flight=share)
            for name, share in mine.items()
        }
        data = codec.with_increment(data, header, Increment(ledgers, increment.notes))
        try:
            offset = self._streams[turn].write(data)
        finally:
            self._look()
        self._shares[turn] = mine
        self._turn = (turn + 1) % len(self._streams)
        self.written_bytes += len(data)
        return offset

    def _look(self) -> None:
        self.waiting_bytes, self.fill, self.away = self._spool.used_bytes, self._spool.fill, self._spool.away

    def tick(self) -> None:
        """Called often: sends some of what waits, and measures the clock once a minute. Raises BusError."""
        for stream in self._streams:
            if not stream.connected and not self._spool.resting:
                self._connected(stream)
        self._drain()
        if not self._spool.resting and self._monotonic_ns() - self._measured_ns >= _MEASURE_NS:
            began_ns = self._monotonic_ns()
            try:
                self.measure()
            except BusAway:
                self._spool.went_away(began_ns)

    def measure(self) -> None:
        """Ask for the bus's clock. Raises BusAway."""
        self._measured_ns = self._monotonic_ns()
        offset_ns, error_ns = measured(self._bus)
        self.clock = Clock(offset_ns + self._skew_ns() if error_ns else 0, error_ns)

    def _drain(self) -> bool:
        try:
            return all([stream.drain() for stream in self._streams])
        finally:
            self._look()

    def end(self, end: End | None = None, *, reason: str = "done", sorted: bool = False, stopped_ns: int = 0) -> None:
        """End every stream, and wait for what is in the spool. Raises BusAway when it has to stay there, BusFull when
        there was not even room to say that it is the end."""
        until = time.monotonic() + LINGER_S
        for stream in self._streams:
            while True:
                try:
                    stream.end(reason=reason, sorted=sorted, stopped_ns=stopped_ns)
                    break
                except BusFull:
                    if time.monotonic() > until:
                        raise
                    self._drain_soon()
        self.settle()

    def settle(self) -> None:
        """Send what waits. Raises BusAway when the bus has not taken all of it in time."""
        until = time.monotonic() + LINGER_S
        while not self._drain_soon():
            if time.monotonic() > until:
                raise BusAway(
                    f"{self.path}: the bus is away: {self.waiting_bytes:,} bytes stay in {self._spool.folder} "
                    "(bring them later: the same command with --drain)"
                )

    def _drain_soon(self) -> bool:
        if self._spool.resting:
            time.sleep(0.05)
        return self._drain()

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        self._bus.close()


def after_crash(in_flight: Mapping[str, int], blind_ns: int) -> Increment:
    """Closes the books of the process that was killed: what it had in flight will not come any more."""
    ledgers = {name: Ledger(drops={"crash": count}) for name, count in in_flight.items()}
    return Increment(ledgers, {"blind": 1, "blind_ns": blind_ns})


def _counts_after_crash(in_flight: Mapping[str, int], blind_ns: int) -> Increment | None:
    """The same for a further stream: the spell in which nobody looked is told once an agent."""
    ledgers = after_crash(in_flight, blind_ns).ledgers
    return Increment(ledgers) if ledgers else None
