"""`livefire stop`: stop a run, at once."""

from __future__ import annotations

import time
from pathlib import Path

import click

from bus.logfile import FileBus
from livefire import VERSION, runs
from livefire.settings import Resolved
from wire import ids, topics
from wire.records import Action, Control, Manifest


@click.command("stop")
@click.argument("run", required=False)
@click.option("--all", "everything", is_flag=True, help="Every run that has not ended; needs no run id.")
@click.option("--reason", default="livefire stop", show_default=True, help="Written into the run.")
@click.pass_obj
def command(resolved: Resolved, run: str | None, everything: bool, reason: str) -> None:
    """Stop a run (the latest, unless another is named): nothing more is sent.

    \b
    livefire stop
    livefire stop --all
    """
    root = resolved.settings.runs_path
    folders = [root / name for name in runs.all_runs(root)] if everything else [runs.find(root, run)]
    going = [folder for folder in folders if not runs.ended(folder)]
    for folder in going:
        send_stop(folder, reason)
        click.echo(f"run {folder.name}: told to stop")
    if not going:
        click.echo("no run is going on" if everything else f"run {folders[0].name} has ended already")


def send_stop(folder: Path, reason: str) -> None:
    """Write the stop into the run's control topic, as a partition of its own."""
    now = time.time_ns()
    name = f"stop-{ids.ulid(now)}"
    manifest = Manifest(topics.CONTROL, name, folder.name, now, f"livefire {VERSION}")
    with FileBus(folder).writer(topics.CONTROL, name, manifest) as writer:
        control = Control(folder.name, 0, Action.STOP, effective_ns=now, reason=reason, issued_ns=now)
        writer.write_records((control,), first_ns=now, last_ns=now)
