"""`livefire stop`: stop a run, at once."""

from __future__ import annotations

import time
from pathlib import Path

import click

from bus.address import open_bus
from bus.logfile import FileBus
from bus.ports import Bus
from capture.hearing import named
from livefire import VERSION, runs
from livefire.errors import UserError
from livefire.options import on_bus
from livefire.settings import Resolved, Settings
from replay.hearing import FLEET
from wire import ids, topics
from wire.records import Action, Control, End, Manifest


@click.command("stop")
@click.argument("run", required=False)
@click.option("--all", "everything", is_flag=True, help="Every run that has not ended; needs no run id.")
@click.option("--recording", metavar="NAME", help="With --bus: stop the recorders of this recording instead of a run.")
@click.option("--reason", default="livefire stop", show_default=True, help="Written into the run.")
@on_bus
@click.pass_obj
def command(resolved: Resolved, run: str | None, everything: bool, recording: str | None, reason: str) -> None:
    """Stop a run (the latest, unless another is named): nothing more is sent. With --bus also those of other machines.

    --all --bus stops every run and every recorder on the bus.

    \b
    livefire stop
    livefire stop --all
    livefire stop --all --bus kafka://broker:9092
    livefire stop --recording monday --bus kafka://broker:9092
    """
    if recording is not None:
        _stop_recording(resolved.settings, run, everything, recording, reason)
        return
    if resolved.settings.bus:
        _stop_on_bus(resolved.settings, run, everything, reason)
        return
    root = resolved.settings.runs_path
    folders = [root / name for name in runs.all_runs(root)] if everything else [runs.find(root, run)]
    going = [folder for folder in folders if not runs.ended(folder)]
    for folder in going:
        send_stop(folder, reason)
        click.echo(f"run {folder.name}: told to stop")
    if not going:
        click.echo("no run is going on" if everything else f"run {folders[0].name} has ended already")


def _stop_on_bus(settings: Settings, run: str | None, everything: bool, reason: str) -> None:
    """Told to the fleet: whoever is on a run listens there, and no run needs to be known here."""
    run_id = "*" if everything else runs.named(settings.runs_path, run)
    bus = open_bus(settings.bus, FLEET, settings.kafka_security)
    try:
        write_stop(bus, FLEET, run_id, reason)
    finally:
        bus.close()
    click.echo("every run and recorder on the bus: told to stop" if everything else f"run {run_id}: told to stop")


def _stop_recording(settings: Settings, run: str | None, everything: bool, recording: str, reason: str) -> None:
    if run is not None or everything:
        raise UserError("--recording names what is to stop: leave the run and --all out")
    if not settings.bus:
        raise UserError(
            "--recording: recorders are told over a bus, --bus ADDRESS; one that writes a file has a --kill-file"
        )
    bus = open_bus(settings.bus, FLEET, settings.kafka_security)
    try:
        write_stop(bus, FLEET, named(recording), reason)
    finally:
        bus.close()
    click.echo(f"recording {recording}: its recorders are told to stop")


def send_stop(folder: Path, reason: str) -> None:
    """Tell a run of this machine to stop."""
    write_stop(FileBus(folder), folder.name, folder.name, reason)


def write_stop(bus: Bus, scope: str, run_id: str, reason: str) -> None:
    """Write a stop into a control topic, as a partition of its own. `run_id` "*" is every run. Raises BusError."""
    now = time.time_ns()
    name = f"stop-{ids.ulid(now)}"
    writer = bus.writer(topics.CONTROL, name, Manifest(topics.CONTROL, name, scope, now, f"livefire {VERSION}"))
    control = Control(run_id, 0, Action.STOP, effective_ns=now, reason=reason, issued_ns=now)
    writer.write_records((control,), first_ns=now, last_ns=now)
    writer.end(End(scope, name, 1, now, now))
