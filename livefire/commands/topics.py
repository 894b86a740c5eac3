"""`livefire topics`: the topics of a bus on Kafka."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from bus.address import is_kafka, parse_kafka
from livefire.errors import USAGE, Exit, Group, UserError
from livefire.options import Duration, on_bus
from livefire.settings import Resolved
from wire import config

if TYPE_CHECKING:
    from bus.kafka_topics import Finding


@click.group("topics", cls=Group)
def command() -> None:
    """Make and check the topics of a bus on Kafka; nothing makes them by itself.

    \b
    livefire topics create --bus kafka://broker:9092 --partitions 8 --replication 3 --min-insync 2
    livefire topics check --bus kafka://broker:9092
    """


@command.command("create")
@on_bus
@click.option(
    "--partitions",
    type=click.IntRange(1, 1000),
    default=8,
    show_default=True,
    help="How many may share the work; control has one.",
)
@click.option(
    "--replication", type=click.IntRange(1, 9), default=1, show_default=True, help="Brokers that keep each message."
)
@click.option(
    "--min-insync",
    type=click.IntRange(1, 9),
    default=1,
    show_default=True,
    help="Brokers that must have a message before it counts as written.",
)
@click.option("--retention", type=Duration(), default="168h", show_default=True, help="How long messages are kept.")
@click.option("--json", "as_json", is_flag=True, help="One topic a line.")
@click.pass_obj
def create(
    resolved: Resolved, partitions: int, replication: int, min_insync: int, retention: str, as_json: bool
) -> None:
    """Make what is missing. A topic that is there is left as it is, and checked.

    \b
    livefire topics create --bus kafka://broker:9092 --retention 72h
    """
    wanted = _driver().Wanted(partitions, replication, min_insync, config.duration_ns(retention) // 1_000_000)
    _tell(resolved, lambda topics: topics.create(wanted), as_json)


@command.command("check")
@on_bus
@click.option("--json", "as_json", is_flag=True, help="One topic a line.")
@click.pass_obj
def check(resolved: Resolved, as_json: bool) -> None:
    """Whether the topics are there and fit; exit code 2 when not.

    \b
    livefire topics check --bus kafka://broker:9092 --json
    """
    _tell(resolved, lambda topics: topics.check(), as_json)


def _driver() -> ModuleType:
    try:
        return importlib.import_module("bus.kafka_topics")
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'livefire[kafka]'") from None


def _tell(resolved: Resolved, ask: Callable[[Any], list[Finding]], as_json: bool) -> None:
    address = resolved.settings.bus
    if not is_kafka(address) and "://" not in address:
        what = f"{address} is a folder, and needs no topics" if address else "which one? --bus kafka://host:port"
        raise UserError(f"topics are of a bus on Kafka: {what}")
    with _driver().Topics(parse_kafka(address), resolved.settings.kafka_security) as topics:
        found = ask(topics)
    for finding in found:
        if as_json:
            click.echo(json.dumps(finding._asdict()))
        else:
            said = finding.problem or ("made" if finding.made else "fine")
            click.echo(f"{finding.topic:<32} {finding.partitions:>4} partitions  {said}")
    wrong = [finding for finding in found if finding.problem]
    if wrong:
        hint = " (livefire topics create makes them)" if any(one.problem == "missing" for one in wrong) else ""
        click.echo(f"livefire: {parse_kafka(address)}: {len(wrong)} of {len(found)} topics do not fit{hint}", err=True)
        raise Exit(USAGE)
