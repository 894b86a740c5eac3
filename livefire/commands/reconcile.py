"""`livefire reconcile`: a recording beside a server's access log."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from bus.parts import parts_of
from capture.entry import Entry
from capture.importing import Choice, detect, entries_of
from capture.lines import Input
from livefire import keyring, reconcile
from livefire.commands.masking import masker_for
from livefire.errors import INCONCLUSIVE, THRESHOLD, Exit, UserError
from livefire.losses import losses
from livefire.matching import Served
from livefire.options import Duration
from livefire.recording import Recording
from livefire.settings import Resolved
from livefire.tables import counted
from mask.masker import Masker
from wire.config import duration_ns
from wire.records import Exchange

_SHOWN = 20
_NEVER_RECORDED = ("blank", "bad_version")
_WHY = {
    "before_recording": "before the recording",
    "after_recording": "after the recording's end",
    "between_recordings": "between the recordings",
    "edge": "outside of the recording, or at its edge: under way as it began or ended, or in the same second",
    "filtered": "not recorded as asked: port or host",
    "not_sampled": "of a session outside of the sample",
    "other_host": "no reason is known; not all of production passed the recorders (--scale)",
    "unpaired_response": "recorded as an answer alone: its request was not seen",
    "blind": "nobody was recording then",
    "kernel": "the kernel had no room for packets then",
    "shed": "shed then: the recorder was at its bounds",
    "max_cpu": "shed then, to keep to --max-cpu",
    "max_memory": "shed then, to keep to --max-memory",
    "max_rate": "shed then, to keep to --max-rate",
    "not_method": "left out as asked: its method",
    "not_path": "left out as asked: its path",
    "not_header": "left out as asked: its header",
    "not_cookie": "left out as asked: its cookie",
    "no_room": "the disk or bus was behind then",
    "gap": "bytes were missing then",
    "bad_head": "a head that could not be read, or was too long, passed then",
    "cut": "packets were cut then (snaplen)",
    "ring": "packets were lost in the ring then",
    "fragment": "fragments of packets were not put together then",
    "crash": "the recorder was killed then",
    "unanswered": "recorded without an answer",
    "other_status": "recorded with another status",
    "masked": "recorded with values masked by another key",
    "before_log": "before the log",
    "after_log": "after the log's end: logged later, or in its next file",
    "other_server": "of another server: one that only one of both knows",
    "stress": "stress traffic, left out as asked",
    "not_http1": "logged as HTTP/2 or HTTP/3, which is recorded only where something made HTTP/1 of it",
    "unknown": "no reason is known",
}


@click.command("reconcile")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option(
    "--access-log",
    "logs",
    multiple=True,
    required=True,
    metavar="FILE",
    help="The server's log; repeatable.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["auto", "nginx", "apache", "alb"]),
    default="auto",
    help="What the log holds (default: by its content).",
)
@click.option("--log-format", metavar="TEXT", help="The log_format of nginx (or LogFormat of Apache) that it is in.")
@click.option("--tolerance", type=Duration(), default="2s", help="How far times may be apart (default 2s).")
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="IP:PORT",
    help="Only exchanges with this server; repeatable.",
)
@click.option("--mask", type=click.Path(path_type=Path, dir_okay=False), help="The mask.yaml of the recording.")
@click.option("--json", "as_json", is_flag=True, help="Counts, and every difference, as one object.")
@click.pass_obj
def command(
    resolved: Resolved,
    files: tuple[Path, ...],
    logs: tuple[str, ...],
    form: str,
    log_format: str | None,
    tolerance: str,
    servers: tuple[str, ...],
    mask: Path | None,
    as_json: bool,
) -> None:
    """Which requests the server served that a raw recording lacks, and the other way round, with likely reasons.

    Ends with 0 when all that both could see match, with 99 when not, with 96 when there is nothing to compare.

    \b
    livefire reconcile monday.lf --access-log /var/log/nginx/access.log
    """
    recordings = [_opened(file) for file in files]
    if len({recording.manifest.masked for recording in recordings}) > 1:
        raise UserError(f"{files[0]} and others: some are masked and some are not: compare them one by one")
    masker = _masker(resolved, recordings[0], mask)
    recorded: list[Served] = []
    tunnels: Counter[str] = Counter()
    spans = []
    lost = []
    for recording in recordings:
        of_it = [
            served
            for exchange in recording.exchanges()
            if _of(exchange, servers) and (served := reconcile.of_exchange(exchange)) is not None
        ]
        spans.append(_span(recording, of_it))
        lost += losses(parts_of(recording.path))
        compared = [served for served in of_it if not reconcile.is_tunnel(served)]
        tunnels["recorded"] += len(of_it) - len(compared)
        recorded += compared
    logged: list[Served] = []
    rejects: Counter[str] = Counter()
    for name in logs:
        _read(name, form, log_format or "", masker, logged, rejects)
    tunnels["logged"] += rejects.pop("connect", 0)
    result = reconcile.reconcile(logged, recorded, spans, lost, duration_ns(tolerance))
    if as_json:
        click.echo(json.dumps(_object(result, rejects, tunnels)))
    else:
        _told(result, rejects, tunnels)
    if result.matched * 2 < min(len(logged), len(recorded)):
        _tell_zone(reconcile.clock_apart_ns(logged, recorded, duration_ns(tolerance)))
    if not logged or not recorded:
        click.echo(f"nothing to compare: no requests in the {'log' if not logged else 'recording'}", err=True)
        raise Exit(INCONCLUSIVE)
    if not result.matched and not result.differences:
        click.echo("nothing to compare: there is no time that both saw", err=True)
        raise Exit(INCONCLUSIVE)
    if result.differences:
        raise Exit(THRESHOLD)


def _opened(file: Path) -> Recording:
    if str(file) == "-":
        raise UserError("a recording to compare is a file or a folder, not stdin")
    recording = Recording(file)
    if recording.manifest.topic != "raw":
        raise UserError(f"{file}: is no raw recording: a log is compared with what was recorded")
    for warning in recording.warnings:
        click.echo(f"livefire: {warning}", err=True)
    return recording


def _span(recording: Recording, recorded: list[Served]) -> reconcile.Span:
    in_full = recording.end is not None and recording.end.reason == "done"
    in_full = in_full and not recording.account.notes.get("disk_limit_reached")
    return reconcile.span_of(
        recording.manifest, recorded, in_full=in_full, began_ns=recording.began_ns, stopped_ns=recording.stopped_ns
    )


def _tell_zone(apart_ns: int) -> None:
    """That a log's times have another zone than they say, or none."""
    if apart_ns:
        hours, minutes = divmod(abs(apart_ns) // 60_000_000_000, 60)
        where = "ahead of" if apart_ns > 0 else "behind"
        click.echo(
            f"livefire: the log's clock is {hours}:{minutes:02} h {where} the recording's, and else they match: are "
            "its times of another time zone, without saying so? ($time_iso8601 and $msec tell it)",
            err=True,
        )


def _masker(resolved: Resolved, recording: Recording, mask: Path | None) -> Masker | None:
    """What masks the log's targets as the recording's were."""
    if not recording.manifest.masked:
        return None
    keyring.load(resolved.settings.keys_path)  # not made here: another key would match nothing
    return masker_for(resolved, False, mask)[0]


def _of(exchange: Exchange, servers: tuple[str, ...]) -> bool:
    return not servers or any(
        exchange.server.endswith(server) if server.startswith(":") else exchange.server == server for server in servers
    )


def _read(
    name: str, form: str, log_format: str, masker: Masker | None, logged: list[Served], rejects: Counter[str]
) -> None:
    chosen = "nginx" if log_format else detect(name) if form == "auto" else form
    if chosen not in ("nginx", "apache", "alb"):
        raise UserError(f"{name}: is no access log: it is {chosen}")
    file = Input(name)
    try:
        for found in entries_of(file, Choice(chosen, log_format)):
            if isinstance(found, Entry):
                place = f"{Path(file.name).name}:{found.place}"
                logged.append(reconcile.of_entry(found, _masked(found, masker), place))
            else:
                rejects[found.reason] += 1
    finally:
        file.close()
        for line in file.said:
            click.echo(f"livefire: {line}", err=True)


def _masked(entry: Entry, masker: Masker | None) -> bytes:
    head = entry.request.head
    if masker is None:
        return head
    whole = Exchange(b"", b"", b"", entry.client, entry.server, entry.request, None, 0, 0, 0, 0)
    return masker.exchange(whole).request.head


def _object(result: reconcile.Result, rejects: Counter[str], tunnels: Counter[str]) -> dict[str, Any]:
    return {
        "logged": result.logged,
        "recorded": result.recorded,
        "matched": result.matched,
        "differences": len(result.differences),
        "tunnels": {side: tunnels[side] for side in ("logged", "recorded")},
        "unreadable_lines": dict(rejects),
        "missing": [_one(found) for found in result.found if found.side == "log"],
        "unlogged": [_one(found) for found in result.found if found.side == "recording"],
    }


def _one(found: reconcile.Found) -> dict[str, Any]:
    method, target, status = found.served.key
    return {
        "method": method.decode("latin-1"),
        "target": target.decode("utf-8", "replace"),
        "status": status if status > 0 else None,
        "time_ns": found.served.first_ns,
        "where": found.served.name,
        "peer": found.served.peer,
        "reason": found.reason,
        "difference": found.reason not in reconcile.SCOPE,
    }


def _told(result: reconcile.Result, rejects: Counter[str], tunnels: Counter[str]) -> None:
    log, rec = counted(result.logged, "request"), counted(result.recorded, "request")
    click.echo(f"{log} in the log, {rec} in the recording; {result.matched:,} match")
    if result.requests_only:
        click.echo(
            f"  {counted(result.requests_only, 'request')} alone (a mirror has no answers): compared without status"
        )
    if tunnels.total():
        click.echo(
            f"  tunnels (CONNECT) are not compared: {tunnels['logged']:,} logged, {tunnels['recorded']:,} recorded"
        )
    for side, what in (("log", "served and not recorded so"), ("recording", "recorded and not in the log")):
        reasons = Counter(found.reason for found in result.found if found.side == side)
        for reason, count in reasons.most_common():
            scope = "" if reason not in reconcile.SCOPE else " (no difference)"
            click.echo(f"  {what}: {count:,}: {_WHY.get(reason, reason)}{scope}")
    for found in result.differences[:_SHOWN]:
        method, target, status = found.served.key
        at = datetime.fromtimestamp(found.served.first_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")
        text = f"{method.decode('latin-1')} {_shown(target[:100])} {status if status > 0 else '-'}"
        click.echo(f"{found.side}: {at} {text} ({found.served.name}): {found.reason}")
    if (more := len(result.differences) - _SHOWN) > 0:
        click.echo(f"... and {more:,} more; all of them: --json")
    if unread := sum(count for reason, count in rejects.items() if reason not in _NEVER_RECORDED):
        click.echo(f"{counted(unread, 'line')} of the log could not be read, and may be any of these", err=True)


def _shown(target: bytes) -> str:
    """What a client sent does not speak to the terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in target.decode("utf-8", "replace"))
