"""`livefire cleanse`: a clean recording of a raw one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from cleanse import app
from cleanse.settings import CleanseSettings
from livefire.errors import UserError
from livefire.learned import learned
from wire import config

_FLOWS = 8


@click.command("cleanse")
@click.argument("recording", type=click.Path(path_type=Path))
@click.option("--to", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The clean recording.")
@click.option("--rules", type=click.Path(path_type=Path, dir_okay=False), help="A rules file (default: good defaults).")
@click.option(
    "--server", multiple=True, metavar="IP:PORT", help="Keep only exchanges with it (:8080 = any address); repeatable."
)
@click.option("--until", metavar="TIME", help="Only what began before it, as 2026-11-20T12:00:00Z.")
@click.option("--json", "as_json", is_flag=True, help="Account, routes and flows as one object.")
def command(
    recording: Path, to: Path, rules: Path | None, server: tuple[str, ...], until: str | None, as_json: bool
) -> None:
    """Clean a recording and stamp it: fit to be fired. Reads a file that is still being written, too.

    \b
    livefire cleanse monday.lf --to clean.lf
    livefire cleanse monday.lf --to clean.lf --server :8080 --rules rules.yaml
    """
    settings = settings_of(rules, server)
    result = app.cleanse(recording, to, settings, until_ns=_time_ns(until) if until else None)
    for line in app.summary_lines(result):
        click.echo(line, err=as_json)
    for line in learned(result.flows)[:_FLOWS]:
        click.echo(f"  {line}", err=as_json)
    if not result.exchanges:
        click.echo(f"livefire: {to}: nothing was kept; what {recording} holds: livefire show {recording}", err=True)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "account": result.account.as_json(),
                    "routes": [{"name": route.name, "count": route.count} for route in result.routes.routes],
                    "flows": [
                        {
                            "source_route": flow.source_route,
                            "source": f"{flow.source.kind} {flow.source.name}",
                            "sink_route": flow.sink_route,
                            "sink": f"{flow.sink.kind} {flow.sink.name}",
                            "support": flow.support,
                        }
                        for flow in result.flows.flows
                    ],
                }
            )
        )


def settings_of(rules: Path | None, servers: tuple[str, ...]) -> CleanseSettings:
    """The rules file's settings, or the defaults, with the servers of the command line."""
    settings = config.load_file(rules, CleanseSettings) if rules is not None else CleanseSettings()
    return msgspec.structs.replace(settings, server=servers) if servers else settings


def _time_ns(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"--until {text!r} is not a time; write it as 2026-11-20T12:00:00Z") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1e9)
