"""What a report shows, read from a run's folder: result.json, run.json, panes, beats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from analytics.app import aggregate
from analytics.panes import NS
from analytics.store_sqlite import StoredPanes
from analytics.windows import ALL_ROUTES, Tally, Window, windows
from bus.logfile import FileBus
from bus.topic import TopicReader
from wire import topics
from wire.codec import RecordType
from wire.config import ConfigError
from wire.records import Kind, Pane

SLIDE_S = 4  # latency curves: each point is of the four seconds before it


class Point(msgspec.Struct, frozen=True):
    """One moment of a curve. `at_s` is elapsed time since the load began."""

    at_s: float
    tally: Tally
    seconds: int


class OpenPoint(msgspec.Struct, frozen=True):
    at_s: float
    open_shots: int
    oldest_ms: float


class ReportData(msgspec.Struct, frozen=True):
    run_id: str
    run: dict[str, Any]  # run.json
    result: dict[str, Any]  # result.json; {} for a run that was no drill
    start_s: int
    panes: tuple[Pane, ...]
    opened: tuple[OpenPoint, ...]

    def curve(self, kind: Kind, over_s: int) -> list[Point]:
        """All routes together, a point a second: the end of each span of `over_s` seconds that has anything in it."""
        found = windows(self.panes, every_s=1, over_s=over_s, start_s=self.start_s)
        return [
            Point(w.end_s - self.start_s - (0.5 if over_s == 1 else 0), w.tally, over_s)
            for w in found
            if w.kind is kind and w.route == ALL_ROUTES
        ]

    def tumbling(self, every_s: int) -> list[Window]:
        return [
            w for w in windows(self.panes, every_s=every_s, over_s=every_s, start_s=self.start_s)
            if w.route == ALL_ROUTES and w.elapsed_s >= 0
        ]  # fmt: skip

    @property
    def steps(self) -> list[dict[str, Any]]:
        return list(self.result.get("steps", ()))

    def elapsed(self, at_ns: int) -> float:
        return at_ns / NS - self.start_s


def read_run(run_dir: Path) -> ReportData:
    """Raises BusError, StoreError, ConfigError for a folder that holds no run, or a damaged one."""
    run, result = _json(run_dir / "run.json"), _json(run_dir / "result.json")
    run_id = str(result.get("run_id") or run.get("run_id") or run_dir.resolve().name)
    panes: list[Pane] = []
    start: str | None = None
    if FileBus(run_dir).partitions(topics.OUTCOMES) or (run_dir / "panes.db").exists():
        with StoredPanes(aggregate(run_dir)) as store:
            panes = store.panes(run_id)
            start = store.note("start_s")
    elif not run and not result:
        raise ConfigError(f"{run_dir}: holds no run")
    stress = [pane.second for pane in panes if pane.kind is Kind.STRESS]
    start_s = int(start) if start else min(stress, default=0)
    return ReportData(run_id, run, result, start_s, tuple(panes), tuple(_opened(run_dir, start_s)))


def _opened(run_dir: Path, start_s: int) -> list[OpenPoint]:
    """Open shots of all workers together, a point each quarter of a second."""
    reader = TopicReader(FileBus(run_dir), topics.BEATS)
    slots: dict[int, dict[str, tuple[int, int]]] = {}
    for _, batch in reader.batches():
        if batch.header.type is RecordType.BEAT:
            for beat in batch.records:
                slot = beat.at_ns // (NS // 4)
                slots.setdefault(slot, {})[beat.worker] = (beat.open_shots, beat.oldest_open_ns)
    reader.close()
    return [
        OpenPoint(slot / 4 - start_s, sum(n for n, _ in found.values()), max(age for _, age in found.values()) / 1e6)
        for slot, found in sorted(slots.items())
        if slot / 4 >= start_s
    ]


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(msgspec.json.decode(path.read_bytes()))
    except FileNotFoundError:
        return {}
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: damaged: {error}") from None


def trimmed(points: Sequence[Point], until_s: float) -> list[Point]:
    return [point for point in points if 0 <= point.at_s <= until_s]
