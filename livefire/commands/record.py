"""`livefire record`: live traffic into a file, or onto a bus."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

import click

from bus.address import KafkaSecurity, is_kafka
from bus.spool import MIN_SPOOL_BYTES
from capture.app import drain, record
from capture.heap import collect_seldom
from capture.progress import Progress
from capture.record import RecordingFailed
from capture.sample import described
from capture.settings import RecordSettings
from livefire.commands.masking import masker_for, masking_options
from livefire.commands.show import show_account
from livefire.connections import connections_line
from livefire.disk import check_to, disk_of, disk_options, forecast, used_up
from livefire.errors import UserError
from livefire.limits import cost_line, limit_options, limits_of, stays_root
from livefire.losses import lost_line
from livefire.options import Duration, Size, asked_bus, on_bus
from livefire.protocols import other_protocols
from livefire.recorders import place, placed, record_together, tell
from livefire.recording import masked_line
from livefire.settings import Resolved
from livefire.sources import nothing_seen, source_options, sources_of, unreached_line
from livefire.story import Story
from livefire.supervisor import StopFlag
from livefire.tables import counted, size
from wire import config

_FORECAST_NS: Final = 5_000_000_000
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


@click.command("record")
@click.option(
    "--to", type=click.Path(path_type=Path), help="The recording to write: a file; a folder of files if so asked."
)
@on_bus
@click.option(
    "--recording", metavar="NAME", help="With --bus: the recording's name on the bus, the same for all recorders of it."
)
@click.option("--agent", metavar="NAME", help="This recorder's name in it (default: the name of this machine).")
@click.option("--agents", metavar="NAME,...", help="All recorders that take part, so that readers wait for each.")
@limit_options
@click.option("--spool", metavar="DIR", help="Where what the bus cannot take waits (default: see docs/cli.md).")
@click.option(
    "--spool-max", type=Size(), default="512MB", metavar="SIZE", help="Its bound; beyond it whole sessions are shed."
)
@click.option("--drain", "drain_only", is_flag=True, help="Record nothing: bring to the bus what waits in the spool.")
@source_options
@click.option("--for", "for_", type=Duration(), help="Stop after this time (default: until Ctrl-C).")
@disk_options
@click.option("--keep-stress", is_flag=True, help="Record marked stress traffic, too.")
@click.option("--stdin-guard", is_flag=True, help="Stop when stdin closes: for a supervisor.")
@masking_options
@click.option("--json", "as_json", is_flag=True, help="The account as one object when it ends.")
@click.pass_obj
def command(
    resolved: Resolved,
    /,
    to: Path | None,
    recording: str | None,
    agent: str | None,
    agents: str | None,
    spool: str | None,
    spool_max: str,
    drain_only: bool,
    for_: str | None,
    keep_stress: bool,
    stdin_guard: bool,
    unmasked: bool,
    mask: Path | None,
    as_json: bool,
    **sources: Any,
) -> None:
    """Record live HTTP traffic: from the wire where this process may read it, or of what is sent here.

    \b
    livefire record --interface eth0 --port 8080 --for 10m --to monday.lf
    livefire record --port 8080 --keep-last 30m --max-disk 20GB --to ring
    livefire record --proxy 0.0.0.0:8080=127.0.0.1:8081 --to monday.lf
    livefire record --port 8080 --bus kafka://k1:9092 --recording monday --agent web-1 --agents web-1,web-2
    """
    if for_ and not config.duration_ns(for_):
        raise UserError(f"--for {for_}: says how long it is to record, as in --for 10m; without it, until Ctrl-C")
    address = asked_bus(resolved) if to is not None else resolved.settings.bus
    names = _names(to, address, recording, agent, agents)
    settings = RecordSettings(
        to=str(to) if to is not None else "",
        bus=address,
        recording=recording or "",
        agent=names[0] if address else "",
        agents=names[1] if address else (),
        spool=spool or _default_spool(),
        spool_max_bytes=max(MIN_SPOOL_BYTES, config.size_bytes(spool_max)),
        for_ns=config.duration_ns(for_) if for_ else 0,
        keep_stress=keep_stress,
        **sources_of(sources),
        **limits_of(sources),
        **disk_of(sources, to),
    )
    check_to(settings)
    security = resolved.settings.kafka_security
    if drain_only:
        return _drain(settings, security)
    masker, key = masker_for(resolved, unmasked, mask)
    collect_seldom()
    stop = StopFlag().install()
    if stdin_guard:
        stop.with_stdin()
    if mine := place():
        try:
            account = record(placed(settings, mine), masker, key, stop.with_stdin(), tell)
        except RecordingFailed as error:
            tell(account=error.account)
            raise
        return tell(account=account)
    story = Story(sys.stderr)
    first: Progress | None = None
    latest: Progress | None = None
    told = away = full = unreached = False

    def progress(now: Progress) -> None:
        nonlocal first, latest, told, away, full, unreached
        first = first or now
        if latest is None:
            until = f"for {for_}" if for_ else "until Ctrl-C"
            part = described(settings.sample)
            only = f"; only {part}" if part else ""
            story.line(f"{now.why}; {now.source}; {until}{only}{stays_root(settings.user)}")
            if now.blind_ns >= 0:
                story.line(f"{to}: goes on behind what is there; nobody was recording for {now.blind_ns / 1e9:,.1f} s")
        if latest is not None and now.source != latest.source:
            story.line(f"goes on with {now.source}: an interface is gone")
        latest = now
        if now.away != away:
            away = now.away
            where = f"{settings.spool}/{settings.recording}"
            story.line(f"{settings.bus} is away; what is recorded waits in {where}" if away else "the bus is back")
        if now.full != full:
            full = now.full
            where = f"{settings.spool}/{settings.recording}: no room" if settings.bus else f"{to}: no room on the disk"
            story.line(f"{where}: what comes is given up" if full else "there is room again")
        if now.unreached and not unreached:
            unreached = True
            story.line(unreached_line(settings, now.unreached))
        if not told and now.elapsed_ns - first.elapsed_ns >= _FORECAST_NS:
            told = True
            story.line(forecast(settings, first, now))
        lost = f", {now.lost_packets:,} packets lost" if now.lost_packets else ""
        shed = f", {now.shed:,} shed" if now.shed else ""
        waits = f", the bus is away, {size(now.waiting_bytes)} wait" if now.away else ""
        story.progress(
            f"{now.elapsed_ns / 1e9:.0f} s, {counted(now.exchanges, 'exchange')}, {now.exchanges_per_s:,.0f}/s, "
            f"{counted(now.connections, 'connection')}, {size(now.file_bytes)}{lost}{shed}{waits}"
        )

    began = time.monotonic()
    if is_kafka(settings.bus):  # a bus that is away is known to be after seconds only
        story.line(f"connects to {settings.bus}")
    failed = ""
    try:
        if settings.processes > 1:
            account = record_together(settings, sys.argv[1:], stop, progress, now_ns=time.time_ns())
        else:
            account = record(settings, masker, key, stop, progress, security=security)
    except RecordingFailed as error:
        account, failed = error.account, str(error)
    exchanges = latest.exchanges if latest is not None else 0
    balanced = "balanced" if account.balanced else "NOT BALANCED"
    where = str(to) if to is not None else f"{recording}, {settings.agent}"
    more = "more " if latest is not None and latest.blind_ns >= 0 else ""
    held = counted(exchanges, f"{more}exchange")
    story.line(f"{where}: {held} in {time.monotonic() - began:,.1f} s; account {balanced}")
    if ended := used_up(settings, account):
        story.line(ended)
    if lost := lost_line(account):
        story.line(lost)
    story.line(cost_line(account, time.monotonic() - began))
    if ended := connections_line(account):
        story.line(ended)
    if masked := masked_line(account):
        story.line(masked)
    failures = account.notes.get("upstream_failures", 0)
    if failures:
        story.line(unreached_line(settings, failures))
    if not exchanges:
        if not failures:
            story.line(nothing_seen(settings))
        for line in other_protocols(account):
            story.line(f"  there was {line}")
    if as_json:
        show_account(account, as_json=True)
    if failed:
        raise UserError(failed)


def _names(
    to: Path | None, bus: str, recording: str | None, agent: str | None, agents: str | None
) -> tuple[str, tuple[str, ...]]:
    """This recorder's name and those of all. Raises UserError for options that do not fit together."""
    if to is not None and (bus or recording):
        raise UserError("--to writes a file, --bus and --recording to a bus: one of them")
    if to is None and not (bus and recording):
        lack = "--recording NAME" if bus else "--bus ADDRESS" if recording else "--to FILE, or --bus and --recording,"
        raise UserError(f"where to? {lack} is missing")
    name = agent or socket.gethostname().partition(".")[0]
    every = tuple(word.strip() for word in agents.split(",")) if agents else (name,)
    for word in (name, *every):
        if not _NAME.fullmatch(word):
            raise UserError(f"{word!r} is no name of a recorder: letters, digits and _ -")
    if name not in every:
        raise UserError(f"--agents {agents}: this recorder, {name}, is not among them (--agent says who it is)")
    return name, every


def _default_spool() -> str:
    return str(Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "livefire" / "spool")


def _drain(settings: RecordSettings, security: KafkaSecurity) -> None:
    if not settings.bus:
        raise UserError("--drain brings what waits to a bus: --bus ADDRESS is missing")
    found = drain(settings, security=security)
    what = f"{size(found)} of the spool are on the bus now" if found else "nothing waited in the spool"
    click.echo(f"{settings.recording}, {settings.agent}: {what}", err=True)
