"""The report's tables and cards, as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from analytics.windows import Window
from replay.summary import TOLD
from wire.records import Failure

Cell = str | int | float | None


class Html(str):
    """Text that is HTML already; all other text is escaped."""


def show(value: Cell, digits: int = 1) -> str:
    if value is None:
        return '<span class="faint">–</span>'
    if isinstance(value, Html):
        return str(value)
    if isinstance(value, float):
        return f"{value:,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else escape(value)


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    left: int = 1,
    last_left: bool = False,
    marks: Sequence[str] = (),
) -> str:
    """The first `left` columns stand left, the last one too if asked. `marks`: a class for each row."""
    to_left = {*range(left), *((len(heads) - 1,) if last_left else ())}
    side = [' class="left"' if i in to_left else "" for i in range(len(heads))]
    head = "".join(f"<th{s}>{escape(h)}</th>" for s, h in zip(side, heads, strict=True))
    lines = []
    for number, row in enumerate(rows):
        mark = marks[number] if number < len(marks) else ""
        cells = "".join(f"<td{s}>{show(cell)}</td>" for s, cell in zip(side, row, strict=True))
        lines.append(f'<tr class="{mark}">{cells}</tr>')
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def tag(text: str, mood: str = "") -> Html:
    return Html(f'<span class="tag {mood}">{escape(text)}</span>')


def card(label: str, value: str, note: str = "", mood: str = "") -> str:
    return (
        f'<div class="card {mood}"><div class="label">{escape(label)}</div>'
        f'<div class="value">{escape(value)}</div><div class="note">{escape(note)}</div></div>'
    )


def section(title: str, body: str, what: str = "") -> str:
    says = f'<p class="what">{escape(what)}</p>' if what else ""
    return f"<section><h2>{escape(title)}</h2>{says}{body}</section>"


def percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def steps_table(steps: Sequence[Mapping[str, Any]]) -> str:
    heads = (
        "step", "load", "planned/s", "offered/s", "done/s", "errors", "shed", "p50 ms", "p95 ms", "p99 ms", "max ms",
        "production p50", "p90", "held",
    )  # fmt: skip
    rows = []
    for step in steps:
        stress, beside = step["stress"], step["production"]
        rows.append(
            (
                str(step["step"]), f"{step['load']:g}x", float(step["planned_rate"]), float(step["offered_rate"]),
                float(step["completed_rate"]), percent(stress["error_share"]), stress["shed"], stress["p50_ms"],
                stress["p95_ms"], stress["p99_ms"], stress["max_ms"], beside["p50_ms"], beside["p90_ms"], _held(step),
            )
        )  # fmt: skip
    return table(heads, rows, left=2)


def _held(step: Mapping[str, Any]) -> Html:
    if step["held"]:
        return tag("held", "good")
    if step["held"] is False:
        return tag("stopped" if step["cut"] else "not held", "bad")
    return tag("not judged", "doubt")


def thresholds_table(steps: Sequence[Mapping[str, Any]]) -> str:
    names = [t["threshold"] for t in steps[0]["thresholds"]] if steps else []
    heads = ("threshold", *(f"{step['load']:g}x" for step in steps))
    rows = []
    for index, name in enumerate(names):
        cells: list[Cell] = [name]
        for step in steps:
            found = step["thresholds"][index]
            mood = {"pass": "good", "fail": "bad"}.get(found["grade"], "doubt")
            text = found["value"] or found["grade"]
            cells.append(Html(f'<span class="{mood}">{escape(text)}</span>'))
        rows.append(cells)
    return table(heads, rows)


def routes_table(step: Mapping[str, Any]) -> str:
    heads = ("route", "offered", "done", "errors", "differing", "p50 ms", "p90 ms", "p95 ms", "max ms")
    rows = [
        (
            route, f["offered"], f["completed"], percent(f["error_share"]), f["differing"],
            f["p50_ms"], f["p90_ms"], f["p95_ms"], f["max_ms"],
        )
        for route, f in sorted(step["routes"].items(), key=lambda item: -(item[1]["max_ms"] or 0))
    ]  # fmt: skip
    return table(heads, rows)


def windows_table(found: Sequence[Window], steps: Sequence[Mapping[str, Any]]) -> str:
    heads = (
        "from",
        "step",
        "traffic",
        "offered/s",
        "done/s",
        "errors",
        "shed",
        "p50 ms",
        "p90 ms",
        "p95 ms",
        "p99 ms",
        "max ms",
    )
    loads = {step["step"] - 1: f"{step['load']:g}x" for step in steps}
    at_s: dict[int, int] = {}
    for window in found:
        at_s[window.start_s] = max(at_s.get(window.start_s, -1), window.step)
    rows, marks = [], []
    before: int | None = None
    for window in found:
        w = window.as_dict()
        step = at_s[window.start_s]
        marks.append(
            ("new-step " if before is not None and step != before else "") + ("" if w["kind"] == "stress" else "band")
        )
        before = step
        rows.append(
            (
                f"{w['elapsed_s']} s", loads.get(step, "–"), w["kind"], w["offered_rate"], w["completed_rate"],
                percent(w["error_share"]), w["shed"], w["p50_ms"], w["p90_ms"], w["p95_ms"], w["p99_ms"], w["max_ms"],
            )
        )  # fmt: skip
    return table(heads, rows, left=3, marks=marks)


def account_table(account: Mapping[str, Any]) -> str:
    rows = [
        ("planned", account["planned"], "shots that were due"),
        ("sent", account["sent"], "left, and came to an end"),
        ("shed", account["shed"], "held back by a cap, a late value, a step or the stop"),
        ("unknown", account["unknown"], "claimed by a worker that died: sent or not"),
        ("answered", account["answered"], "of those that were sent"),
        ("failed", account["failed"], "of those that were sent: refused, reset, timed out"),
    ]
    made = [(a, b, Html(f'<span class="faint">{escape(c)}</span>')) for a, b, c in rows]
    balance = tag("balanced", "good") if account["balanced"] else tag("not balanced", "bad")
    line = f"<p>planned = sent + shed + unknown, sent = answered + failed: {balance}</p>"
    why = ", ".join(f"{count:,} {TOLD[Failure(failure)]}" for failure, count in account.get("failures", {}).items())
    return table(("shots", "count", ""), made, last_left=True) + line + (f"<p>{why}</p>" if why else "")


def isolation_tables(isolation: Mapping[str, Any]) -> str:
    parts = []
    if isolation["services"]:
        rows = [
            (s["name"], s["marked_requests"], sum(s["shadow_writes"].values()), sum(s["mocked"].values()),
             Html(f'<span class="bad">{escape(s["problem"])}</span>') if s["problem"]
             else tag(f"{len(s['violations'])} violations", "bad" if s["violations"] else "good"))
            for s in isolation["services"]
        ]  # fmt: skip
        parts.append(table(("service", "stress requests", "shadow writes", "calls to mocks", "its own audit"), rows))
    counts: list[tuple[Cell, ...]] = []
    for store in isolation["stores"]:
        for name in store["shadow"] or store["production"]:
            inside = store["production"].get(name)
            mark = Html(f'<span class="{"bad" if inside else "good"}">{show(inside)}</span>')
            counts.append((f"{store['name']}.{name}", store["shadow"].get(name), mark))
        if store["problem"]:
            counts.append((Html(f'<span class="bad">{escape(store["problem"])}</span>'), None, None))
    if counts:
        parts.append(table(("rows of this run, by SQL", "in shadow", "in production"), counts))
    return "<br>".join(parts)


def third_parties_table(parties: Sequence[Mapping[str, Any]]) -> str:
    heads = ("third party", "recorded at", "mock", "calls sent to the mock", "answered by it", "unmatched (501)")
    rows = [(p["name"], p["recorded"], p["mock"], p["mocked"], p["served"], p["unmatched"]) for p in parties]
    return table(heads, rows, left=3)
