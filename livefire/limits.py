"""The options of `livefire record` that say which part is recorded, what that may cost, and who may end it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import click

from capture.privileges import is_root
from capture.settings import MIN_MEMORY_BYTES, SampleSettings
from livefire.errors import UserError
from livefire.options import BytesRate, Share, Size
from livefire.tables import size
from wire import config
from wire.account import Account

_BOUNDS: Final = ("max_cpu", "max_memory", "max_rate")

_OPTIONS = (
    click.option("--scale", type=Share(), default="1", help="Share of production that the recorders see: 3/10, 30%."),
    click.option("--sample", type=Share(), default="1", help="Record this share of the sessions, whole: 10%."),
    click.option("--only-method", multiple=True, metavar="METHOD", help="Record requests of this method; repeatable."),
    click.option("--only-path", multiple=True, metavar="PATTERN", help="Of this path: /orders/{id}; repeatable."),
    click.option("--only-header", multiple=True, metavar="'NAME: VALUE'", help="With this header; repeatable."),
    click.option("--only-cookie", multiple=True, metavar="NAME=VALUE", help="With this cookie; repeatable."),
    click.option("--max-cpu", type=Share(above_all=True), help="Of one core: 25%. Beyond it whole sessions are shed."),
    click.option(
        "--max-memory", type=Size(), metavar="SIZE", help="At least 128MiB. Beyond it whole sessions are shed."
    ),
    click.option("--max-rate", type=BytesRate(), help="Written in a second: 10MB/s. Beyond it sessions are shed."),
    click.option("--kill-file", type=click.Path(), help="Stop when this file is there."),
    click.option("--user", metavar="NAME", help="Go on as this user when all sockets are open (default: docs/cli.md)."),
)


def limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command gets them by name, and hands them to `limits_of`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def limits_of(options: dict[str, Any]) -> dict[str, Any]:
    """As fields of `RecordSettings`. Raises UserError."""
    return {
        "scale": options["scale"],
        "sample": SampleSettings(
            options["sample"],
            options["only_method"],
            options["only_path"],
            _pairs("--only-header", options["only_header"], ":", "X-User: 42"),
            _pairs("--only-cookie", options["only_cookie"], "=", "sid=5f2b9c"),
        ),
        "max_cpu": _cpu(options["max_cpu"]),
        "max_memory_bytes": _memory(options["max_memory"]),
        "max_rate": options["max_rate"] or 0.0,
        "kill_file": os.path.abspath(options["kill_file"]) if options["kill_file"] else "",
        "user": options["user"] or (os.environ.get("SUDO_UID", "") if is_root() else ""),
    }


def stays_root(user: str) -> str:
    """What is to be said of who records; "" when nothing is."""
    return "; as root (--user NAME changes that)" if is_root() and not user else ""


def _pairs(option: str, texts: tuple[str, ...], between: str, example: str) -> tuple[tuple[str, str], ...]:
    found = []
    for text in texts:
        name, there, value = text.partition(between)
        if not there or not name.strip():
            raise UserError(f"{option} {text!r}: write a name and its value, as in {option} '{example}'")
        found.append((name.strip(), value.strip()))
    return tuple(found)


def _cpu(share: float | None) -> float:
    cores = os.cpu_count() or 1
    if share is not None and share > cores:
        meant = f"; did you mean {share:g}%?" if 1 <= share <= 100 * cores else ""
        raise UserError(f"--max-cpu {share:.0%}: this machine has {cores} cores, of 100% each{meant}")
    return share or 0.0


def _memory(text: str | None) -> int:
    found = config.size_bytes(text) if text else 0
    if text and found < MIN_MEMORY_BYTES:
        raise UserError(f"--max-memory {text}: the program and the ring take 96 MiB of it; at least 128MiB")
    return found


def cost_line(account: Account, seconds: float) -> str:
    """What recording took, and what was given up to keep to its bounds."""
    notes = account.notes
    cpu = notes.get("cost.cpu_ns", 0) / 1e9
    share = f" ({cpu / seconds:.0%} of a core)" if seconds > 0 else ""
    told = f"cost: {cpu:,.1f} s of processor time{share}, at most {size(notes.get('cost.memory_bytes', 0))} of memory"
    drops = account.ledger("messages").drops
    shed = [f"{drops[why]:,} messages ({why})" for why in _BOUNDS if drops.get(why)]
    if packets := account.ledger("packets").drops.get("max_cpu", 0):
        shed.append(f"{packets:,} packets (max_cpu)")
    return told + (f"; shed to keep to the bounds: {', '.join(shed)}" if shed else "")
