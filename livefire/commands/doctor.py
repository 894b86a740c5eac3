"""`livefire doctor`: what this machine can do."""

from __future__ import annotations

import json

import click
import msgspec

from livefire.doctor import examine
from livefire.settings import Resolved


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One object a line, a finding each.")
@click.pass_obj
def command(resolved: Resolved, as_json: bool) -> None:
    """What this machine can do, and what to do about each lack.

    \b
    livefire doctor
    """
    settings = resolved.settings
    findings = examine(settings.runs_path, settings.keys_path, settings.bus, settings.kafka_security)
    if as_json:
        for finding in findings:
            click.echo(json.dumps(msgspec.structs.asdict(finding)))
        return
    for finding in findings:
        click.echo(f"{'ok  ' if finding.fine else 'lack'}  {finding.name:<17} {finding.detail}")
        if finding.mend:
            click.echo(f"      {'':<17} -> {finding.mend}")
