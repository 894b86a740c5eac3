"""`livefire import`: captures into a recording."""

from __future__ import annotations

from pathlib import Path

import click

from bus.address import is_kafka
from capture.app import import_files, import_goreplay
from capture.settings import CaptureSettings
from livefire.commands.masking import masker_for, masking_options
from livefire.commands.show import show_account
from livefire.errors import UserError
from livefire.protocols import other_protocols
from livefire.recording import masked_line
from livefire.settings import Resolved
from livefire.story import Story


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--to", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The recording to write.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["capture", "goreplay"]),
    default="capture",
    help="What FILE holds (default: capture).",
)
@masking_options
@click.option("--json", "as_json", is_flag=True, help="The account as one object.")
@click.pass_obj
def command(
    resolved: Resolved, files: tuple[str, ...], to: Path, form: str, unmasked: bool, mask: Path | None, as_json: bool
) -> None:
    """Make a recording of captures: pcap or pcapng, also gzipped; - reads one from stdin.

    With --format goreplay, of what GoReplay has written to a topic of Kafka: kafka://host:port/topic.

    \b
    livefire import kafka://k1:9092/goreplay --format goreplay --to monday.lf
    livefire import monday.pcap --to monday.lf
    ssh host tcpdump -U -w - port 8080 | livefire import - --to monday.lf
    """
    if form == "goreplay" or any(is_kafka(name) for name in files):
        return _of_goreplay(resolved, files, to, form, unmasked, mask, as_json)
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
        for line in other_protocols(account):
            story.line(f"  there was {line}")
    if as_json:
        show_account(account, as_json=True)


def _of_goreplay(
    resolved: Resolved, files: tuple[str, ...], to: Path, form: str, unmasked: bool, mask: Path | None, as_json: bool
) -> None:
    if form != "goreplay":
        raise UserError("a topic of Kafka is imported with --format goreplay")
    if len(files) != 1 or not is_kafka(files[0]) or "/" not in files[0].removeprefix("kafka://").rstrip("/"):
        raise UserError("--format goreplay reads one topic: kafka://host:port/topic")
    masker, key = masker_for(resolved, unmasked, mask)
    story = Story(click.get_text_stream("stderr"))
    written = 0

    def progress(messages: int, exchanges: int) -> None:
        nonlocal written
        written = exchanges
        story.progress(f"{messages:,} messages, {exchanges:,} exchanges")

    security = resolved.settings.kafka_security
    account = import_goreplay(files[0], to, CaptureSettings(), masker, key, security=security, progress=progress)
    balanced = "balanced" if account.balanced else "NOT BALANCED"
    ledger = account.ledger("goreplay")
    story.line(f"{to}: {written:,} exchanges of {ledger.seen:,} messages; account {balanced}")
    if ledger.drops:
        story.line("left out: " + ", ".join(f"{count:,} {name}" for name, count in sorted(ledger.drops.items())))
    if masked := masked_line(account):
        story.line(masked)
    if as_json:
        show_account(account, as_json=True)
