"""`livefire import`: captures into a recording."""

from __future__ import annotations

from pathlib import Path

import click

from capture.app import import_files
from capture.settings import CaptureSettings
from livefire.commands.masking import masker_for, masking_options
from livefire.commands.show import show_account
from livefire.errors import UserError
from livefire.recording import masked_line
from livefire.settings import Resolved
from livefire.story import Story


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--to", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The recording to write.")
@masking_options
@click.option("--json", "as_json", is_flag=True, help="The account as one object.")
@click.pass_obj
def command(
    resolved: Resolved, files: tuple[str, ...], to: Path, unmasked: bool, mask: Path | None, as_json: bool
) -> None:
    """Make a recording of captures: pcap or pcapng, also gzipped; - reads one from stdin.

    \b
    livefire import monday.pcap --to monday.lf
    ssh host tcpdump -U -w - port 8080 | livefire import - --to monday.lf
    """
    sources: list[Path | str] = ["-" if name == "-" else Path(name) for name in files]
    for source in sources:
        if isinstance(source, Path) and not source.exists():
            raise UserError(f"{source}: no such file")
    masker, key = masker_for(resolved, unmasked, mask)
    story = Story(click.get_text_stream("stderr"))
    written = 0

    def progress(packets: int, exchanges: int) -> None:
        nonlocal written
        written = exchanges
        story.progress(f"{packets:,} packets, {exchanges:,} exchanges")

    account = import_files(
        sources, to, CaptureSettings(), masker, key, say=lambda line: story.line(f"livefire: {line}"), progress=progress
    )
    balanced = "balanced" if account.balanced else "NOT BALANCED"
    packets = account.ledger("packets").seen
    story.line(f"{to}: {written:,} exchanges of {packets:,} packets; account {balanced}")
    if masked := masked_line(account):
        story.line(masked)
    if packets and not written:
        story.line("no HTTP was in it: is it plain HTTP/1.1, and captured in full (tcpdump -s 0)?")
    if as_json:
        show_account(account, as_json=True)
