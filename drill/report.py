"""The report: one HTML file that needs nothing else. Numbers come from the run's folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, Final

import msgspec

from drill import report_tables as tables
from drill.report_charts import Charts, components_of
from drill.report_data import SLIDE_S, ReportData, read_run
from drill.thresholds import Threshold, parse_threshold
from drill.verdict import FAILED, FINE, STOPPED, VIOLATED
from wire.config import ConfigError
from wire.records import Kind

_MOODS: Final = {FINE: "fine", STOPPED: "stopped", FAILED: "failed", VIOLATED: "violated"}
_CSS: Final = Path(__file__).with_name("report.css")


class Section(msgspec.Struct, frozen=True):
    """What the caller adds: a table, below the run's own sections."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]
    what: str = ""


def write_report(run_dir: Path, out: Path, extra: Sequence[Section] = ()) -> int:
    """Write the report of a run; its size in bytes. Whole or not at all.

    Raises ConfigError, BusError or StoreError for a folder that holds no run, and without Bokeh.
    """
    refuse_to_overwrite(out)
    page = report_html(read_run(run_dir), extra).encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.draft")
    try:
        draft.write_bytes(page)
        draft.replace(out)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    return len(page)


def refuse_to_overwrite(out: Path) -> None:
    """Raises ConfigError where there is a file that is no page: a mistyped name must not cost a recording."""
    try:
        with out.open("rb") as file:
            begins = file.read(64).lstrip().lower()
    except OSError:
        return  # there is none, or writing will tell
    if begins and not begins.startswith(b"<!doctype html"):
        raise ConfigError(f"{out}: exists, and is no report page; give the report another name")


def report_html(data: ReportData, extra: Sequence[Section] = ()) -> str:
    thresholds = _thresholds(data)
    script, divs = components_of(Charts(data, thresholds).figures()) if data.panes else ("", {})
    name = str(data.result.get("name") or data.run.get("name") or "replay")
    body = "".join(
        (
            _header(data, name),
            _verdict(data),
            _cards(data),
            _charts(divs, bool(data.steps)),
            _tables(data),
            *(tables.section(s.title, tables.table(s.heads, s.rows), s.what) for s in extra),
            _origin(data),
        )
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(name)} · Livefire</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_CSS.read_text("utf-8")}</style>'
        f"</head><body><main>{body}</main>{script}</body></html>\n"
    )


def _thresholds(data: ReportData) -> list[Threshold]:
    found = []
    for line in data.steps[0]["thresholds"] if data.steps else ():
        try:
            found.append(parse_threshold(line["threshold"]))
        except ConfigError:
            continue  # of a later version
    return found


def _header(data: ReportData, name: str) -> str:
    began = datetime.fromtimestamp(data.start_s, UTC) if data.start_s else None
    when = f"{began:%d %B %Y, %H:%M:%S} UTC" if began else ""
    target = escape(str(data.run.get("target", "")))
    return (
        f"<header><h1>{escape(name)}</h1><div class='meta'>{when}<br>run {escape(data.run_id)}"
        f"{f'<br>at {target}' if target else ''}</div></header>"
    )


def _verdict(data: ReportData) -> str:
    if not data.result.get("headline"):
        return ""
    reasons = "".join(f"<p>{escape(str(reason))}</p>" for reason in data.result.get("reasons", ()))
    mood = _MOODS.get(data.result["exit_code"], "doubt")
    headline = str(data.result["headline"])
    return f'<div class="verdict {mood}"><strong>{escape(headline[:1].upper() + headline[1:])}</strong>{reasons}</div>'


def _cards(data: ReportData) -> str:
    result = data.result
    if "capacity" not in result:
        return ""
    cards = [
        _capacity_card(result["capacity"], bool(data.steps), result["exit_code"]),
        _stop_card(result),
        _isolation_card(result["isolation"]),
    ]
    cards.append(_production_card(data))
    return f'<div class="cards">{"".join(cards)}</div>'


def _capacity_card(capacity: dict[str, Any], loaded: bool, exit_code: int) -> str:
    if not loaded:
        return tables.card("Capacity", "not measured", "no load was fired", "doubt")
    if capacity["step"] is None:
        return tables.card("Capacity", "not found", capacity["said"], "doubt")
    at_least = "" if capacity["limited"] else "at least "
    note = f"{capacity['load']:g}x production was held" + ("; the next step was not" if capacity["limited"] else "")
    if exit_code in _MOODS and exit_code != VIOLATED:
        return tables.card("Capacity", f"{at_least}{capacity['rate']:,.0f}/s", note, "good")
    return tables.card("Capacity", f"{at_least}{capacity['rate']:,.0f}/s", f"{note}; no proof, see above", "doubt")


def _stop_card(result: dict[str, Any]) -> str:
    after = result.get("stopped_after_ms")
    if not result.get("steps"):
        return tables.card("Guard", "not asked", "no load was fired", "doubt")
    if result.get("decision") is None or after is None:
        return tables.card("Guard", "not needed", "the load ran to its end", "good")
    value = f"{after:,.0f} ms" if after > 0 else "at once"
    return tables.card("Decision to last request", value, "the load stopped by itself", "" if after <= 1000 else "bad")


