"""`livefire windows`: results in tumbling or sliding windows."""

from __future__ import annotations

import json
import sys

import click

from analytics.app import window_dicts
from analytics.windows import ALL_ROUTES, text_table
from livefire import runs
from livefire.damage import damage_of
from livefire.options import Duration
from livefire.settings import Resolved
from replay.recover import recover
from wire import config
from wire.config import ConfigError, suggestion


@click.command("windows")
@click.argument("run", required=False)
@click.option("--over", type=Duration(), help="Length of a window (default: as --every, else 10s).")
@click.option("--every", type=Duration(), help="A new window begins so often (default: as --over).")
@click.option("--route", metavar="NAME", help="Only this route; * is all together.")
@click.option("--json", "as_json", is_flag=True, help="A window a line.")
@click.pass_obj
def command(
    resolved: Resolved, run: str | None, over: str | None, every: str | None, route: str | None, as_json: bool
) -> None:
    """Results in windows: of the latest run, unless another is named. Windows slide when --over exceeds --every.

    \b
    livefire windows
    livefire windows --every 5s --over 60s --route 'GET /orders/{id}'
    livefire windows --json | head -3
    """
    folder = runs.find(resolved.settings.runs_path, run)
    recover(folder)
    for line in damage_of(folder):
        click.echo(f"livefire: {line}", err=True)
    every, over = every or over or "10s", over or every or "10s"
    if config.duration_ns(over) < config.duration_ns(every):
        raise ConfigError(f"--over {over} is less than --every {every}: what falls between windows would be missing")
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
    slide = "" if over == every else f", a new one every {every}"
    click.echo(f"run {folder.name}: windows of {over}{slide}{'' if route is None else f', {route}'}")
    if not found:
        click.echo("nothing was fired")
        return
    click.echo(text_table(found, routes=route not in (None, ALL_ROUTES)))
