"""`livefire drill`: steps of pressure under a guard."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import msgspec

from drill.plan import load_plan
from drill.report import refuse_to_overwrite
from livefire.drilling import drill_and_tell, report_of, tell_account, tell_proof
from livefire.errors import UserError
from livefire.options import on_bus
from livefire.settings import Resolved
from livefire.story import Story
from livefire.supervisor import Supervisor, terminate_as_interrupt


@click.command("drill")
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--set", "values", multiple=True, metavar="NAME=VALUE", help="Fill in ${NAME} of the plan; repeatable.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    help="Workers (default: the plan's, 1): processes, or with --bus idle `livefire worker`s.",
)
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the report page.")
@click.option("--disposable-target", is_flag=True, help="Fire unsafe methods without an isolation proof.")
@click.option("--json", "as_json", is_flag=True, help="The result as one object.")
@on_bus
@click.pass_obj
def command(
    resolved: Resolved,
    plan: Path,
    values: tuple[str, ...],
    workers: int | None,
    report: Path | None,
    disposable_target: bool,
    as_json: bool,
) -> None:
    """Raise pressure step by step under a guard, prove isolation, write the report. Exit code 0, 96, 97, 98 or 99.

    \b
    livefire drill plan.yaml
    livefire drill plan.yaml --set target=10.0.0.5:8080 --json
    livefire drill plan.yaml --bus kafka://broker:9092
    """
    variables = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals:
            raise UserError(f"--set {value!r}: write it as NAME=VALUE")
        variables[name] = text
    asked = load_plan(plan, variables, on_bus=bool(resolved.settings.bus))
    if workers is not None:
        asked = msgspec.structs.replace(asked, workers=workers)
    if report is not None:
        refuse_to_overwrite(report)
    terminate_as_interrupt()
    story = Story(sys.stderr if as_json else None)
    with Supervisor() as supervisor:
        result = drill_and_tell(
            asked,
            resolved.settings.keys_path,
            resolved.settings.runs_path,
            supervisor,
            story,
            disposable=disposable_target,
            kibana=resolved.settings.kibana,
            bus=resolved.settings.bus,
            security=resolved.settings.kafka_security,
        )
    story.line()
    tell_account(result, story)
    tell_proof(result, story)
    story.line(f"report: {report_of(result, report)}")
    if as_json:
        click.echo(json.dumps(result.as_dict()))
    raise click.exceptions.Exit(result.exit_code)
