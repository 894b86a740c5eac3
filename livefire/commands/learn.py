"""`livefire learn`: routes and flows of a recording, for cleansing over a bus."""

from __future__ import annotations

import json
from pathlib import Path

import click

from bus.address import open_bus
from cleanse import learn
from cleanse.learned import save
from livefire.commands.cleanse import learned_json, settings_of
from livefire.errors import UserError
from livefire.learned import learned
from livefire.options import Duration, asked_bus, on_bus
from livefire.settings import Resolved
from livefire.supervisor import StopFlag
from livefire.tables import counted
from wire import config


@click.command("learn")
@click.argument("recording", required=False, type=click.Path(path_type=Path))
@click.option("--to", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Where to keep it.")
@click.option("--rules", type=click.Path(path_type=Path, dir_okay=False), help="A rules file, as for cleanse.")
@click.option(
    "--server", multiple=True, metavar="IP:PORT", help="Only exchanges with it (:8080 = any address); repeatable."
)
@click.option("--first", type=click.IntRange(1), metavar="N", help="So many exchanges are enough.")
@on_bus
@click.option("--recording", "name", metavar="NAME", help="With --bus: which one.")
@click.option("--wait", type=Duration(), help="With --bus: give up when it is not whole after this (default: wait).")
@click.option("--json", "as_json", is_flag=True, help="Routes and flows as one object.")
@click.pass_obj
def command(
    resolved: Resolved,
    recording: Path | None,
    to: Path,
    rules: Path | None,
    server: tuple[str, ...],
    first: int | None,
    name: str | None,
    wait: str | None,
    as_json: bool,
) -> None:
    """Learn how routes are named and which values flow from answers into requests, without cleansing anything.

    \b
    livefire learn monday.lf --to learned.lf
    livefire learn --bus kafka://k1:9092 --recording monday --to learned.lf
    """
    settings = settings_of(rules, server)
    runs = to.with_name(to.name + ".runs")
    address = resolved.settings.bus
    if to.exists():
        raise UserError(f"{to}: exists already; remove it, or write to another file")
    if recording is not None:
        if asked_bus(resolved) or name:
            raise UserError("a RECORDING is a file, --bus and --recording name one on a bus: one of them")
        lesson = learn.of_file(recording, runs, settings, first)
    else:
        if not address or not name:
            lack = "--recording NAME" if address else "a RECORDING, or --bus ADDRESS and --recording NAME,"
            raise UserError(f"{lack} is missing: what to learn from")
        opened = open_bus(address, name, resolved.settings.kafka_security)
        stop = StopFlag().install()
        deadline_s = config.duration_ns(wait) / 1e9 if wait else None
        try:
            lesson = learn.of_bus(
                opened, name, runs, settings, first, stop=stop, deadline_s=deadline_s,
                told=lambda line: click.echo(line, err=True),
            )  # fmt: skip
        finally:
            opened.close()
    known = lesson.learned
    save(to, known, lesson.manifest)
    click.echo(
        f"learned {counted(len(known.routes.routes), 'route')} and {counted(len(known.flows.flows), 'flow')} of "
        f"{counted(lesson.exchanges, 'exchange')} in {counted(lesson.sessions, 'session')}",
        err=as_json,
    )
    for line in lesson.doubts:
        click.echo(f"livefire: {line}", err=True)
    for line in learned(known.flows):
        click.echo(f"  {line}", err=as_json)
    if as_json:
        click.echo(json.dumps(learned_json(known.routes, known.flows)))
