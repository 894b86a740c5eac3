"""What panels share: the views they read, the traffic they choose, a colour for each figure on every panel."""

from __future__ import annotations

from typing import Final

import msgspec

from analytics.fields import NAME, SERIES
from analytics.kibana.data_views import DataView, of_exemplars, of_windows

STRESS: Final = 'livefire.kind : "stress"'
PRODUCTION: Final = 'livefire.kind : "production"'
BESIDE: Final = f"{STRESS} or {PRODUCTION}"

MEANT, ANSWERED, STEP, LOAD = "#98A2B3", "#006BB4", "#D6BF57", "#B9A888"
BAD, WORSE, LOST, GONE = "#E7664C", "#BD271E", "#F5A35C", "#7B4E9E"
LATENCIES: Final = ("#79AAD9", "#006BB4", "#BD271E")
STRESSED, PLAIN = "#BD271E", "#006BB4"


class Views(msgspec.Struct, frozen=True):
    """What panels read."""

    routes: DataView  # ten seconds, tumbling, per route: the default
    totals: DataView  # the same, all routes together
    sliding: DataView  # the last minute, every five seconds, all routes together
    exemplars: DataView


def views(name: str = NAME) -> Views:
    default = next(series for series in SERIES if series.default)
    sliding = next(series for series in SERIES if not series.tumbling)
    return Views(
        routes=of_windows(default, name=name),
        totals=of_windows(default, all_routes=True, name=name),
        sliding=of_windows(sliding, all_routes=True, name=name),
        exemplars=of_exemplars(name),
    )


def key(name: str, short: str) -> str:
    """The id of a panel."""
    return f"{name}-panel-{short}"
