"""`livefire dead`: what could not be cleansed, and what to do about it."""

from __future__ import annotations

import contextlib
import getpass
import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from bus.address import open_bus
from bus.ports import Bus
from bus.scopes import open_scopes
from cleanse import dead, learned
from cleanse.dead import Letter
from cleanse.relay import NOBODY
from cleanse.stream import StreamPipeline
from livefire.commands.cleanse import settings_of
from livefire.errors import USAGE, Exit, Group, UserError
from livefire.options import on_bus
from livefire.settings import Resolved
from livefire.tables import counted, size, table
from wire import topics
from wire.config import suggestion


@click.group("dead", cls=Group)
def command() -> None:
    """Messages that could not be cleansed: look at them, try them again, or be done with them.

    \b
    livefire dead list --bus kafka://k1:9092 --recording monday
    livefire dead retry --bus kafka://k1:9092 --recording monday --learned learned.lf web-1.3@17
    livefire dead drop --bus kafka://k1:9092 --recording monday --all
    """


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option("--recording", "name", required=True, metavar="NAME", help="Of which recording.")(function)
    return on_bus(function)


def _choice(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option("--all", "everything", is_flag=True, help="All of them.")(function)
    return click.argument("names", nargs=-1, metavar="[STREAM@OFFSET]...")(function)


def _opened(resolved: Resolved, name: str) -> Bus:
    if not (found := resolved.settings.bus):
        raise UserError("--bus ADDRESS is missing: where the recording is")
    security = resolved.settings.kafka_security
    bus = open_bus(found, name, security)
    if name == NOBODY or any(bus.partitions(topic) for topic in (topics.RAW, topics.DEAD)):
        return bus
    bus.close()
    with contextlib.closing(open_scopes(found, security)) as scopes:
        raise UserError(f"{found}: holds no recording {name}{suggestion(name, scopes.of(topics.RAW))}")


@command.command("list")
@_options
@click.option("--json", "as_json", is_flag=True, help="One letter a line.")
@click.pass_obj
def list_command(resolved: Resolved, name: str, as_json: bool) -> None:
    """Those that wait for a decision.

    \b
    livefire dead list --bus kafka://k1:9092 --recording monday
    """
    opened = _opened(resolved, name)
    found = dead.letters(opened)
    opened.close()
    if as_json:
        for letter in found:
            told = letter.dead
            click.echo(
                json.dumps(
                    {
                        "letter": letter.name,
                        "topic": told.topic,
                        "partition": told.partition,
                        "offset": told.offset,
                        "stage": told.stage,
                        "reason": told.error,
                        "bytes": len(told.data),
                        "at_ns": letter.at_ns or None,
                    }
                )
            )
        return
    if not found:
        click.echo(f"recording {name}: no dead letters")
        return
    rows = [(letter.name, _when(letter), size(len(letter.dead.data)), letter.dead.error[:90]) for letter in found]
    click.echo(table(("letter", "of", "size", "reason"), rows, words_last=True))


def _when(letter: Letter) -> str:
    return datetime.fromtimestamp(letter.at_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S") if letter.at_ns else "?"


@command.command("retry")
@_options
@_choice
@click.option("--learned", "learned_path", required=True, type=click.Path(path_type=Path, dir_okay=False),
              help="Routes and flows, as its cleansers have them.")  # fmt: skip
@click.option("--rules", type=click.Path(path_type=Path, dir_okay=False), help="The rules file of its cleansers.")
@click.pass_obj
def retry_command(
    resolved: Resolved,
    name: str,
    names: tuple[str, ...],
    everything: bool,
    learned_path: Path,
    rules: Path | None,
) -> None:
    """Cleanse them again, after an upgrade or with other rules. Those that still cannot be read stay.

    \b
    livefire dead retry --bus kafka://k1:9092 --recording monday --learned learned.lf web-1.3@17
    """
    opened = _opened(resolved, name)
    try:
        chosen = _chosen(dead.letters(opened), names, everything, name)
        pipeline = StreamPipeline(settings_of(rules, ()), learned.load(learned_path), opened.spread(topics.CLEAN))
        went, stayed = dead.retry(opened, name, chosen, pipeline, getpass.getuser(), time.time_ns())
    finally:
        opened.close()
    click.echo(f"cleansed {counted(len(went), 'dead letter')}")
    for letter, reason in stayed:
        click.echo(f"livefire: {letter.name} stays: {reason}", err=True)
    if stayed:
        raise Exit(USAGE)


@command.command("drop")
@_options
@_choice
@click.pass_obj
def drop_command(resolved: Resolved, name: str, names: tuple[str, ...], everything: bool) -> None:
    """Be done with them. Who dropped what is kept; what was in them stays counted as unreadable.

    \b
    livefire dead drop --bus kafka://k1:9092 --recording monday --all
    """
    opened = _opened(resolved, name)
    try:
        chosen = _chosen(dead.letters(opened), names, everything, name)
        dead.drop(opened, name, chosen, getpass.getuser(), time.time_ns())
    finally:
        opened.close()
    click.echo(f"dropped {counted(len(chosen), 'dead letter')}")


def _chosen(found: Sequence[Letter], names: Sequence[str], everything: bool, recording: str) -> list[Letter]:
    if everything == bool(names):
        raise UserError("which dead letters? name them as livefire dead list does (web-1.3@17), or give --all")
    if everything:
        return list(found)
    by_name = {letter.name: letter for letter in found}
    for name in names:
        if name not in by_name:
            raise UserError(f"recording {recording} has no dead letter {name!r}{suggestion(name, list(by_name))}")
    return [by_name[name] for name in dict.fromkeys(names)]
