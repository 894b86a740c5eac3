"""`livefire demo`: the whole chain on a small shop, in about a minute."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

import click

from livefire.demo import Demo, DemoSettings
from livefire.errors import UserError
from livefire.fleet_demo import FleetDemo, FleetSettings
from livefire.options import on_bus
from livefire.settings import Resolved
from livefire.story import Story
from livefire.supervisor import terminate_as_interrupt

SHOP = Path(__file__).resolve().parents[2] / "examples" / "shop" / "shop.yaml"


@click.command("demo")
@click.option("--system", type=click.Path(path_type=Path), help="Another system, described as shop.yaml is.")
@click.option("--dir", "folder", type=click.Path(path_type=Path), default="demo", show_default=True, help="Work here.")
@click.option("--engine", type=click.Choice(["auto", "ring", "proxy"]), default="auto", help="How to record.")
@click.option(
    "--store", "stores", multiple=True, metavar="ADDRESS", help="With --bus: windows go here, too; repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="The figures as one object at the end, too.")
@on_bus
@click.pass_obj
def command(
    resolved: Resolved,
    system: Path | None,
    folder: Path,
    engine: Literal["auto", "ring", "proxy"],
    stores: tuple[str, ...],
    as_json: bool,
) -> None:
    """The whole chain on a small shop: record, cleanse, drill, prove, report. About a minute.

    \b
    livefire demo
    livefire demo --bus kafka://localhost:9092 --store clickhouse://localhost:9000/livefire
    LEAK=1 livefire demo        the shop forgets the shadow engine in one place: exit code 98
    """
    path = system or SHOP
    if not path.exists():
        raise UserError(f"{path}: no such file; the demo runs from a checkout, or name a system: --system FILE")
    terminate_as_interrupt()
    story = Story(sys.stderr if as_json else None)
    settings = DemoSettings(path.resolve(), folder, resolved.settings.runs_path, engine)
    shared = resolved.settings
    demo: Demo
    if shared.bus:
        demo = FleetDemo(settings, FleetSettings(shared.bus, stores, shared.kafka_security), story)
    elif stores:
        raise UserError("--store goes with --bus: on one machine windows are kept in the run's folder")
    else:
        demo = Demo(settings, story)
    code = demo.run()
    if as_json:
        click.echo(json.dumps(demo.figures))
    raise click.exceptions.Exit(code)
