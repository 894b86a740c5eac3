"""`livefire windows`: results in tumbling or sliding windows."""

from __future__ import annotations

import json
import sys

import click

from analytics.app import window_dicts
from analytics.windows import ALL_ROUTES, text_table
from livefire import runs
from livefire.settings import Resolved
from replay.recover import recover
from wire.config import ConfigError, suggestion


@click.command("windows")
@click.argument("run", required=False)
@click.option("--over", metavar="DURATION", help="Length of a window (default: as --every).")
@click.option("--every", metavar="DURATION", default="10s", show_default=True, help="A new window begins so often.")
@click.option("--route", metavar="NAME", help="Only this route; * is all together.")
@click.option("--json", "as_json", is_flag=True, help="A window a line.")
@click.pass_obj
def command(
    resolved: Resolved, run: str | None, over: str | None, every: str, route: str | None, as_json: bool
) -> None:
    """Results in windows: of the latest run, unless another is named. Windows slide when --over exceeds --every.

    \b
    livefire windows
    livefire windows --every 5s --over 60s --route 'GET /orders/{id}'
    livefire windows --json | head -3
    """
    folder = runs.find(resolved.settings.runs_path, run)
    recover(folder)
    found = window_dicts(folder, every=every, over=over)
    if route is not None:
        names = sorted({str(window["route"]) for window in found})
        if route not in names:
            raise ConfigError(f"{folder.name}: no route {route!r}{suggestion(route, names)}")
        found = [window for window in found if window["route"] == route]
    if as_json:
        for window in found:
            sys.stdout.write(json.dumps(window) + "\n")
        return
    if route is None:
        found = [window for window in found if window["route"] == ALL_ROUTES]
    click.echo(text_table(found, routes=route not in (None, ALL_ROUTES)))
