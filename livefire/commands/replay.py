"""`livefire replay`: fire a clean recording at a target, open loop."""

from __future__ import annotations

import json
from pathlib import Path

import click

from livefire import keyring
from livefire.settings import Resolved
from livefire.story import Story
from livefire.supervisor import Supervisor, terminate_as_interrupt
from livefire.tables import table
from replay import app
from replay.settings import ReplaySettings
from replay.summary import Summary
from wire import config


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
    ring, _ = keyring.load_or_make(resolved.settings.keys_path)
    settings = ReplaySettings(
        recording=recording,
        target=target,
        runs=resolved.settings.runs_path,
        key_id=ring.marker.id,
        key_hex=ring.marker.key,
        speed=speed,
        copies=copies,
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
    with Supervisor() as supervisor:
        summary = app.run(settings, supervisor.spawn, story.progress)
    if as_json:
        click.echo(json.dumps(summary_json(summary)))
    else:
        _print(summary)


def _rate(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdigit() else config.rate_per_s(text)


def summary_json(summary: Summary) -> dict[str, object]:
    """The contract's object."""
    return summary.as_json()


def _print(summary: Summary) -> None:
    found = summary_json(summary)
    click.echo(f"run {found['run_id']}")
    counts = ("planned", "sent", "answered", "failed", "shed", "unknown")
    click.echo(table(counts, [[found[name] for name in counts]], left=0))
    percentiles: dict[str, dict[str, float | None]] = {
        name: found[name] for name in ("latency_ms", "service_ms", "send_error_ms")  # type: ignore[misc]
    }
    heads = list(percentiles["latency_ms"])
    rows = [
        (name.removesuffix("_ms").replace("_", " ") + " ms", *values.values()) for name, values in percentiles.items()
    ]
    click.echo(table(("", *heads), rows))
