"""The report's charts. Only this file uses Bokeh (the extra `report`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, Final

from drill.report_data import SLIDE_S, Point, ReportData, trimmed
from drill.thresholds import Threshold
from wire.config import ConfigError
from wire.records import Kind

INK, SOFT, LINE = "#1c2430", "#5c6878", "#e9ecf1"
STRESS, STRESS_LIGHT, PRODUCTION, BAD = "#d9480f", "#f4a27a", "#1971c2", "#c92a2a"
PERCENTILES: Final = (
    ("p50", 0.5, "#f7b267"),
    ("p90", 0.9, "#f08c00"),
    ("p95", 0.95, "#d9480f"),
    ("p99", 0.99, "#862e0a"),
)
_BANDS: Final = ("#f4f6f9", "#e9edf3")
_HEIGHT: Final = 270


class Charts:
    """All charts of a run, with one time axis: panning one moves all. Raises ConfigError without Bokeh."""

    def __init__(self, data: ReportData, thresholds: Sequence[Threshold]) -> None:
        try:
            from bokeh.models import Range1d
        except ImportError:
            raise ConfigError("the report needs Bokeh: pip install 'livefire[report]'") from None
        self._data = data
        self._thresholds = thresholds
        seconds = [pane.second - data.start_s for pane in data.panes if pane.kind is Kind.STRESS]
        self._end = max([*seconds, 1]) + 1.5
        rates = [point.tally.offered for point in data.curve(Kind.STRESS, 1)]
        self._top = max([*rates, 4]) * 1.25  # of the chart of rates
        self._x: Any = Range1d(start=0, end=self._end, bounds=(0, self._end))

    def figures(self) -> dict[str, Any]:
        return {
            "rate": self._rate(),
            "latency": self._latency(),
            "errors": self._errors(),
            "open": self._open(),
            "production": self._production(),
        }

    def _figure(self, unit: str, *, log: bool = False, height: int = _HEIGHT, labels: bool = False) -> Any:
        from bokeh.plotting import figure

        fig = figure(
            height=height, sizing_mode="stretch_width", x_range=self._x, toolbar_location=None,
            tools="xpan,xwheel_zoom,reset", y_axis_type="log" if log else "linear", output_backend="canvas",
        )  # fmt: skip
        fig.outline_line_color = None
        fig.background_fill_color = fig.border_fill_color = "#ffffff"
        fig.xgrid.grid_line_color = None
        fig.ygrid.grid_line_color = LINE
        for axis in (fig.xaxis, fig.yaxis):
            axis.axis_line_color = axis.major_tick_line_color = "#c8cfd9"
            axis.minor_tick_line_color = None
            axis.major_label_text_color = axis.axis_label_text_color = SOFT
            axis.major_label_text_font_size = axis.axis_label_text_font_size = "12px"
            axis.axis_label_text_font_style = "normal"
        fig.yaxis.axis_label = unit
        fig.xaxis.axis_label = "seconds since the load began"
        self._steps(fig, labels)
        return fig

    def _steps(self, fig: Any, labels: bool) -> None:
        from bokeh.models.annotations import BoxAnnotation, Span

        for index, step in enumerate(self._data.steps):
            left, right = self._data.elapsed(step["begun_ns"]), self._data.elapsed(step["end_ns"])
            fig.add_layout(
                BoxAnnotation(left=left, right=right, fill_color=_BANDS[index % 2], fill_alpha=1, level="image")
            )
            if labels:
                fig.add_layout(self._top_label(left, f"{step['load']:g}x"))
        decision = self._data.result.get("decision")
        if decision and self._data.steps:
            at = self._data.elapsed(decision["at_ns"])
            fig.add_layout(Span(location=at, dimension="height", line_color=BAD, line_width=2, line_dash="6 4"))
            if labels:
                fig.add_layout(
                    self._top_label(at, "stopped by the guard", colour=BAD, right=at > self._end * 0.7, below=18)
                )

    def _top_label(self, at: float, text: str, *, colour: str = INK, right: bool = False, below: int = 0) -> Any:
        from bokeh.models.annotations import Label

        return Label(
            x=at, y=self._top, x_offset=-8 if right else 8, y_offset=-5 - below, text=text, text_color=colour,
            text_font_size="13px", text_font_style="bold", text_align="right" if right else "left", text_baseline="top",
        )  # fmt: skip

    def _logarithmic(self, fig: Any, points: Sequence[Point], source: str) -> None:
        """A range that holds the curves and the thresholds on them, with round ticks."""
        from bokeh.models import FixedTicker

        low = [v for p in points if (v := p.tally.quantile_ms(0.5)) is not None]
        high = [v for p in points if (v := p.tally.max_ms) is not None]
        high += [t.limit / 1e6 for t in self._thresholds if t.quantile is not None and t.source == source]
        fig.y_range.start = min(low, default=1.0) / 1.6
        fig.y_range.end = max(high, default=100.0) * 1.6
        ticks = [m * 10.0**e for e in range(-3, 6) for m in (1, 2, 5)]
        fig.yaxis.ticker = FixedTicker(ticks=ticks)
        fig.ygrid.ticker = FixedTicker(ticks=ticks)
        fig.yaxis.formatter.min_exponent = 9

    def _hover(self, fig: Any, renderer: Any, tips: list[tuple[str, str]]) -> None:
        from bokeh.models import HoverTool

        fig.add_tools(HoverTool(renderers=[renderer], tooltips=tips, mode="vline", line_policy="nearest"))

    def _rate(self) -> Any:
        from bokeh.models import ColumnDataSource

        fig = self._figure("requests per second", labels=True)
        points = trimmed(self._data.curve(Kind.STRESS, 1), self._end)
        source = ColumnDataSource(
            {
                "t": [p.at_s for p in points],
                "offered": [p.tally.offered for p in points],
                "completed": [p.tally.completed for p in points],
            }
        )
        beside = trimmed(self._data.curve(Kind.PRODUCTION, 1), self._end)
        fig.varea(x="t", y1=0, y2="offered", source=source, fill_color=STRESS_LIGHT, fill_alpha=0.28)
        line = fig.line(
            "t", "offered", source=source, color=STRESS_LIGHT, line_width=2.5, legend_label="offered (stress)"
        )
        fig.line("t", "completed", source=source, color=STRESS, line_width=2.5, legend_label="completed (stress)")
        if beside:
            fig.line(
                [p.at_s for p in beside], [p.tally.completed for p in beside], color=PRODUCTION, line_width=2.5,
                legend_label="completed (production)",
            )  # fmt: skip
        fig.y_range.start = 0
        fig.y_range.end = self._top
        self._hover(fig, line, [("second", "@t{0}"), ("offered", "@offered"), ("completed", "@completed")])
        return fig

    def _latency(self) -> Any:
        fig = self._figure("ms, from when it was due", log=True, height=310)
        points = trimmed(self._data.curve(Kind.STRESS, SLIDE_S), self._end)
        self._percentiles(fig, points, PERCENTILES)
        self._logarithmic(fig, points, "stress")
        for threshold in self._thresholds:
            if threshold.quantile is not None and threshold.source == "stress":
                self._limit(fig, threshold)
        return fig

    def _percentiles(self, fig: Any, points: Sequence[Point], shown: Sequence[tuple[str, float, str]]) -> None:
        from bokeh.models import ColumnDataSource

        columns: dict[str, list[float]] = {"t": [p.at_s for p in points]}
        for name, q, _ in shown:
            columns[name] = [_nan(p.tally.quantile_ms(q)) for p in points]
        columns["max"] = [_nan(p.tally.max_ms) for p in points]
        source = ColumnDataSource(columns)
        fig.line("t", "max", source=source, color="#c3cad5", line_width=1.5, line_dash="2 3", legend_label="max")
        line = None
        for name, _, colour in shown:
            line = fig.line("t", name, source=source, color=colour, line_width=2.5, legend_label=name)
            fig.scatter("t", name, source=source, color=colour, size=4, legend_label=name)
        if line is not None:
            tips = [
                ("until second", "@t{0}"),
                *((name, f"@{name}{{0.0}} ms") for name, _, _ in shown),
                ("max", "@max{0.0} ms"),
            ]
            self._hover(fig, line, tips)

    def _limit(self, fig: Any, threshold: Threshold) -> None:
        from bokeh.models.annotations import Label, Span

        at = threshold.limit / 1e6
        fig.add_layout(Span(location=at, dimension="width", line_color=BAD, line_width=1.2, line_dash="3 3"))
        fig.add_layout(
            Label(x=6, x_units="screen", y=at, y_offset=2, text=threshold.text, text_color=BAD, text_font_size="11.5px",
                  text_baseline="bottom")
        )  # fmt: skip

    def _errors(self) -> Any:
        fig = self._figure("per second", height=210)
        points = trimmed(self._data.curve(Kind.STRESS, 1), self._end)
        names = ["failed", "5xx", "shed"]
        columns: dict[str, list[float]] = {
            "t": [p.at_s for p in points],
            "failed": [float(p.tally.failed) for p in points],
            "5xx": [float(p.tally.errors - p.tally.failed) for p in points],
            "shed": [float(p.tally.shed) for p in points],
        }
        fig.vbar_stack(names, x="t", width=0.8, color=[BAD, STRESS_LIGHT, "#adb5bd"], source=columns,
                       legend_label=["no answer", "status 5xx", "shed (not sent)"])  # fmt: skip
        fig.y_range.start = 0
        if not any(sum(columns[name]) for name in names):
            fig.y_range.end = 5
        return fig

    def _open(self) -> Any:
        fig = self._figure("open shots", height=210)
        points = [p for p in self._data.opened if p.at_s <= self._end]
        x = [p.at_s for p in points]
        fig.varea(x=x, y1=0, y2=[p.open_shots for p in points], fill_color=STRESS, fill_alpha=0.12)
        fig.line(x, [p.open_shots for p in points], color=STRESS, line_width=2, legend_label="without an answer yet")
        fig.y_range.start = 0
        if not any(p.open_shots for p in points):
            fig.y_range.end = 5
        return fig

    def _production(self) -> Any:
        fig = self._figure("ms", log=True, height=250)
        stress = trimmed(self._data.curve(Kind.STRESS, SLIDE_S), self._end)
        beside = trimmed(self._data.curve(Kind.PRODUCTION, SLIDE_S), self._end)
        self._logarithmic(fig, [*stress, *beside], "production")
        for points, colour, who in ((beside, PRODUCTION, "production"), (stress, STRESS, "stress")):
            for name, q, dash in (("p50", 0.5, "solid"), ("p90", 0.9, "6 3")):
                fig.line(
                    [p.at_s for p in points], [_nan(p.tally.quantile_ms(q)) for p in points], color=colour,
                    line_width=2.2, line_dash=dash, legend_label=f"{who} {name}",
                )  # fmt: skip
        for threshold in self._thresholds:
            if threshold.quantile is not None and threshold.source == "production":
                self._limit(fig, threshold)
        return fig


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _key(fig: Any) -> str:
    """What a chart's colours mean, as HTML: it wraps on a narrow screen, where a legend on the canvas is cut off."""
    if not fig.legend:
        return ""
    fig.legend[0].visible = False
    keys = []
    for item in fig.legend[0].items:
        glyph = item.renderers[0].glyph
        bar = hasattr(glyph, "fill_color")
        style = "bar" if bar else {"solid": "", "2 3": "dotted"}.get(_dash(glyph), "dashed")
        colour = glyph.fill_color if bar else glyph.line_color
        keys.append(f'<span class="{style}" style="color:{colour}"><i>{escape(item.label.value)}</i></span>')
    return f'<div class="key">{"".join(keys)}</div>'


def _dash(glyph: Any) -> str:
    return " ".join(str(length) for length in glyph.line_dash) or "solid"


def components_of(figures: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """(scripts with Bokeh's own JavaScript inlined, a key and a div each): what makes the page need no network."""
    from bokeh.embed import components
    from bokeh.resources import Resources

    keys = {name: _key(fig) for name, fig in figures.items()}
    script, divs = components(figures)
    # Only the core: widgets, tables and math are not used, and are megabytes.
    inline = Resources(mode="inline", components=["bokeh"], minified=True).render_js()
    return inline + script, {name: keys[name] + div for name, div in divs.items()}
