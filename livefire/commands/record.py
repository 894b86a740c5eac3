"""`livefire record`: live traffic into a file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal, cast

import click

from capture.app import record
from capture.record import Progress
from capture.settings import RecordSettings
from livefire.commands.masking import masker_for, masking_options
from livefire.commands.show import show_account
from livefire.errors import UserError
from livefire.options import Duration
from livefire.recording import masked_line
from livefire.settings import Resolved
from livefire.story import Story
from livefire.supervisor import StopFlag
from livefire.tables import size
from wire import config


@click.command("record")
@click.option("--to", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The recording to write.")
@click.option("--interface", "-i", multiple=True, metavar="NAME", help="Where to listen; repeatable (default: all).")
@click.option(
    "--port", multiple=True, metavar="PORT", type=click.IntRange(1, 65535), help="The server's port; repeatable."
)
@click.option("--host", multiple=True, metavar="ADDRESS", help="Only traffic from or to it; repeatable.")
@click.option("--not-host", multiple=True, metavar="ADDRESS", help="Leave this address out; repeatable.")
@click.option("--proxy", multiple=True, metavar="LISTEN=UPSTREAM", help="A recording proxy; repeatable.")
@click.option("--engine", type=click.Choice(["auto", "ring", "proxy"]), help="Default: the proxies named, else auto.")
@click.option("--for", "for_", type=Duration(), help="Stop after this time (default: until Ctrl-C).")
@click.option("--keep-stress", is_flag=True, help="Record marked stress traffic, too.")
@click.option("--stdin-guard", is_flag=True, help="Stop when stdin closes: for a supervisor.")
@masking_options
@click.option("--json", "as_json", is_flag=True, help="The account as one object when it ends.")
@click.pass_obj
def command(
    resolved: Resolved,
    to: Path,
    interface: tuple[str, ...],
    port: tuple[int, ...],
    host: tuple[str, ...],
    not_host: tuple[str, ...],
    proxy: tuple[str, ...],
    engine: str | None,
    for_: str | None,
    keep_stress: bool,
    stdin_guard: bool,
    unmasked: bool,
    mask: Path | None,
    as_json: bool,
) -> None:
    """Record live HTTP traffic: from the packet ring where this process may open one, else through a proxy.

    \b
    livefire record --interface eth0 --port 8080 --for 10m --to monday.lf
    livefire record --proxy 0.0.0.0:8080=127.0.0.1:8081 --to monday.lf
    """
    pairs = []
    for text in proxy:
        listen, equals, upstream = text.partition("=")
        if not equals:
            raise UserError(f"--proxy {text!r}: write it as LISTEN=UPSTREAM, as in 0.0.0.0:8080=127.0.0.1:8081")
        pairs.append((listen, upstream))
    source = cast(Literal["given", "auto", "ring", "proxy"], engine or "given")
    settings = RecordSettings(
        to=str(to),
        interfaces=interface,
        ports=port,
        hosts=host,
        not_hosts=not_host,
        proxies=tuple(pairs),
        for_ns=config.duration_ns(for_) if for_ else 0,
        source=source,
        keep_stress=keep_stress,
    )
    masker, key = masker_for(resolved, unmasked, mask)
    stop = StopFlag().install()
    if stdin_guard:
        stop.with_stdin()
    story = Story(click.get_text_stream("stderr"))
    latest: Progress | None = None

    def progress(now: Progress) -> None:
        nonlocal latest
        if latest is None:
            until = f"for {for_}" if for_ else "until Ctrl-C"
            story.line(f"{now.why}; {now.source}; {until}")
        latest = now
        lost = f", {now.lost_packets:,} packets lost" if now.lost_packets else ""
        shed = f", {now.shed:,} shed" if now.shed else ""
        story.progress(
            f"{now.elapsed_ns / 1e9:.0f} s, {now.exchanges:,} exchanges, {now.exchanges_per_s:,.0f}/s, "
            f"{now.connections:,} connections, {size(now.file_bytes)}{lost}{shed}"
        )

    began = time.monotonic()
    account = record(settings, masker, key, stop, progress)
    exchanges = latest.exchanges if latest is not None else 0
    balanced = "balanced" if account.balanced else "NOT BALANCED"
    story.line(f"{to}: {exchanges:,} exchanges in {time.monotonic() - began:,.1f} s; account {balanced}")
    if masked := masked_line(account):
        story.line(masked)
    if not exchanges:
        story.line("no HTTP was seen: is this the interface, and the port, of plain HTTP? (livefire doctor)")
    if as_json:
        show_account(account, as_json=True)
