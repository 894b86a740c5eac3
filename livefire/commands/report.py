"""`livefire report`: the report page of a run."""

from __future__ import annotations

from pathlib import Path

import click

from analytics.app import aggregate
from drill.report import refuse_to_overwrite, write_report
from livefire import runs
from livefire.settings import Resolved
from livefire.tables import size


@click.command("report")
@click.argument("run", required=False)
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), help="Where to write it.")
@click.pass_obj
def command(resolved: Resolved, run: str | None, to: Path | None) -> None:
    """Write the report page of the latest run, or the one named: one HTML file that needs nothing else.

    \b
    livefire report --to report.html
    """
    if to is not None:
        refuse_to_overwrite(to)
    folder = runs.find(resolved.settings.runs_path, run)
    if problem := runs.settle(folder, resolved.settings):
        click.echo(f"livefire: {problem}", err=True)
    aggregate(folder)
    path = to or folder / "report.html"
    click.echo(f"{path}: {size(write_report(folder, path))}")
