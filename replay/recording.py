"""A clean recording as replay reads it: lap after lap, one batch in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from bus.doubts import doubts_of
from bus.logfile import LogReader
from bus.ports import BusError
from replay.schedule import is_unsafe
from replay.settings import SECOND_NS
from wire import codec, head, topics
from wire.codec import RecordType
from wire.config import ConfigError
from wire.records import Flow, Stamped

_SESSIONS_SURVEYED: Final = 100_000  # enough to know how long they last; bounds memory


class Survey(msgspec.Struct, frozen=True):
    """What a whole pass over a recording says before the first shot."""

    recording_id: str
    exchanges: int
    unsafe: dict[str, int]  # by method
    lap_ns: int
    scale: float
    doubts: tuple[str, ...] = ()  # what is wrong with the file, in one line each
    session_ns: int = 0  # nine of ten sessions are over after this long, in recording time
    routes: dict[str, int] = {}  # how many exchanges each has

    @property
    def unsafe_count(self) -> int:
        return sum(self.unsafe.values())


class Recording:
    """Raises BusError or ConfigError, with one line, for a file that cannot be replayed."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        with LogReader(self.path) as reader:
            manifest = reader.manifest
        if manifest is None:
            raise ConfigError(f"{self.path}: holds no recording (is it still being made?)")
        if manifest.topic != topics.CLEAN:
            hint = (
                f"make it fit with: livefire cleanse {self.path} --to clean.lf" if manifest.topic == topics.RAW else ""
            )
            raise ConfigError(f"{self.path}: a {manifest.topic!r} file, not a clean recording; {hint}".rstrip("; "))
        if not manifest.sorted:
            raise ConfigError(f"{self.path}: is not in time order; only sorted recordings can be replayed")
        self.manifest = manifest

    def stamped(self) -> Iterator[Stamped]:
        """All exchanges in order. What is damaged is passed over (the survey counts it)."""
        with LogReader(self.path) as reader:
            yield from _stamped(reader)

    def flows(self) -> tuple[Flow, ...]:
        """The flows that were learned: they stand before the first exchange."""
        found: list[Flow] = []
        with LogReader(self.path) as reader:
            while messages := reader.read(1):
                header = codec.decode_header(messages[0].data)
                if header.type == RecordType.STAMPED:
                    break
                if header.type == RecordType.FLOWS:
                    for record in codec.decode(messages[0].data, header).records:
                        found.extend(record.flows)
        return tuple(found)

    def survey(self) -> Survey:
        """One pass over everything. Raises ConfigError when there is nothing to fire, or it is out of order."""
        unsafe: dict[str, int] = {}
        sessions: dict[bytes, int] = {}
        routes: Counter[str] = Counter()
        count = last = 0
        with LogReader(self.path) as reader:
            for stamped in _stamped(reader):
                count += 1
                if stamped.offset_ns < last:
                    raise ConfigError(f"{self.path}: exchange {count} is out of time order; cleanse it again")
                last = stamped.offset_ns
                routes[stamped.route] += 1
                if stamped.session_id in sessions or len(sessions) < _SESSIONS_SURVEYED:
                    sessions[stamped.session_id] = stamped.offset_ns - stamped.session_start_ns
                if is_unsafe(stamped):
                    method = head.method_of(stamped.request.head).decode("latin-1") or "?"
                    unsafe[method] = unsafe.get(method, 0) + 1
            doubts = tuple(doubts_of((reader,)))
        if not count:
            raise ConfigError("; ".join((f"{self.path}: holds no exchange to fire", *doubts)))
        lengths = sorted(sessions.values())
        return Survey(
            self.manifest.owner_id,
            count,
            unsafe,
            lap_length_ns(count, last),
            self.manifest.scale,
            doubts,
            lengths[len(lengths) * 9 // 10],
            dict(routes),
        )


def lap_length_ns(count: int, last_offset_ns: int) -> int:
    """The time from one lap's first exchange to the next lap's: the last offset and one mean distance.

    So the mean rate, count / lap_ns, is the same with any number of laps.
    """
    if count < 2 or last_offset_ns <= 0:
        return max(last_offset_ns, 0) + SECOND_NS
    return last_offset_ns + last_offset_ns // (count - 1)


def refuse_unsafe(survey: Survey, path: Path | str) -> None:
    """Raises ConfigError, which counts them, when the recording has requests that may change state."""
    if survey.unsafe:
        kinds = ", ".join(f"{count} {method}" for method, count in sorted(survey.unsafe.items()))
        raise ConfigError(
            f"{path}: {survey.unsafe_count} of {survey.exchanges} requests may change state ({kinds}): prove isolation "
            f"with a drill, declare the target with --disposable-target, or leave them out with --skip-unsafe"
        )


def _stamped(reader: LogReader) -> Iterator[Stamped]:
    while messages := reader.read(1):
        try:
            header = codec.decode_header(messages[0].data)
            if header.type != RecordType.STAMPED:
                continue
            batch = codec.decode(messages[0].data, header)
        except codec.CodecError as error:
            if error.reason == "future_version":
                raise BusError(f"{reader.path}: {error.detail}: upgrade livefire") from None
            continue
        yield from batch.records
