"""`livefire replay`: fire a clean recording at a target, open loop."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from bus.logfile import FileBus
from drill.pressure import arithmetic
from drill.run_files import StopAsked
from livefire import errors, keyring
from livefire.options import Duration, Positive, Rate
from livefire.settings import Resolved
from livefire.story import Story
from livefire.supervisor import Supervisor, terminate_as_interrupt
from livefire.tables import counted, table
from replay import accounts as seeded
from replay import app, targets
from replay.recording import Recording, refuse_unsafe
from replay.settings import ReplaySettings
from replay.summary import TOLD, Summary
from wire import config, ids
from wire.records import Beat, Failure


@click.command("replay")
@click.argument("recording", type=click.Path(path_type=Path))
@click.option("--target", required=True, metavar="URL", help="Where to fire; there is no default.")
@click.option("--speed", type=Positive(), default=1, show_default=True, help="2 = twice as fast.")
@click.option("--copies", type=Positive(), default=1, show_default=True, help="3 = every session three times, shifted.")
@click.option(
    "--spread", type=Duration(), default="10s", show_default=True, help="Copies are shifted by up to this much."
)
@click.option(
    "--max-rate",
    type=Rate(),
    default="5000/s",
    show_default=True,
    help="Hard cap; what exceeds it is shed and counted.",
)
@click.option(
    "--max-open",
    metavar="N",
    type=click.IntRange(1),
    default=2000,
    show_default=True,
    help="Hard cap on shots without an answer.",
)
@click.option(
    "--workers", metavar="N", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes."
)
@click.option(
    "--timeout", type=Duration(), default="10s", show_default=True, help="Give up on an answer after this time."
)
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
    max_rate: float,
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
    admitted = targets.admit(target)
    if not (disposable_target or skip_unsafe):
        refuse_unsafe(survey, recording)
    if accounts is not None:
        seeded.load(accounts)  # for its errors
    ring, made = keyring.load_or_make(resolved.settings.keys_path)
    run_id = ids.ulid(time.time_ns())
    settings = ReplaySettings(
        recording=recording,
        target=target,
        runs=resolved.settings.runs_path,
        run_id=run_id,
        key_id=ring.marker.id,
        key_hex=ring.marker.key,
        speed=speed,
        copies=copies / survey.scale,  # 1x is production's rate, of which the recording may hold a share
        spread_ns=config.duration_ns(spread),
        workers=workers,
        max_rate=max_rate,
        max_open=max_open,
        timeout_ns=_above_0("--timeout", timeout),
        accounts=accounts,
        allow_unsafe=disposable_target,
        skip_unsafe=skip_unsafe,
    )
    terminate_as_interrupt()
    story = Story(sys.stderr)
    if made:
        story.line(f"livefire: made a key file, {resolved.settings.keys_path}: services that keep stress apart need it")
    for line in survey.doubts:
        story.line(f"livefire: {line}")
    fired = survey.exchanges - (survey.unsafe_count if skip_unsafe else 0)
    if survey.lap_ns and fired:
        recorded = fired / (survey.lap_ns / 1e9)
        told = arithmetic(scale=survey.scale, speed=speed, load=copies, recorded_rate=recorded)
        story.line(f"run {run_id}: {told.line()} to http://{admitted.end} (1/scale x speed x copies)")
    with Supervisor() as supervisor:
        stop = _stop_asked(settings.runs / run_id, run_id)
        summary = app.run(settings, supervisor.spawn, lambda now: story.progress(progress_line(now)), stop)
    story.done()
    if summary.reason == "done" and (asked := stop()):  # the workers hear it, too, and may be the first
        summary.reason = asked
    if as_json:
        click.echo(msgspec.json.encode(summary).decode())
    else:
        _print(summary)
    code, why = judged(summary, admitted.end)
    if why:
        click.echo(f"livefire: {why}", err=True)
    raise click.exceptions.Exit(code)


def judged(summary: Summary, target: str) -> tuple[int, str]:
    """The exit code, and in one line why it is not 0."""
    if summary.reason == "interrupted":
        return errors.INTERRUPTED, "stopped"
    if summary.reason != "done":
        return errors.INCONCLUSIVE, summary.reason
    if not summary.balanced:
        return errors.INCONCLUSIVE, "the account does not balance"
    if summary.unknown:
        shots = counted(summary.unknown, "shot")
        return errors.INCONCLUSIVE, f"a worker died: what became of {shots} is unknown"
    if not summary.answered:
        causes = ", ".join(f"{n:,} {name}" for name, n in sorted(summary.failures.items()))
        return errors.INCONCLUSIVE, f"nothing was answered at {target} ({causes or 'nothing was fired'})"
    return errors.OK, ""


def progress_line(beats: dict[str, Beat]) -> str:
    """What the workers say, added up."""
    now = beats.values()
    sent, answered, waiting = (sum(getattr(beat, name) for beat in now) for name in ("sent", "answered", "open_shots"))
    late_ms = max((beat.lag_ns for beat in now), default=0) / 1e6
    return f"{sent:,} sent, {answered:,} answered, {waiting:,} open, latest left {late_ms:.1f} ms late"


def _stop_asked(folder: Path, run_id: str) -> Callable[[], str | None]:
    """Hears `livefire stop`; the run's folder is there by the time it is asked first."""
    hears: list[StopAsked] = []

    def asked() -> str | None:
        if not hears:
            hears.append(StopAsked(FileBus(folder), run_id))
        return hears[0]() or None

    return asked


def _above_0(option: str, duration: str) -> int:
    ns = config.duration_ns(duration)
    if not ns:
        raise errors.UserError(f"{option} {duration}: it must be above 0")
    return ns


def _print(summary: Summary) -> None:
    click.echo(f"run {summary.run_id}: {summary.reason}, {summary.duration_s:,.1f} s")
    heads = ("planned", "sent", "answered", "failed", "shed", "unknown")
    click.echo(table(heads, [[getattr(summary, name) for name in heads]], left=0))
    for failure, count in sorted(summary.failures.items()):
        click.echo(f"  {count:,} {TOLD[Failure(failure)]}")
    if summary.differing:
        click.echo(f"  {summary.differing:,} answers unlike the recorded ones (livefire outcomes)")
    if summary.answered:
        rows = [
            ("latency (from due)", *summary.latency_ms.values()),
            ("service (from send)", *summary.service_ms.values()),
            ("send error", *summary.send_error_ms.values()),
        ]
        click.echo()
        click.echo(table(("ms", *(name.replace("p999", "p99.9") for name in summary.latency_ms)), rows))
        click.echo()
    balanced = "balanced" if summary.balanced else "NOT BALANCED"
    click.echo(f"account {balanced}; {summary.cpu_s:.2f} s of processor time, of all processes")