def _isolation_card(isolation: dict[str, Any]) -> str:
    mood = {"proven": "good", "violated": "bad"}.get(isolation["verdict"], "doubt")
    note = f"stress rows: {isolation['rows_in_shadow']:,} in shadow, {isolation['rows_in_production']:,} in production"
    if not isolation["stores"]:
        note = "; ".join(isolation["reasons"])[:120]
    return tables.card("Isolation", str(isolation["verdict"]), note, mood)


def _production_card(data: ReportData) -> str:
    steps = [step for step in data.steps if step["production"]["p50_ms"] is not None]
    if not steps:
        fidelity = data.result["fidelity"]["score"]
        return tables.card(
            "Fidelity", "unknown" if fidelity is None else f"{fidelity:.0%}", "answers as recorded, at 1x"
        )
    first, last = steps[0]["production"]["p50_ms"], steps[-1]["production"]["p50_ms"]
    return tables.card(
        "Production p50",
        f"{first:,.1f} → {last:,.1f} ms",
        f"real users, at {steps[0]['load']:g}x and at {steps[-1]['load']:g}x",
    )


def _charts(divs: dict[str, str], steps: bool) -> str:
    if not divs:
        return ""

    def chart(name: str) -> str:
        return f'<div class="chart">{divs[name]}</div>'

    shaded = " Shaded: the plan's steps." if steps else ""
    return "".join(
        (
            tables.section(
                "Rate", chart("rate"), f"Offered is what was due in that second, completed what was answered.{shaded}"
            ),
            tables.section(
                "Latency",
                chart("latency"),
                "From when a request should have left, so waiting counts. Each point is of the "
                f"{SLIDE_S} seconds before it; a percentile is shown from 10/(1-p) samples on.",
            ),
            '<div class="pair">',
            tables.section(
                "Errors",
                chart("errors"),
                "By the second in which they ended. After a stop, what is still open is given up: no answer.",
            ),
            tables.section("Open", chart("open"), "Sent, and not answered yet: a queue is seen here first."),
            "</div>",
            tables.section(
                "Production beside stress", chart("production"), "Real users on the same system at the same time."
            ),
        )
    )


def _tables(data: ReportData) -> str:
    result, parts = data.result, []
    if data.steps:
        parts.append(tables.section("Steps", tables.steps_table(data.steps), _fidelity(result)))
        if data.steps[0]["thresholds"]:
            parts.append(
                tables.section(
                    "Thresholds", tables.thresholds_table(data.steps), "The worst span of each step, or the whole step."
                )
            )
        last = data.steps[-1]
        parts.append(tables.section(f"Routes at {last['load']:g}x", tables.routes_table(last), "Slowest first."))
    if "isolation" in result:
        what = result["isolation"]["said"]
        reasons = result["isolation"]["reasons"]
        lines = f"<ul>{''.join(f'<li>{escape(r)}</li>' for r in reasons)}</ul>" if reasons else ""
        parts.append(
            tables.section(
                "Isolation", lines + tables.isolation_tables(result["isolation"]), what[:1].upper() + what[1:]
            )
        )
    if result.get("third_parties"):
        what = "Stress traffic never reaches them: recorded answers do."
        parts.append(tables.section("Third parties", tables.third_parties_table(result["third_parties"]), what))
    if "account" in result:
        parts.append(tables.section("Account", tables.account_table(result["account"])))
    found = [w for w in data.tumbling(5) if w.kind in (Kind.STRESS, Kind.PRODUCTION)]
    if found:
        parts.append(
            tables.section(
                "Windows", tables.windows_table(found, data.steps), "Five seconds each, all routes together."
            )
        )
    return "".join(parts)


def _fidelity(result: dict[str, Any]) -> str:
    same = result["fidelity"]["same"]
    answers = "" if same is None else f" At the load nearest to 1x, {same:.1%} of the answers were as recorded."
    return f"What each load came to. Latencies from due.{answers}"


def _origin(data: ReportData) -> str:
    lines = [
        "Rates, errors, latencies: the run's outcomes (outcomes-*.lf), one record a shot, added up in panes.db.",
        "Production: unmarked exchanges of the live recording; none of them was sent by Livefire.",
        "Rows in stores: counted by SQL where the run's id stands. Shadow writes, mocks: each service's own audit.",
        "Open shots: the workers' beats, four a second. Percentiles: nearest rank of a sketch, within 0.55 %.",
    ]
    plan = data.run.get("plan")
    shown = f"<details><summary>the plan</summary><pre>{escape(str(plan))}</pre></details>" if plan else ""
    arithmetic = "".join(f"<li>{escape(str(line))}</li>" for line in data.run.get("arithmetic", ()))
    load = (
        f"<p class='what'>Load: production over recording x speed x step.</p><ul>{arithmetic}</ul>"
        if arithmetic
        else ""
    )
    body = f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>{load}{shown}"
    return tables.section("Where the numbers come from", body)
