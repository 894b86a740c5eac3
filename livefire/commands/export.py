"""`livefire export`: a recording for other tools."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Final

import click

from capture import export
from livefire.errors import UserError
from livefire.recording import Recording
from wire.records import Exchange

_KINDS: Final = {".gor": "gor", ".sh": "curl", ".curl": "curl"}
_WHY: Final = {
    "opaque": "could not be read as HTTP",
    "tunnel": "tunnels and upgrades",
    "ambiguous": "ambiguous",
    "gap": "with bytes missing",
    "truncated": "cut off",
    "no_body": "whose body is not in the recording",
    "unfinished": "unfinished",
    "no_request": "answers without a request",
    "separator": "with GoReplay's separator inside",
    "field": "with a header that curl cannot send",
}


@click.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--to", required=True, type=click.Path(path_type=Path, dir_okay=False), help="x.gor, or x.sh for curl.")
@click.option(
    "--format", "form", type=click.Choice(["gor", "curl"]), help="What is written (default: by the name's ending)."
)
@click.option("--json", "as_json", is_flag=True, help="What was written and what was not, as one object.")
def command(file: Path, to: Path, form: str | None, as_json: bool) -> None:
    """Write a raw recording for other tools: GoReplay's .gor, or a shell script of curl lines.

    Masked values stay masked. The script has no target of its own: TARGET=http://staging:8080 sh monday.sh

    \b
    livefire export monday.lf --to monday.gor
    livefire export monday.lf --to monday.sh
    """
    kind = form or _KINDS.get(to.suffix.lower())
    if kind is None:
        raise UserError(f"{to}: what is it to be? Name it x.gor or x.sh, or say --format gor or --format curl")
    if to.exists() or to.is_symlink():
        raise UserError(f"{to}: is there already; write to another file, or remove it")
    recording = Recording(file)
    if recording.manifest.topic != "raw":
        raise UserError(f"{file}: is no raw recording; export the one that it was made of")
    for warning in recording.warnings:
        click.echo(f"livefire: {warning}", err=True)
    left: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    written = notes = 0
    with os.fdopen(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        if kind == "curl":
            out.write(b"#!/bin/sh\n# TARGET=http://staging:8080 sh %b\n" % os.fsencode(to.name).replace(b"\n", b" "))
        for exchange in recording.exchanges():
            data, why = export.gor(exchange) if kind == "gor" else export.curl(exchange)
            out.write(data)
            written += bool(data)
            if why:
                (answers if data else left)[why] += 1
            notes += bool(data) and kind == "gor" and _interim(exchange)
    if as_json:
        found = {
            "exchanges": recording.count,
            "written": written,
            "left_out": dict(left),
            "answers_left_out": dict(answers),
        }
        click.echo(json.dumps(found))
    click.echo(f"{to}: {written:,} of {recording.count:,} exchanges", err=True)
    if left:
        told = ", ".join(f"{count:,} {_WHY.get(why, why)}" for why, count in sorted(left.items()))
        click.echo(f"left out: {told}", err=True)
    if answers:
        click.echo(
            f"{sum(answers.values()):,} of them without their answer: it is not whole in the recording", err=True
        )
    if notes:
        click.echo(f"{notes:,} interim answers (1xx) are not in it", err=True)
    if not recording.manifest.masked:
        click.echo("NOT MASKED: it holds secrets as they were sent", err=True)


def _interim(exchange: Exchange) -> int:
    return len(exchange.response.interim) if exchange.response is not None else 0
