"""Panes -> windows: sums over a span of seconds, made when they are asked for. Pure.

`every` is the distance between the beginnings of windows, `over` their length, both whole seconds: equal ones tumble,
and then each outcome is offered in exactly one window; a longer `over` slides. The first begins at the run's start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from analytics.panes import NS
from wire.records import Kind, Pane, Sketch
from wire.sketch import SketchBuilder, count_of, shown_quantile

ALL_ROUTES: Final = "*"
SHOWN: Final = (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99))


class Tally(msgspec.Struct, frozen=True):
    """The sum of panes. Latencies in ns: `from_due` from when it should have left, `from_send` from when it left."""

    offered: int = 0
    completed: int = 0
    failed: int = 0  # sent, and no answer came
    errors: int = 0  # failed, or a status >= 500
    shed: int = 0
    unknown: int = 0
    differing: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    from_due: Sketch = Sketch(6, 0, (), ())
    from_send: Sketch = Sketch(6, 0, (), ())

    @property
    def finished(self) -> int:
        return self.completed + self.failed

    @property
    def error_share(self) -> float | None:
        """Errors among the finished, 0..1; None when nothing finished."""
        return self.errors / self.finished if self.finished else None

    @property
    def samples(self) -> int:
        return count_of(self.from_due)

    def quantile_ms(self, q: float, *, from_send: bool = False) -> float | None:
        """None below 10 / (1 - q) samples."""
        value = shown_quantile(self.from_send if from_send else self.from_due, q)
        return None if value is None else value / 1e6

    @property
    def max_ms(self) -> float | None:
        return self.from_due.max_value / 1e6 if self.samples else None


_SUMS: Final = (
    "offered", "completed", "failed", "errors", "shed", "unknown", "differing", "bytes_out", "bytes_in",
)  # fmt: skip


class Adder:
    """Adds panes up to a Tally."""

    __slots__ = ("_due", "_send", "_sums", "step")

    def __init__(self) -> None:
        self._sums = dict.fromkeys(_SUMS, 0)
        self._due = SketchBuilder()
        self._send = SketchBuilder()
        self.step = -1  # the latest that was added

    def add(self, pane: Pane) -> None:
        counts = (
            pane.offered,
            pane.completed,
            pane.errors if pane.status_class == 0 else 0,
            pane.errors,
            pane.shed,
            pane.unknown,
            pane.differing,
            pane.bytes_out,
            pane.bytes_in,
        )
        for name, count in zip(_SUMS, counts, strict=True):
            self._sums[name] += count
        if pane.from_due.counts or pane.from_due.zero:
            self._due.merge(pane.from_due)
            self._send.merge(pane.from_send)
        self.step = max(self.step, pane.step)

    def total(self) -> Tally:
        return Tally(**self._sums, from_due=self._due.freeze(), from_send=self._send.freeze())


class Window(msgspec.Struct, frozen=True):
    """One span of one route (or of all, "*") and one kind of traffic."""

    run_id: str
    kind: Kind
    route: str
    start_s: int  # unix second, inclusive
    end_s: int  # exclusive
    elapsed_s: int  # of its start, since the run's
    step: int  # the highest that has a part in it; -1 = none
    final: bool  # nothing can be added any more
    tally: Tally

    @property
    def over_s(self) -> int:
        return self.end_s - self.start_s

    def as_dict(self) -> dict[str, Any]:
        """What `livefire windows --json` prints: times in ns since 1970, rates per second, latencies in ms.

        A percentile is None where there are too few samples to tell.
        """
        t = self.tally
        out: dict[str, Any] = {
            "run_id": self.run_id,
            "start_ns": self.start_s * NS,
            "end_ns": self.end_s * NS,
            "elapsed_s": self.elapsed_s,
            "step": self.step,
            "kind": self.kind.value,
            "route": self.route,
            "offered": t.offered,
            "offered_rate": round(t.offered / self.over_s, 3),
            "completed": t.completed,
            "completed_rate": round(t.completed / self.over_s, 3),
            "failed": t.failed,
            "errors": t.errors,
            "error_share": None if t.error_share is None else round(t.error_share, 6),
            "shed": t.shed,
            "unknown": t.unknown,
            "differing": t.differing,
            "bytes_out": t.bytes_out,
            "bytes_in": t.bytes_in,
        }
        for name, q in SHOWN:
            out[f"{name}_ms"] = _rounded(t.quantile_ms(q))
        out["max_ms"] = _rounded(t.max_ms)
        for name, q in SHOWN:
            out[f"service_{name}_ms"] = _rounded(t.quantile_ms(q, from_send=True))
        out["final"] = self.final
        return out


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


Scope = tuple[Kind, str]  # kind, route or "*"


def tallies(panes: Iterable[Pane], first_s: int, end_s: int, *, step: int | None = None) -> dict[Scope, Tally]:
    """Sums over [first_s, end_s) by kind and route, and by kind for all routes ("*"). One step alone, if given."""
    return {scope: adder.total() for scope, adder in _adders(panes, first_s, end_s, step).items()}


def _adders(panes: Iterable[Pane], first_s: int, end_s: int, step: int | None = None) -> dict[Scope, Adder]:
    adders: dict[Scope, Adder] = {}
    for pane in panes:
        if not first_s <= pane.second < end_s or (step is not None and pane.step != step):
            continue
        for route in (ALL_ROUTES, pane.route):
            adder = adders.get((pane.kind, route))
            if adder is None:
                adder = adders[pane.kind, route] = Adder()
            adder.add(pane)
    return adders


def windows(
    panes: Iterable[Pane], *, every_s: int, over_s: int, start_s: int, watermark_s: int | None = None
) -> Iterator[Window]:
    """Windows in order of time, kind and route (all routes together first). Panes are of one run.

    `start_s` is the run's start (a unix second). `watermark_s`: panes of the seconds before it get no more
    additions; None = of none. A window that begins before the first pane's own slot is left out, and so is an
    empty one. Raises ValueError unless 1 <= every_s <= over_s.
    """
    if not 1 <= every_s <= over_s:
        raise ValueError(
            f"windows every {every_s} s over {over_s} s: 'over' must be at least 'every', and both 1 or more"
        )
    by_second: dict[int, list[Pane]] = {}
    for pane in panes:
        by_second.setdefault(pane.second, []).append(pane)
    if not by_second:
        return
    k = (min(by_second) - start_s) // every_s
    last_k = (max(by_second) - start_s) // every_s
    while k <= last_k:
        first = start_s + k * every_s
        end = first + over_s
        inside = [pane for second in range(first, end) for pane in by_second.get(second, ())]
        found = _adders(inside, first, end)
        for kind, route in sorted(found, key=lambda scope: (scope[0].value, scope[1] != ALL_ROUTES, scope[1])):
            adder = found[kind, route]
            yield Window(
                run_id=inside[0].run_id,
                kind=kind,
                route=route,
                start_s=first,
                end_s=end,
                elapsed_s=first - start_s,
                step=adder.step,
                final=watermark_s is not None and end <= watermark_s,
                tally=adder.total(),
            )
        k += 1


def text_table(found: Iterable[Mapping[str, Any]], *, routes: bool = False) -> str:
    """Windows (as dicts) as a table for people; only all routes together unless `routes`."""
    names = (
        "at",
        "step",
        "kind",
        "route",
        "offered/s",
        "done/s",
        "errors",
        "shed",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "max ms",
    )
    rows: list[tuple[str, ...]] = [names]
    for w in found:
        if not routes and w["route"] != ALL_ROUTES:
            continue
        rows.append(
            (
                f"{w['elapsed_s']:+d}s" + ("" if w["final"] else "~"),
                "-" if w["step"] < 0 else str(w["step"] + 1),
                w["kind"],
                "all" if w["route"] == ALL_ROUTES else w["route"],
                f"{w['offered_rate']:.1f}",
                f"{w['completed_rate']:.1f}",
                "-" if w["error_share"] is None else f"{w['error_share']:.1%}",
                str(w["shed"]),
                *("-" if w[name] is None else f"{w[name]:.1f}" for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms")),
            )
        )
    if not routes:
        rows = [row[:3] + row[4:] for row in rows]
    to_left = {2, 3} if routes else {2}
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(
            cell.ljust(width) if i in to_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
