"""A recording as a folder of log files: a new one by size or time; of a ring the oldest go by age, or for room.

Each segment balances by itself, so any may be removed: what is in flight is a gauge of the whole recorder, and a
segment is given what changed of it since the one before (as `capture.dealer` does between streams). What it began with
stands in its manifest (`settings.carried`), for a recorder that goes on after a kill; so does what had been removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import msgspec

from bus.logfile import FileBus, LogWriter, account_of
from bus.ports import BusError, BusFull
from capture.dealer import after_crash
from capture.settings import SampleSettings
from capture.survey import Survey, survey
from wire import codec, topics
from wire.account import Increment, Ledger
from wire.records import End, Manifest

_T = TypeVar("_T")
ROTATED: Final = "rotated"  # the reason in the end mark of a segment that another one follows
_NAME: Final = re.compile(r"(\d{1,3})\.(\d{6,12})")  # process and number
_SHARE: Final = 10  # of a ring's time or room in one segment: what is kept varies by so much


def check_goes_on(path: Path, found: Manifest, manifest: Manifest) -> None:
    """Raises BusError when a recorder with `manifest` would make something else of what was begun with `found`."""
    if found.masked and not manifest.masked:
        raise BusError(f"{path}: was begun masked, and would go on unmasked; write somewhere else")
    if (found.scale, _sample_of(found)) != (manifest.scale, _sample_of(manifest)):
        raise BusError(
            f"{path}: was begun with {found.scale:.3%} of production, and would go on with {manifest.scale:.3%}, or "
            "with other requests of it (--scale, --sample, --only-...); write somewhere else"
        )


def _sample_of(manifest: Manifest) -> SampleSettings:
    return msgspec.convert(manifest.settings.get("sample", {}), SampleSettings)


class _Log(Protocol):
    @property
    def next_offset(self) -> int: ...


def used_bytes(log: _Log) -> int:
    """What a recording takes on the disk: of a file its length."""
    return log.used_bytes if isinstance(log, Segments) else log.next_offset


class Rotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a segment is followed by the next, and when it goes. 0: not for that reason."""

    bytes: int = 0
    ns: int = 0
    keep_ns: int = 0
    max_bytes: int = 0  # with keep_ns: beyond it the oldest go first

    def settled(self, room: int) -> Rotation:
        """With the lengths of segments that a ring needs, which has `room` bytes of disk: where that is less than what
        is kept would take, the oldest go, and so there must be an oldest one."""
        bytes_, ns = self.bytes, self.ns
        if self.keep_ns:
            ns = min(ns or self.keep_ns, max(self.keep_ns // _SHARE, 1))
            most = min(self.max_bytes or room, room)
            bytes_ = min(bytes_ or most, max(most // _SHARE, 1))
        return msgspec.structs.replace(self, bytes=bytes_, ns=ns)


def _room(folder: Path) -> int:
    """What is free on its disk, with what of a ring is there already."""
    room = shutil.disk_usage(folder).free
    for part in folder.glob("raw-*.lf"):
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            room += part.stat().st_size
    return room


class _Kept(msgspec.Struct):
    """A segment that is whole."""

    path: Path
    bytes: int
    exchanges: int
    ended_ns: int
    process: int
    removed: dict[str, int]  # of another process: what had gone of its segments when this one began


class Segments:
    """What the writer's thread writes to. `now_ns` is unix time that never goes back."""

    def __init__(self, folder: Path, manifest: Manifest, rotation: Rotation, *, process: int = 0,
                 processes: int = 1, now_ns: Callable[[], int]) -> None:  # fmt: skip
        """This is one of `processes` that write there; the first takes over what others left that are no more.

        Raises BusError for a folder that cannot be used, or holds a recording that is whole, or another one."""
        self.path = folder
        self._bus = FileBus(folder)
        self._process = process
        self._rotation = rotation
        self._now_ns = now_ns
        self._kept: list[_Kept] = []
        self._kept_bytes = self._written = 0
        self._removed: dict[str, int] = {}
        self._carried: dict[str, int] = {}  # in flight when the segment began
        self._in_flight: dict[str, int] = {}  # now, of the whole recorder
        self._log: LogWriter | None = None
        self._number = 0
        self._began_ns = 0
        self._manifest_end = 0  # of the segment
        self._manifest = manifest
        self.blind: Increment | None = None  # what must be said of the time since a recorder was killed here
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BusError(f"{folder}: cannot be made a folder: {os.strerror(error.errno or 0).lower()}") from None
        self._rotation = rotation.settled(_room(folder) // processes)
        try:
            self._find()
            if not process:
                self._adopt(processes)
            if self._log is None:  # at once: who is killed before the first batch has been here, too
                self._with_room(self._next)
        except BaseException:
            self.close()
            raise

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def next_offset(self) -> int:
        """Bytes written so far, by this process."""
        return self._written

    @property
    def used_bytes(self) -> int:
        """On the disk now."""
        return self._kept_bytes + (self._log.next_offset if self._log is not None else 0)

    # -- what is there already

    def _find(self) -> None:
        found: Survey | None = None
        in_flight: dict[str, int] = {}
        for number, path in sorted(self._segments().get(self._process, ())):
            one = survey(path)
            self._number = number
            if one.manifest is None:
                if one.empty:
                    path.unlink()  # nothing whole was ever in it; what is damaged stays
                continue
            self._keep(one, one.manifest)
            if one.end is not None and one.end.reason != ROTATED:
                raise BusError(f"{self.path}: holds a recording that is whole already; write to another folder")
            self._removed = dict(one.manifest.settings.get("removed", {}))
            self._carried = dict(one.manifest.settings.get("carried", {}))
            in_flight = _in_flight(path)
            self._in_flight = _sum(self._carried, in_flight)
            found = one
        if found is None or found.manifest is None:
            return
        lost = {ledger: count for ledger, count in self._in_flight.items() if count}
        last_ns = max(found.last_ns, found.manifest.created_ns)
        self.blind = after_crash(lost, max(0, self._manifest.created_ns - last_ns))
        if found.end is not None:
            self._carried = dict(self._in_flight)
        else:
            last = self._kept.pop()
            self._kept_bytes -= last.bytes
            self._began_ns = self._now_ns()
            partition = found.path.stem.removeprefix(f"{topics.RAW}-")
            self._log = LogWriter(last.path, msgspec.structs.replace(self._manifest, partition=partition))

    def _segments(self) -> dict[int, list[tuple[int, Path]]]:
        """By process: number and path. What is called otherwise is somebody's copy."""
        found: dict[int, list[tuple[int, Path]]] = {}
        for name in self._bus.partitions(topics.RAW):
            if (match := _NAME.fullmatch(name)) is not None and (path := self._bus.path(topics.RAW, name)).is_file():
                found.setdefault(int(match[1]), []).append((int(match[2]), path))
        return found

    def _keep(self, one: Survey, manifest: Manifest) -> None:
        check_goes_on(self.path, manifest, self._manifest)
        if self._kept and manifest.owner_id != self._manifest.owner_id:
            raise BusError(f"{self.path}: holds files of two recordings; write to another folder")
        self._manifest = msgspec.structs.replace(self._manifest, owner_id=manifest.owner_id)
        process = int(one.path.stem.removeprefix(f"{topics.RAW}-").partition(".")[0])
        removed = dict(manifest.settings.get("removed", {})) if process != self._process else {}
        self._kept.append(_Kept(one.path, one.bytes, one.exchanges, one.touched_ns, process, removed))
        self._kept_bytes += one.bytes

    def _adopt(self, processes: int) -> None:
        """Segments of processes that are no more: they go by age and for room as this one's own do."""
        for process, found in sorted(self._segments().items()):
            if process < processes:
                continue
            last: Survey | None = None
            for _, path in sorted(found):
                one = survey(path)
                if one.manifest is not None:
                    self._keep(one, one.manifest)
                    last = one
                elif one.empty:
                    path.unlink()
            if last is not None and last.manifest is not None and last.end is None:
                self._end_of_killed(last.path, last.manifest)
        self._kept.sort(key=lambda segment: segment.ended_ns)

    def _end_of_killed(self, path: Path, manifest: Manifest) -> None:
        """Closes the books of a process that was killed and is no more: nobody else is going to."""
        carried = manifest.settings.get("carried", {})
        lost = _sum(carried, _in_flight(path))
        ledgers = {
            name: Ledger(drops={"crash": count} if count else {}, in_flight=-carried.get(name, 0))
            for name, count in lost.items()
        }
        with LogWriter(path, manifest) as log:
            log.write_records((), codec.RecordType.ACCOUNT, increment=Increment(ledgers))
            log.end(reason=ROTATED)
            self._kept_bytes += log.next_offset - self._kept[-1].bytes
            self._kept[-1].bytes = log.next_offset

    # -- for the writer's thread

    def write(self, data: bytes) -> int:
        """Append one batch, to a new segment if it is time. Raises BusFull, BusError."""
        if self._log is not None and self._due(len(data)):
            self._with_room(lambda: self._end(ROTATED))
        header = codec.decode_header(data)
        for name, ledger in header.increment.ledgers.items():
            self._in_flight[name] = ledger.in_flight
        log = self._log or self._with_room(self._next)
        books = {
            name: msgspec.structs.replace(
                header.increment.ledgers.get(name) or Ledger(), in_flight=count - self._carried.get(name, 0)
            )
            for name, count in self._in_flight.items()
        }
        data = codec.with_increment(data, header, Increment(books, header.increment.notes))
        self._with_room(lambda: log.write(data))
        self._written += len(data)
        self._remove_old()
        return self._written

    def tick(self) -> None:
        """Called often, also when nothing comes: what is too old goes."""
        if self._log is not None and self._log.count and self._due(0):
            with contextlib.suppress(BusFull):  # it is tried again, as any batch is
                self._with_room(lambda: self._end(ROTATED))
        self._remove_old()

    def end(self, end: End | None = None, *, reason: str = "done", sorted: bool = False, stopped_ns: int = 0) -> None:
        """The last segment is the recording's last."""
        if self._log is None:
            self._next()
        self._end(reason, stopped_ns)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()

    # -- segments

    def _due(self, more: int) -> bool:
        log, rotation = self._log, self._rotation
        assert log is not None
        if rotation.bytes and log.count and log.next_offset + more > rotation.bytes:
            return True
        if log.next_offset == self._manifest_end:  # its time runs from what is written first
            self._began_ns = self._now_ns()
        return bool(rotation.ns) and self._now_ns() - self._began_ns >= rotation.ns

    def _with_room(self, write: Callable[[], _T]) -> _T:
        """Of a ring the oldest go when the disk is full before the budget is. Raises BusFull when none is left."""
        while True:
            try:
                return write()
            except BusFull:
                if not (self._rotation.keep_ns and self._kept):
                    raise
                self._remove(self._kept[0])

    def _next(self) -> LogWriter:
        self._remove_old()
        partition = f"{self._process}.{self._number + 1:06d}"
        now_ns = self._now_ns()
        settings: dict[str, Any] = {**self._manifest.settings}
        for name, counts in (("carried", self._carried), ("removed", self._removed)):
            if any(counts.values()):
                settings[name] = dict(counts)
        manifest = msgspec.structs.replace(
            self._manifest, partition=partition, created_ns=now_ns, settings=settings
        )  # fmt: skip
        self._began_ns = now_ns
        self._log = self._bus.writer(topics.RAW, partition, manifest)
        self._manifest_end = self._log.next_offset
        self._number += 1
        return self._log

    def _end(self, reason: str, stopped_ns: int = 0) -> None:
        log = self._log
        assert log is not None
        log.end(reason=reason, stopped_ns=stopped_ns)
        self._log = None
        self._carried = dict(self._in_flight)
        self._kept.append(_Kept(log.path, log.next_offset, log.count, self._now_ns(), self._process, {}))
        self._kept_bytes += log.next_offset

    def _remove_old(self) -> None:
        rotation = self._rotation
        if not rotation.keep_ns:
            return
        now_ns = self._now_ns()
        while self._kept and (
            now_ns - self._kept[0].ended_ns > rotation.keep_ns
            or (rotation.max_bytes and self.used_bytes > rotation.max_bytes)
        ):
            self._remove(self._kept[0])

    def _remove(self, segment: _Kept) -> None:
        try:
            os.unlink(segment.path)
        except FileNotFoundError:
            pass  # somebody was faster
        self._kept.remove(segment)
        self._kept_bytes -= segment.bytes
        gone = {"segments": 1, "exchanges": segment.exchanges, "bytes": segment.bytes}
        if not any(other.process == segment.process for other in self._kept):
            gone = _sum(gone, segment.removed)  # that process's last word goes with it
        self._removed = _sum(self._removed, gone)


def _in_flight(path: Path) -> dict[str, int]:
    return {ledger: book.in_flight for ledger, book in account_of(path).ledgers.items()}


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}
