"""`livefire aggregate`: outcomes on a bus into stores, as windows."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from pathlib import Path
from typing import Final

import click

from analytics.beside import Recording
from analytics.following import Followed, StoreFollower, Wanted
from analytics.store_address import parse_address
from bus.address import open_bus
from bus.ports import Bus, BusAway
from bus.scopes import Scopes, open_scopes
from cleanse import learned as learned_file
from livefire.errors import USAGE, Exit, UserError
from livefire.options import Duration, on_bus
from livefire.settings import Resolved
from livefire.supervisor import StopFlag
from wire import config, topics
from wire.ids import ulid_ms

_LINE_S: Final = 5.0
_LOOK_S: Final = 0.1


@click.command("aggregate")
@on_bus
@click.option("--store", "stores", multiple=True, required=True, metavar="ADDRESS", help="Where to; repeatable.")
@click.option("--run", "run_ids", multiple=True, metavar="ID", help="Only this run, to its end; repeatable.")
@click.option("--since", type=Duration(), default="24h", help="Without --run: runs begun so long ago too (24h).")
@click.option(
    "--recording", "recordings", multiple=True, metavar="NAME", help="Production beside each run, of a recording."
)
@click.option("--whole-recording", is_flag=True, help="Also all of each recording, under its own name.")
@click.option("--learned", type=click.Path(path_type=Path, dir_okay=False), help="Routes of the recordings.")
@click.option("--server", "servers", multiple=True, metavar="IP:PORT", help="Only requests to it, or to :PORT.")
@click.option("--service", default="livefire", metavar="NAME", help="What is drilled, as service.name.")
@click.option("--stdin-guard", is_flag=True, help="End when stdin does.")
@click.pass_obj
def command(
    resolved: Resolved,
    stores: tuple[str, ...],
    run_ids: tuple[str, ...],
    since: str,
    recordings: tuple[str, ...],
    whole_recording: bool,
    learned: Path | None,
    servers: tuple[str, ...],
    service: str,
    stdin_guard: bool,
) -> None:
    """Bring outcomes from a bus into stores, and keep their windows up to date. All new runs, unless some are named.

    \b
    livefire aggregate --bus kafka://k1:9092 --store clickhouse://db:9000/livefire --store elasticsearch://es:9200
    livefire aggregate --bus runs --run 01JD0Z3N4T --store results.db
    """
    shared = resolved.settings.bus
    if not shared:
        raise UserError("nothing says which bus: livefire aggregate --bus kafka://host:port --store ...")
    if len(set(stores)) < len(stores):
        raise UserError("--store: one address is given twice")
    for store in stores:
        parse_address(store)  # for its errors
    if recordings and learned is None:
        raise UserError("--recording needs --learned FILE: routes of production are those that were learned")
    if whole_recording and not recordings:
        raise UserError("--whole-recording: of which one? livefire aggregate --recording NAME --whole-recording")
    routes = None if learned is None else learned_file.load(learned).routes
    wanted = Wanted(
        runs=run_ids or None,
        recordings=tuple(Recording(name, routes, servers) for name in recordings if routes is not None),
        service=service,
        whole=whole_recording,
    )
    security = resolved.settings.kafka_security

    def bus_of(scope: str) -> Bus:
        return open_bus(shared, scope, security)

    for scope in (*run_ids, *recordings):
        bus_of(scope).close()  # for its errors
    since_ms = time.time_ns() // 1_000_000 - config.duration_ns(since) // 1_000_000
    flag = StopFlag().install()
    stop = flag.with_stdin() if stdin_guard else flag
    looks = [open_scopes(shared, security) for _ in stores]  # one a thread
    with contextlib.suppress(BusAway):  # is waited for
        looks[0].of(topics.OUTCOMES)  # for its errors: topics that are missing
    followers = [
        StoreFollower(store, wanted, bus_of, partial(_begun_since, look, since_ms))
        for store, look in zip(stores, looks, strict=True)
    ]
    for follower in followers:
        follower.start()
    click.echo(f"aggregating {_words(wanted)} from {shared} into {', '.join(stores)}", err=True)
    told_s = time.monotonic()
    while not stop() and not all([follower.join(_LOOK_S / len(followers)) for follower in followers]):
        if time.monotonic() - told_s >= _LINE_S:
            told_s = time.monotonic()
            click.echo(_line(followers), err=True)
    for follower in followers:
        follower.stop()
    for follower in followers:
        follower.join()
    for look in looks:
        look.close()
    click.echo(_line(followers), err=True)
    for follower in followers:
        for line in follower.state.failed:
            click.echo(f"livefire: {line}", err=True)
    if any(follower.state.failed for follower in followers):
        raise Exit(USAGE)


def _begun_since(look: Scopes, since_ms: int) -> list[str]:
    """Runs among owners of outcomes: their ids tell when they began."""
    found = []
    for name in look.of(topics.OUTCOMES):
        try:
            if ulid_ms(name) >= since_ms:
                found.append(name)
        except ValueError:
            continue
    return found


def _words(wanted: Wanted) -> str:
    parts = ["new runs"] if wanted.runs is None else [f"run {name}" for name in wanted.runs]
    how = "recording" if wanted.whole else "beside recording"
    return ", ".join([*parts, *(f"{how} {recording.name}" for recording in wanted.recordings)])


def _line(followers: list[StoreFollower]) -> str:
    """The sign of life: how far each store is, and what it waits for."""
    return "; ".join(_of(follower.state) for follower in followers)


def _of(state: Followed) -> str:
    counts = f"{state.outcomes:,} outcomes"
    if state.production:
        counts += f", {state.production:,} of production"
    if state.unreadable:
        counts += f", {state.unreadable:,} batches unreadable"
    counts += f", {len(state.open)} open, {state.over} over"
    if state.left:
        counts += f", {state.left} without an end"
    if state.failed:
        counts += f", {len(state.failed)} given up"
    return f"{state.store}: {counts}" + (f", waiting: {state.away}" if state.away else "")
