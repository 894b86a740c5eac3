"""`livefire import`: captures into a recording."""

from __future__ import annotations

from pathlib import Path

import click

from capture.app import import_files
from capture.settings import CaptureSettings
from livefire.commands.masking import masker_for, masking_options
from livefire.settings import Resolved


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--to", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The recording to write.")
@masking_options
@click.pass_obj
def command(resolved: Resolved, files: tuple[str, ...], to: Path, unmasked: bool, mask: Path | None) -> None:
    """Make a recording of captures: pcap or pcapng, also gzipped; - reads one from stdin.

    \b
    livefire import monday.pcap --to monday.lf
    ssh host tcpdump -U -w - port 8080 | livefire import - --to monday.lf
    """
    masker, key = masker_for(resolved, unmasked, mask)
    sources: list[Path | str] = ["-" if name == "-" else Path(name) for name in files]
    account = import_files(sources, to, CaptureSettings(), masker, key)
    messages = account.ledger("messages")
    click.echo(
        f"{to}: {messages.emitted:,} exchanges; account {'balanced' if account.balanced else 'NOT BALANCED'}", err=True
    )
