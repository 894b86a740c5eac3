"""`livefire config`: settings with their origins."""

from __future__ import annotations

import json

import click
import msgspec

from livefire.errors import Group
from livefire.settings import Resolved


@click.group("config", cls=Group)
def command() -> None:
    """Settings: default, livefire.yaml, LIVEFIRE_<NAME>, option; the later one wins.

    \b
    livefire config show
    """


@command.command("show")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def show(resolved: Resolved, as_json: bool) -> None:
    """Each setting, its value, and where the value came from.

    \b
    LIVEFIRE_RUNS=/tmp/runs livefire config show
    """
    values = msgspec.structs.asdict(resolved.settings)
    if not values["keys"]:
        values["keys"] = str(resolved.settings.keys_path)
    security = msgspec.structs.asdict(resolved.settings.kafka_security)
    values["kafka_security"] = {name: "***" if name == "password" else v for name, v in security.items() if v}
    if as_json:
        click.echo(json.dumps({name: {"value": v, "origin": resolved.origins[name]} for name, v in values.items()}))
        return
    for name, value in values.items():
        click.echo(f"{name:<14} {value or ''!s:<40} {resolved.origins[name]}")
