"""`livefire windows`: results in tumbling or sliding windows."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from analytics.app import window_dicts
from analytics.settings import seconds
from analytics.store_address import open_reader
from analytics.windows import ALL_ROUTES, text_table
from livefire import runs
from livefire.damage import damage_of
from livefire.errors import UserError
from livefire.options import Duration
from livefire.settings import Resolved
from wire import config
from wire.config import ConfigError, suggestion


@click.command("windows")
@click.argument("run", required=False)
@click.option("--over", type=Duration(), help="Length of a window (default: as --every, else 10s).")
@click.option("--every", type=Duration(), help="A new window begins so often (default: as --over).")
@click.option("--route", metavar="NAME", help="Only this route; * is all together.")
@click.option("--store", metavar="ADDRESS", help="Ask this store: clickhouse://, elasticsearch://, or a path.")
@click.option("--json", "as_json", is_flag=True, help="A window a line.")
@click.pass_obj
def command(
    resolved: Resolved,
    run: str | None,
    over: str | None,
    every: str | None,
    route: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Results in windows: of the latest run, unless another is named. Windows slide when --over exceeds --every.

    \b
    livefire windows
    livefire windows --every 5s --over 60s --route 'GET /orders/{id}'
    livefire windows --json | head -3
    livefire windows --store clickhouse://db:9000/livefire 01K8...
    """
    for option, text in (("--over", over), ("--every", every)):
        if text and not config.duration_ns(text):
            raise ConfigError(f"{option} {text}: a window has a length above 0")
    every, over = every or over or "10s", over or every or "10s"
    if config.duration_ns(over) < config.duration_ns(every):
        raise ConfigError(f"--over {over} is less than --every {every}: what falls between windows would be missing")
    if store is not None:
        name = run if run and not (resolved.settings.runs_path / run).is_dir() else None
        name = name or runs.find(resolved.settings.runs_path, run).name
        found = _of_store(store, name, seconds(every, "every"), seconds(over, "over"))
        if not found:
            raise UserError(f"{store}: holds nothing of run {name} (livefire aggregate brings it there)")
    else:
        folder = runs.find(resolved.settings.runs_path, run)
        name = folder.name
        if problem := runs.settle(folder, resolved.settings):
            click.echo(f"livefire: {problem}", err=True)
        for line in damage_of(folder):
            click.echo(f"livefire: {line}", err=True)
        found = window_dicts(folder, every=every, over=over)
    if route is not None:
        names = sorted({str(window["route"]) for window in found})
        if route not in names:
            raise ConfigError(f"{name}: no route {route!r}{suggestion(route, names)}")
        found = [window for window in found if window["route"] == route]
    if as_json:
        for window in found:
            sys.stdout.write(json.dumps(window) + "\n")
        return
    if route is None:
        found = [window for window in found if window["route"] == ALL_ROUTES]
    slide = "" if over == every else f", a new one every {every}"
    click.echo(f"run {name}: windows of {over}{slide}{'' if route is None else f', {route}'}")
    if not found:
        click.echo("nothing was fired")
        return
    click.echo(text_table(found, routes=route not in (None, ALL_ROUTES)))


def _of_store(address: str, run_id: str, every_s: int, over_s: int) -> list[dict[str, Any]]:
    reader = open_reader(address, run_id)
    try:
        start, mark = reader.note("start_s"), reader.note("watermark_s")
        start_s = int(start) if start else min((pane.second for pane in reader.panes(run_id)), default=0)
        found = reader.windows(
            run_id, every_s=every_s, over_s=over_s, start_s=start_s, watermark_s=int(mark) if mark else None
        )
        return [window.as_dict() for window in found]
    finally:
        reader.close()
