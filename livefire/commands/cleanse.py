"""`livefire cleanse`: a clean recording of a raw one, or what comes over a bus, as long as it comes."""

from __future__ import annotations

import json
import os
import re
import socket
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from bus.address import is_kafka, open_bus, parse_kafka
from bus.ports import BusError
from cleanse import app, loop
from cleanse import learned as learned_file
from cleanse.settings import CleanseSettings
from cleanse.stream import StreamPipeline
from livefire.errors import UserError
from livefire.learned import learned
from livefire.options import asked_bus, on_bus
from livefire.settings import Resolved, Settings
from livefire.supervisor import StopFlag
from livefire.tables import counted
from wire import config, topics
from wire.records import Flows, RouteTable

_FLOWS = 8


@click.command("cleanse")
@click.argument("recording", required=False, type=click.Path(path_type=Path))
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), help="The clean recording.")
@click.option("--rules", type=click.Path(path_type=Path, dir_okay=False), help="A rules file (default: good defaults).")
@click.option(
    "--server", multiple=True, metavar="IP:PORT", help="Keep only exchanges with it (:8080 = any address); repeatable."
)
@click.option("--from", "since", metavar="TIME", help="Only what began then or later, as 2026-11-20T12:00:00Z.")
@click.option("--until", metavar="TIME", help="Only what began before it, as 2026-11-20T12:00:00Z.")
@on_bus
@click.option("--learned", "learned_path", type=click.Path(path_type=Path, dir_okay=False),
              help="With --bus: routes and flows, as livefire learn wrote them.")  # fmt: skip
@click.option("--recording", "name", metavar="NAME", help="With --bus: only this recording (default on Kafka: all).")
@click.option("--worker", metavar="NAME", help="With --bus: this worker's own name (default: machine and process).")
@click.option("--stdin-guard", is_flag=True, help="With --bus: end when stdin does.")
@click.option("--json", "as_json", is_flag=True, help="Account, routes and flows as one object.")
@click.pass_obj
def command(
    resolved: Resolved,
    recording: Path | None,
    to: Path | None,
    rules: Path | None,
    server: tuple[str, ...],
    since: str | None,
    until: str | None,
    learned_path: Path | None,
    name: str | None,
    worker: str | None,
    stdin_guard: bool,
    as_json: bool,
) -> None:
    """Clean a recording and stamp it: fit to be fired. Reads a file that is still being written, too.

    With --bus: a worker that cleanses what recorders write onto a bus, beside others, until it is stopped.

    \b
    livefire cleanse monday.lf --to clean.lf
    livefire cleanse monday.lf --to clean.lf --server :8080 --rules rules.yaml
    livefire cleanse --bus kafka://k1:9092 --learned learned.lf
    """
    settings = settings_of(rules, server)
    from_ns = time_ns("--from", since) if since else None
    until_ns = time_ns("--until", until) if until else None
    if from_ns is not None and until_ns is not None and from_ns >= until_ns:
        raise UserError(f"--from {since} is not before --until {until}: nothing began then")
    if recording is None:
        for option, value in (("--to", to), ("--json", as_json)):
            if value:
                raise UserError(f"{option} is for a file: livefire cleanse RECORDING --to FILE")
        flag = StopFlag().install()
        _cleanse_bus(
            resolved.settings, settings, learned_path, name or "", worker, from_ns, until_ns,
            flag.with_stdin() if stdin_guard else flag,
        )  # fmt: skip
        return
    if asked_bus(resolved) or learned_path or name or worker:
        raise UserError("a file is cleansed without a bus: leave --bus, --learned, --recording and --worker out")
    if to is None:
        raise UserError("--to FILE is missing: where the clean recording is written")
    result = app.cleanse(recording, to, settings, until_ns=until_ns, from_ns=from_ns)
    for line in app.summary_lines(result):
        click.echo(line, err=as_json)
    for line in result.doubts:
        click.echo(f"livefire: {line}", err=True)
    for line in learned(result.flows)[:_FLOWS]:
        click.echo(f"  {line}", err=as_json)
    if not result.exchanges:
        click.echo(f"livefire: {to}: nothing was kept; what {recording} holds: livefire show {recording}", err=True)
    if as_json:
        click.echo(json.dumps({"account": result.account.as_json(), **learned_json(result.routes, result.flows)}))


def _cleanse_bus(
    shared: Settings,
    settings: CleanseSettings,
    learned_path: Path | None,
    name: str,
    worker: str | None,
    from_ns: int | None,
    until_ns: int | None,
    stop: StopFlag,
) -> None:
    address = shared.bus
    if not address:
        raise UserError("what should be cleansed? a RECORDING and --to FILE, or --bus ADDRESS and --learned FILE")
    if learned_path is None:
        raise UserError("--learned FILE is missing: make it with livefire learn, of a recording of the same system")
    known = learned_file.load(learned_path)

    def told(line: str) -> None:
        click.echo(f"livefire: {line}", err=True)

    if is_kafka(address):
        result = app.cleanse_stream(
            parse_kafka(address),
            settings,
            known,
            worker=worker or re.sub(r"[^A-Za-z0-9_.-]", "-", f"{socket.gethostname()}.{os.getpid()}"),
            security=shared.kafka_security,
            recording=name,
            from_ns=from_ns,
            until_ns=until_ns,
            stop=stop,
            told=told,
        )
        told(f"cleansed {counted(result.messages, 'batch', 'batches')}{_dead(result.dead)}")
        return
    if not name:
        raise UserError("--recording NAME is missing: which recording of the folder should be cleansed")
    bus = open_bus(address, name)
    if not bus.partitions(topics.RAW):
        raise BusError(f"{address}: holds no recording {name}")
    pipeline = StreamPipeline(settings, known, bus.spread(topics.CLEAN), from_ns=from_ns, until_ns=until_ns)
    done = loop.run(bus, name, pipeline, stop)
    told(f"cleansed {counted(done.messages, 'batch', 'batches')}{_dead(done.dead)}")


def _dead(count: int) -> str:
    return f"; {counted(count, 'dead letter')}, see: livefire dead list" if count else ""


def learned_json(routes: RouteTable, flows: Flows) -> dict[str, object]:
    """What was learned, for programs."""
    return {
        "routes": [{"name": route.name, "count": route.count} for route in routes.routes],
        "flows": [
            {
                "source_route": flow.source_route,
                "source": f"{flow.source.kind} {flow.source.name}",
                "sink_route": flow.sink_route,
                "sink": f"{flow.sink.kind} {flow.sink.name}",
                "support": flow.support,
            }
            for flow in flows.flows
        ],
    }


def settings_of(rules: Path | None, servers: tuple[str, ...]) -> CleanseSettings:
    """The rules file's settings, or the defaults, with the servers of the command line."""
    settings = config.load_file(rules, CleanseSettings) if rules is not None else CleanseSettings()
    return msgspec.structs.replace(settings, server=servers) if servers else settings


def time_ns(option: str, text: str) -> int:
    """Epoch ns of a time of the command line; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"{option} {text!r} is not a time; write it as 2026-11-20T12:00:00Z") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1e9)
