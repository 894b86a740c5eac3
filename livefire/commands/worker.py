"""`livefire worker`: stands by on a fleet's bus, and fires for drills of others."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import click

from livefire import keyring
from livefire.errors import UserError
from livefire.options import Rate, on_bus
from livefire.settings import Resolved
from livefire.supervisor import StopFlag
from replay import accounts as seeded
from replay.app import anchor_ns
from replay.clock import clock_of
from replay.standing import Standing, StandingSettings
from replay.targets import split_url


@click.command("worker")
@click.option("--name", metavar="NAME", help="How it is called on the bus (default: the machine's name).")
@click.option("--target", "targets", multiple=True, required=True, metavar="URL", help="May be fired at; repeatable.")
@click.option("--max-rate", type=Rate(), help="Never more than this, whatever a plan asks for.")
@click.option("--max-open", type=click.IntRange(1), metavar="N", help="Never more shots without an answer than this.")
@click.option("--accounts", type=click.Path(path_type=Path, dir_okay=False), help="CSV: logins of test users.")
@click.option("--once", is_flag=True, help="Leave after one run.")
@click.option("--stdin-guard", is_flag=True, help="End when stdin does.")
@on_bus
@click.pass_obj
def command(
    resolved: Resolved,
    name: str | None,
    targets: tuple[str, ...],
    max_rate: float | None,
    max_open: int | None,
    accounts: Path | None,
    once: bool,
    stdin_guard: bool,
) -> None:
    """Stand by for drills: fire what their plans say, at these targets and no others, with this machine's keys.

    \b
    livefire worker --bus kafka://broker:9092 --name w0 --target http://staging:8080
    """
    settings = resolved.settings
    if not settings.bus:
        raise UserError("a worker stands by on a bus: livefire worker --bus kafka://host:port ...")
    for url in targets:
        if "://" in url:
            split_url(url)  # for its errors
    if accounts is not None:
        seeded.load(accounts)  # for its errors
    ring = keyring.load(settings.keys_path)
    name = name or re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())
    flag = StopFlag().install()
    stop = flag.with_stdin() if stdin_guard else flag
    standing = Standing(
        StandingSettings(
            bus=settings.bus,
            security=settings.kafka_security,
            name=name,
            targets=targets,
            folder=settings.runs_path / "workers" / name,
            key_id=ring.marker.id,
            key_hex=ring.marker.key,
            mask_hex=ring.masking,
            max_rate=max_rate or 0.0,
            max_open=max_open or 0,
            accounts=accounts,
            once=once,
        ),
        clock_of(anchor_ns()),
        lambda line: click.echo(f"worker {name}: {line}", err=True),
    )
    click.echo(f"worker {name}: stands by on {settings.bus}, for {', '.join(targets)}", err=True)
    raise click.exceptions.Exit(standing.run(stop))
