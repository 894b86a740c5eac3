"""`livefire import`: captures and other tools' files into a recording."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bus.address import is_kafka
from capture.app import import_files, import_goreplay, import_tool
from capture.heap import collect_seldom
from capture.importing import FORMATS, Choice, detect
from capture.settings import CaptureSettings
from livefire.commands.masking import masker_for, masking_options
from livefire.commands.show import show_account
from livefire.errors import UserError
from livefire.losses import lost_line
from livefire.protocols import other_protocols
from livefire.recording import masked_line
from livefire.settings import Resolved
from livefire.story import Story
from livefire.tables import counted
from wire.account import Account

#: One and many of what is read; each line of a log is one.
_UNITS = {"capture": ("packet",), "goreplay": ("message",), "har": ("entry", "entries"), "log": ("line",)}


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--to", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The recording to write.")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="auto",
    help="What FILE holds (default: what its content says; of stdin, a capture).",
)
@click.option("--log-format", metavar="TEXT", help="The log_format of nginx (or LogFormat of Apache) that FILE is in.")
@click.option("--host-header", metavar="HOST", help="The Host of requests of which a log tells none.")
@masking_options
@click.option("--json", "as_json", is_flag=True, help="The account as one object.")
@click.pass_obj
def command(
    resolved: Resolved,
    files: tuple[str, ...],
    to: Path,
    form: str,
    log_format: str | None,
    host_header: str | None,
    unmasked: bool,
    mask: Path | None,
    as_json: bool,
) -> None:
    """Make a recording of captures: pcap or pcapng, also gzipped; - reads one from stdin.

    Or of what other tools wrote: GoReplay's .gor files, HAR files, access logs of nginx, Apache and AWS load balancers.
    Logs carry no bodies: a request that may have had one says so, and is not fired.

    With --format goreplay, also of what GoReplay has written to a topic of Kafka: kafka://host:port/topic.

    \b
    livefire import monday.pcap --to monday.lf
    ssh host tcpdump -U -w - port 8080 | livefire import - --to monday.lf
    livefire import requests_0.gor requests_1.gor --to monday.lf
    livefire import access.log --log-format '$remote_addr [$time_local] "$request" $status' --to monday.lf
    livefire import kafka://k1:9092/goreplay --format goreplay --to monday.lf
    """
    if any(is_kafka(name) for name in files):
        return _of_kafka(resolved, files, to, form, unmasked, mask, as_json)
    sources: list[Path | str] = ["-" if name == "-" else Path(name) for name in files]
    _are_files(sources)
    choice = Choice(_format(sources, form, log_format), log_format or "", host_header or "")
    if log_format is not None and choice.format not in ("nginx", "apache"):
        raise UserError(f"--log-format is for logs of lines, and this is read as {choice.format}")
    if host_header is not None and choice.format in ("capture", "goreplay", "har"):
        raise UserError(f"--host-header is for logs: a {choice.format} file has the Host of each request")
    masker, key = masker_for(resolved, unmasked, mask)
    story = Story(sys.stderr)
    written, unit = 0, choice.format if choice.format in _UNITS else "log"

    def progress(read: int, exchanges: int) -> None:
        nonlocal written
        written = exchanges
        story.progress(f"{counted(read, *_UNITS[unit])}, {counted(exchanges, 'exchange')}")

    def say(line: str) -> None:
        story.line(f"livefire: {line}")

    if choice.format == "capture":
        collect_seldom()
        account = import_files(sources, to, CaptureSettings(), masker, key, say=say, progress=progress)
        _told(story, to, account, written, account.ledger("packets").seen, unit)
        packets = account.ledger("packets")
        if unread := packets.drops.get("link_type", 0):
            story.line(
                f"{counted(unread, 'packet')} of a kind of link that is not read; tcpdump -i any writes one that is"
            )
        if packets.seen > unread and not written:
            story.line("no HTTP was in it: is it plain HTTP/1.1, and captured in full (tcpdump -s 0)?")
            for line in other_protocols(account):
                story.line(f"  there was {line}")
    else:
        account = import_tool(sources, to, choice, CaptureSettings(), masker, key, say=say, progress=progress)
        ledger = account.ledger("goreplay" if choice.format == "goreplay" else "entries")
        _told(story, to, account, written, ledger.seen, unit)
        _left_out(story, account)
    if as_json:
        show_account(account, as_json=True)


def _are_files(sources: list[Path | str]) -> None:
    """Raises UserError for pipes and devices: each input is read more than once, but for stdin."""
    for source in sources:
        if isinstance(source, Path) and source.exists() and not source.is_file() and not source.is_dir():
            raise UserError(
                f"{source}: is a pipe or a device; a capture is read from stdin: livefire import - < {source}"
            )


def _format(sources: list[Path | str], form: str, log_format: str | None) -> str:
    """The format of all files; raises UserError where they differ."""
    for source in sources:
        if isinstance(source, Path) and not source.exists() and form == "capture":
            raise UserError(f"{source}: no such file")
    if form != "auto":
        return form
    if log_format is not None:
        return "nginx"
    found = {str(source): "capture" if source == "-" else detect(source) for source in sources}
    if len(set(found.values())) > 1:
        one, is_one = next(iter(found.items()))
        other, is_other = next((name, what) for name, what in found.items() if what != is_one)
        raise UserError(f"{one} is {is_one}, {other} is {is_other}: import files of one format at a time")
    return next(iter(found.values()))


def _told(story: Story, to: Path, account: Account, written: int, seen: int, unit: str) -> None:
    balanced = "balanced" if account.balanced else "NOT BALANCED"
    story.line(f"{to}: {counted(written, 'exchange')} of {counted(seen, *_UNITS[unit])}; account {balanced}")
    if lost := lost_line(account):
        story.line(lost)
    if masked := masked_line(account):
        story.line(masked)


def _left_out(story: Story, account: Account) -> None:
    """What gave no exchange, and what the file does not have of those that are there."""
    for name in ("entries", "goreplay"):
        ledger = account.ledgers.get(name)
        if ledger is not None and ledger.dropped:
            both = [*ledger.drops.items(), *ledger.intentional.items()]
            story.line("left out: " + ", ".join(f"{count:,} {reason}" for reason, count in sorted(both)))
    notes = account.notes
    if count := notes.get("request_bodies_not_in_file", 0):
        story.line(f"{counted(count, 'request')} kept, and not fired: the body is not in the file, or may be missing")
    if count := notes.get("response_bodies_not_in_file", 0):
        story.line(f"{counted(count, 'answer')} without a body")
    if count := notes.get("no_host", 0):
        story.line(f"{counted(count, 'request')} without a Host (--host-header gives one)")
    if count := notes.get("times_of_seconds", 0):
        story.line(f"{counted(count, 'time')} in seconds only: requests of one second begin together")
    if count := notes.get("times_without_zone", 0):
        story.line(f"{counted(count, 'time')} without a zone: taken as UTC (%z in the LogFormat tells it)")


def _of_kafka(
    resolved: Resolved, files: tuple[str, ...], to: Path, form: str, unmasked: bool, mask: Path | None, as_json: bool
) -> None:
    if form != "goreplay":
        raise UserError("a topic of Kafka is imported with --format goreplay")
    if len(files) != 1 or not is_kafka(files[0]) or "/" not in files[0].removeprefix("kafka://").rstrip("/"):
        raise UserError("--format goreplay reads one topic: kafka://host:port/topic")
    masker, key = masker_for(resolved, unmasked, mask)
    story = Story(sys.stderr)
    written = 0

    def progress(messages: int, exchanges: int) -> None:
        nonlocal written
        written = exchanges
        story.progress(f"{messages:,} messages, {exchanges:,} exchanges")

    security = resolved.settings.kafka_security
    account = import_goreplay(files[0], to, CaptureSettings(), masker, key, security=security, progress=progress)
    _told(story, to, account, written, account.ledger("goreplay").seen, "goreplay")
    _left_out(story, account)
    if as_json:
        show_account(account, as_json=True)
