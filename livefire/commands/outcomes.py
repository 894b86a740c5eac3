"""`livefire outcomes`: what became of every shot."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click

from bus.logfile import FileBus
from bus.topic import TopicReader
from livefire import runs
from livefire.damage import damage_of
from livefire.settings import Resolved
from livefire.tables import counted, table
from wire import topics
from wire.codec import RecordType
from wire.records import Failure, Outcome


@click.command("outcomes")
@click.argument("run", required=False)
@click.option("--json", "as_json", is_flag=True, help="An outcome a line.")
@click.option("--failed", is_flag=True, help="Only those without a whole answer.")
@click.pass_obj
def command(resolved: Resolved, run: str | None, as_json: bool, failed: bool) -> None:
    """What became of every shot of a run: the latest, unless another is named.

    \b
    livefire outcomes
    livefire outcomes --json --failed | head
    """
    folder = runs.find(resolved.settings.runs_path, run)
    if problem := runs.settle(folder, resolved.settings):
        click.echo(f"livefire: {problem}", err=True)
    for line in damage_of(folder):
        click.echo(f"livefire: {line}", err=True)
    found = (outcome for outcome in outcomes_of(folder) if not failed or outcome.failure is not Failure.NONE)
    if as_json:
        for outcome in found:
            sys.stdout.write(json.dumps(outcome_json(outcome)) + "\n")
        return
    counts: Counter[tuple[str, str, str]] = Counter()
    for outcome in found:
        became = outcome.failure.value or (f"{outcome.status}" if outcome.status else "none")
        counts[outcome.route, became, outcome.verdict.value] += 1
    rows = [(route, became, verdict, n) for (route, became, verdict), n in sorted(counts.items())]
    click.echo(
        f"run {folder.name}: {counted(sum(counts.values()), 'shot')}{' without a whole answer' if failed else ''}"
    )
    if not rows:
        return
    click.echo(table(("route", "became", "answer is", "count"), rows, left=3))


def outcomes_of(folder: Path) -> Iterator[Outcome]:
    """All outcomes of a run, its canaries first, worker by worker, in the order in which they were written."""
    for part in (folder / "canary", folder):
        reader = TopicReader(FileBus(part), topics.OUTCOMES)
        try:
            for _, batch in reader.batches():
                if batch.header.type is RecordType.OUTCOME:
                    yield from batch.records
        finally:
            reader.close()


def outcome_json(outcome: Outcome) -> dict[str, object]:
    """One line of `livefire outcomes --json`: ids in hex, times in ns since 1970, 0 = never."""
    return {
        "run_id": outcome.run_id,
        "exchange": outcome.exchange_id.hex(),
        "copy": outcome.copy,
        "lap": outcome.lap,
        "step": outcome.step,
        "route": outcome.route,
        "kind": outcome.kind.value,
        "due_ns": outcome.due_ns,
        "sent_ns": outcome.sent_ns,
        "first_byte_ns": outcome.first_byte_ns,
        "done_ns": outcome.done_ns,
        "pool_wait_ns": outcome.pool_wait_ns,
        "status": outcome.status or None,
        "failure": outcome.failure.value or None,
        "bytes_out": outcome.bytes_out,
        "bytes_in": outcome.bytes_in,
        "verdict": outcome.verdict.value,
        "worker": outcome.worker,
    }
