"""The options of `livefire record` that say what a recording may take on the disk, and when it is full."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from capture.progress import Progress
from capture.settings import RecordSettings
from livefire.errors import UserError
from livefire.options import Duration
from livefire.tables import size
from wire import config
from wire.account import Account

_OPTIONS = (
    click.option("--rotate", multiple=True, metavar="SIZE|DURATION", help="Write a folder: a file each 1GB, or 1h."),
    click.option("--keep-last", type=Duration(), help="Write a folder, a ring of time: what is older is removed."),
    click.option("--max-disk", metavar="SIZE", help="Stop when so much is written; with --keep-last the oldest go."),
)
#: Below it files are so small that they are headers for the most part.
_LEAST = (
    ("rotate_ns", 1_000_000_000, "--rotate 1s"),
    ("keep_last_ns", 1_000_000_000, "--keep-last 1s"),
    ("rotate_bytes", 100_000, "--rotate 100kB"),
    ("max_disk_bytes", 1_000_000, "--max-disk 1MB"),
)


def disk_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command gets them by name, and hands them to `disk_of`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def disk_of(options: dict[str, Any], to: Path | None) -> dict[str, Any]:
    """As fields of `RecordSettings`. Raises UserError."""
    if to is None and options["processes"] > 1:
        raise UserError(
            "--processes writes a folder on this disk (--to); over a bus a recorder is one process: leave it out, or "
            "divide --port or --interface among several, each with its own --agent"
        )
    found = {"rotate_bytes": 0, "rotate_ns": 0}
    given = set()
    for text in options["rotate"]:
        is_size = text.strip()[-1:] in "bB"
        name = "rotate_bytes" if is_size else "rotate_ns"
        given.add(name)
        found[name] = _read(config.size_bytes if is_size else config.duration_ns, "--rotate", text)
    found["keep_last_ns"] = config.duration_ns(options["keep_last"]) if options["keep_last"] else 0
    found["max_disk_bytes"] = _read(config.size_bytes, "--max-disk", options["max_disk"]) if options["max_disk"] else 0
    given |= {f"{name}_{unit}" for name, unit in (("keep_last", "ns"), ("max_disk", "bytes")) if options[name]}
    asked = [name for name in ("rotate", "keep_last", "max_disk") if options[name]]
    if to is None and asked:
        option = f"--{asked[0].replace('_', '-')}"
        raise UserError(f"{option} is of a recording on this disk (--to); over a bus: --spool-max, and its retention")
    for name, least, text in _LEAST:
        if name in given and found[name] < least:
            option = text.partition(" ")[0]
            given_text = options[option[2:].replace("-", "_")]
            shown = given_text if isinstance(given_text, str) else " ".join(given_text)
            raise UserError(f"{option} {shown}: at least {text.removeprefix(option).strip()}")
    return found


def _read(reader: Callable[[str], int], option: str, text: str) -> int:
    try:
        return reader(text)
    except config.ConfigError as error:
        raise UserError(f"{option}: {error}") from None


def check_to(settings: RecordSettings) -> None:
    """Raises UserError where a file is to be written and a folder is there, or the other way round."""
    to = Path(settings.to)
    if settings.to == "-":
        raise UserError("--to -: a recording is a file that can be gone on with, and no stream: name one")
    if settings.segmented and to.exists() and not to.is_dir():
        raise UserError(f"{to}: is a file; --rotate, --keep-last and --processes write a folder of files")
    if settings.to and not settings.segmented and to.is_dir():
        raise UserError(f"{to}: is a folder; a file is written (or, with --rotate or --keep-last, a folder of files)")


def forecast(settings: RecordSettings, first: Progress, now: Progress) -> str:
    """The rate since `first`, and when the room for the recording is used up."""
    seconds = (now.elapsed_ns - first.elapsed_ns) / 1e9
    rate = (now.written_bytes - first.written_bytes) / seconds if seconds > 0 else 0.0
    said = f"{now.exchanges / seconds if seconds else 0:,.0f} exchanges/s, {size(rate)}/s written"
    if settings.bus:
        return said
    to = Path(settings.to)
    free = shutil.disk_usage(to if to.is_dir() else to.absolute().parent).free
    budget, named = settings.max_disk_bytes, f"--max-disk {size(settings.max_disk_bytes)}"
    if not budget or budget > free + now.file_bytes:
        budget, named = free + now.file_bytes, f"the disk ({size(free)} free)"
    if not rate:
        return f"{said}: nothing to tell yet of when {named} is full"
    kept = settings.keep_last_ns / 1e9
    if kept and rate * kept <= budget:
        return f"{said}: what is kept takes about {size(rate * kept)}"
    lasts = (budget - now.file_bytes) / rate
    if kept:
        return f"{said}: {named} holds about {_span(budget / rate)} of the {_span(kept)} to keep: the oldest go first"
    return f"{said}: {named} is full in {_span(max(0.0, lasts))}"


def used_up(settings: RecordSettings, account: Account) -> str:
    """Why it ended, where that was the budget; "" otherwise."""
    if not account.notes.get("disk_limit_reached"):
        return ""
    return f"stopped: --max-disk {size(settings.max_disk_bytes)} is used up; what was recorded till then is whole"


def _span(seconds: float) -> str:
    """'4 min', '3.5 h', '12 days'."""
    if seconds >= 3 * 365 * 86_400.0:
        return "years"
    for unit, length in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f}".removesuffix(".0") + f" {unit}"
    return f"{seconds:,.0f} s"
