"""`livefire replay`: fire a clean recording at a target, open loop."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from drill.pressure import arithmetic
from livefire import keyring
from livefire.settings import Resolved
from livefire.story import Story
from livefire.supervisor import Supervisor, terminate_as_interrupt
from livefire.tables import table
from replay import app
from replay.recording import Recording
from replay.settings import ReplaySettings
from replay.summary import Summary
from wire import config
from wire.records import Beat


@click.command("replay")
@click.argument("recording", type=click.Path(path_type=Path))
@click.option("--target", required=True, metavar="URL", help="Where to fire; there is no default.")
@click.option("--speed", type=float, default=1.0, show_default=True, help="2 = twice as fast.")
@click.option("--copies", type=float, default=1.0, show_default=True, help="3 = every session three times, shifted.")
@click.option("--spread", default="10s", show_default=True, help="Copies are shifted by up to this much.")
@click.option("--max-rate", default="5000/s", show_default=True, help="Hard cap; what exceeds it is shed and counted.")
@click.option("--max-open", type=int, default=2000, show_default=True, help="Hard cap on shots without an answer.")
@click.option("--workers", type=int, default=1, show_default=True, help="Worker processes.")
@click.option("--timeout", default="10s", show_default=True, help="Give up on an answer after this time.")
@click.option("--accounts", type=click.Path(path_type=Path, dir_okay=False), help="CSV: logins of test users.")
@click.option("--disposable-target", is_flag=True, help="The target may be written to: it will be thrown away.")
@click.option("--skip-unsafe", is_flag=True, help="Leave out requests that may change state.")
@click.option("--json", "as_json", is_flag=True, help="The summary as one object.")
@click.pass_obj
def command(
    resolved: Resolved,
    recording: Path,
    target: str,
    speed: float,
    copies: float,
    spread: str,
    max_rate: str,
    max_open: int,
    workers: int,
    timeout: str,
    accounts: Path | None,
    disposable_target: bool,
    skip_unsafe: bool,
    as_json: bool,
) -> None:
    """Fire a clean recording at a target. Each shot leaves when it is due, whatever the target does.

    \b
    livefire replay clean.lf --target http://staging:8080 --copies 3 --disposable-target
    livefire replay clean.lf --target http://127.0.0.1:8080 --speed 2 --skip-unsafe --json
    """
    survey = Recording(recording).survey()
    ring, _ = keyring.load_or_make(resolved.settings.keys_path)
    settings = ReplaySettings(
        recording=recording,
        target=target,
        runs=resolved.settings.runs_path,
        key_id=ring.marker.id,
        key_hex=ring.marker.key,
        speed=speed,
        copies=copies / survey.scale,  # 1x is production's rate, of which the recording may hold a share
        spread_ns=config.duration_ns(spread),
        workers=workers,
        max_rate=_rate(max_rate),
        max_open=max_open,
        timeout_ns=config.duration_ns(timeout),
        accounts=accounts,
        allow_unsafe=disposable_target,
        skip_unsafe=skip_unsafe,
    )
    terminate_as_interrupt()
    story = Story(click.get_text_stream("stderr"))
    if survey.lap_ns:
        recorded = survey.exchanges / (survey.lap_ns / 1e9)
        told = arithmetic(scale=survey.scale, speed=speed, load=copies, recorded_rate=recorded)
        story.line(f"about to fire {told.line()} at {target}")
    with Supervisor() as supervisor:
        summary = app.run(settings, supervisor.spawn, lambda now: story.progress(progress_line(now)))
    if as_json:
        click.echo(msgspec.json.encode(summary).decode())
    else:
        _print(summary)


def progress_line(beats: dict[str, Beat]) -> str:
    """What the workers say, added up."""
    now = beats.values()
    sent, answered, waiting = (sum(getattr(beat, name) for beat in now) for name in ("sent", "answered", "open_shots"))
    late_ms = max((beat.lag_ns for beat in now), default=0) / 1e6
    return f"{sent:,} sent, {answered:,} answered, {waiting:,} open, latest left {late_ms:.1f} ms late"


def _rate(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdigit() else config.rate_per_s(text)


def _print(summary: Summary) -> None:
    click.echo(f"run {summary.run_id}: {summary.reason}")
    heads = ("planned", "sent", "answered", "failed", "shed", "unknown", "differing")
    click.echo(table(heads, [[getattr(summary, name) for name in heads]], left=0))
    rows = [
        ("latency ms (from due)", *summary.latency_ms.values()),
        ("service ms (from send)", *summary.service_ms.values()),
        ("send error ms", *summary.send_error_ms.values()),
    ]
    click.echo(table(("", *summary.latency_ms), rows))
    for failure, count in sorted(summary.failures.items()):
        click.echo(f"{failure}: {count:,}")
    click.echo(f"{summary.cpu_s:.2f} s of processor time, of all processes")
    if not summary.balanced:
        click.echo("ACCOUNT NOT BALANCED")
