"""`livefire show`: what is in a recording."""

from __future__ import annotations

import json
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import click

from capture.show import exchange_json
from cleanse import learned as learned_file
from livefire import connections
from livefire.learned import learned
from livefire.protocols import WHERE, is_told, other_protocols
from livefire.recording import Recording, masked_line
from livefire.tables import counted, milliseconds, size, table
from wire import head, topics
from wire.account import Account, kept_and_shed, kept_share
from wire.records import Exchange, Stamped

_ROUTES = 30


@click.command("show")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--json", "as_json", is_flag=True, help="One exchange a line; with --account one object.")
@click.option("--account", is_flag=True, help="The ledgers: what was seen, and what became of it.")
def command(file: Path, as_json: bool, account: bool) -> None:
    """What is in a recording: by route, exchange by exchange, or its account. A raw or a clean file; - reads stdin.

    \b
    livefire show monday.lf
    livefire show monday.lf --json | head -3
    livefire show --account monday.lf
    """
    recording = Recording(file)
    for warning in recording.warnings:
        click.echo(f"livefire: {warning}", err=True)
    if recording.manifest.topic == learned_file.TOPIC:
        _show_learned(recording)
    elif account:
        show_account(recording.account, as_json)
    elif as_json:
        _lines(recording)
    else:
        _summary(recording)


def _show_learned(recording: Recording) -> None:
    known = learned_file.load(recording.path)
    held = f"{counted(len(known.routes.routes), 'route')} and {counted(len(known.flows.flows), 'flow')}"
    click.echo(f"{recording.path}: {held}, learned of recording {recording.manifest.owner_id}")
    click.echo()
    rows = [(route.name, route.count) for route in sorted(known.routes.routes, key=lambda route: -route.count)]
    click.echo(table(("route", "count"), rows))
    for line in learned(known.flows):
        click.echo(f"  {line}")


def _lines(recording: Recording) -> None:
    write = sys.stdout.write
    for exchange in recording.exchanges():
        write(json.dumps(exchange_json(exchange)) + "\n")
    for stamped in recording.stamped():
        write(json.dumps(stamped_json(stamped)) + "\n")


def stamped_json(record: Stamped) -> dict[str, object]:
    """One line of a clean recording."""
    parts = head.request_head(record.request.head)
    return {
        "session": record.session_id.hex(),
        "exchange": record.exchange_id.hex(),
        "route": record.route,
        "offset_ns": record.offset_ns,
        "method": parts.method.decode("latin-1"),
        "target": parts.target.decode("latin-1"),
        "request_body_bytes": len(record.request.body),
        "status": record.baseline.status or None,
        "latency_ns": record.baseline.latency_ns or None,
        "response_body_bytes": max(0, record.baseline.body_bytes),
        "unsafe": record.unsafe,
    }


def show_account(account: Account, as_json: bool) -> None:
    """The ledgers as a table or as one JSON object."""
    if as_json:
        click.echo(json.dumps(account.as_json()))
        return
    rows = []
    for name, ledger in sorted(account.ledgers.items()):
        if ledger.seen or ledger.difference:  # a proxy sees no packets
            before = max(0, -ledger.in_flight)  # a ring: what began in files that were removed
            waits = max(0, ledger.in_flight)
            rows.append((name, ledger.seen + before, ledger.emitted, ledger.dropped, waits, ledger.difference))
    click.echo(table(("ledger", "seen", "emitted", "dropped", "in flight", "difference"), rows))
    for name, ledger in sorted(account.ledgers.items()):
        for reason, count in sorted(ledger.drops.items()):
            click.echo(f"  {name} dropped: {reason} {count:,}")
        for reason, count in sorted(ledger.intentional.items()):
            click.echo(f"  {name} left out on purpose: {reason} {count:,}")
    if ended := connections.connections_line(account):
        click.echo(f"  {ended}")
    if masked := masked_line(account):
        click.echo(f"  {masked}")
    for name, count in sorted(account.notes.items()):
        if not name.startswith("masked.") and not is_told(name) and not connections.is_told(name):
            click.echo(f"  {name.replace('_', ' ')}: {count:,}")
    if others := other_protocols(account):
        click.echo(f"other protocols, not recorded; what to do for each: {WHERE}")
        for line in others:
            click.echo(f"  {line}")
    click.echo("balanced" if account.balanced else "NOT BALANCED: something that was seen is unaccounted for")


def _summary(recording: Recording) -> None:
    manifest = recording.manifest
    made = datetime.fromtimestamp(manifest.created_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    sessions: set[bytes] = set()
    routes: Counter[str] = Counter()
    statuses: Counter[tuple[str, str]] = Counter()
    body: Counter[str] = Counter()
    times: dict[str, list[int]] = {}
    servers: Counter[str] = Counter()
    unsafe = first = last = 0

    def count(name: str, session: bytes, status: int, bytes_in: int, latency_ns: int, at_ns: int) -> None:
        nonlocal first, last
        sessions.add(session)
        routes[name] += 1
        statuses[name, f"{status // 100}xx" if status else "none"] += 1
        body[name] += bytes_in
        if latency_ns > 0:
            times.setdefault(name, []).append(latency_ns)
        if at_ns:
            first, last = min(first or at_ns, at_ns), max(last, at_ns)

    for e in recording.exchanges():
        servers[e.server] += 1
        count(_plain_route(e), e.session_id, e.response.status if e.response else 0,
              e.response.body_bytes if e.response else 0,
              e.response_start_ns - e.request_start_ns if e.response_start_ns and e.request_start_ns else 0,
              e.request_start_ns)  # fmt: skip
    for s in recording.stamped():
        unsafe += s.unsafe
        count(
            s.route,
            s.session_id,
            s.baseline.status,
            max(0, s.baseline.body_bytes),
            s.baseline.latency_ns,
            s.offset_ns + 1,
        )
    seconds = (last - first) / 1e9
    rate = f", {recording.count / seconds:,.1f} a second" if seconds > 0 else ""
    masked = "masked" if manifest.masked else "NOT MASKED: it holds secrets as they were sent"
    click.echo(f"{recording.path}: {manifest.topic} recording {manifest.owner_id}, made {made}, {masked}")
    share = manifest.scale
    if manifest.topic == topics.RAW:  # of a clean one what was shed is in its scale already
        share *= kept_share(kept_and_shed(recording.account.ledgers, recording.account.notes))
    scale = "" if share == 1 else f"; {share:.1%} of production"
    held = f"{counted(recording.count, 'exchange')} in {counted(len(sessions), 'session')}"
    click.echo(f"{held} over {seconds:,.1f} s{rate}{scale}")
    if gone := recording.removed:
        click.echo(
            f"a ring of time: {gone.get('exchanges', 0):,} older exchanges had been removed when its last file began"
        )
    if servers:
        click.echo("servers: " + ", ".join(f"{server} ({n:,})" for server, n in servers.most_common(8)))
    if unsafe:
        click.echo(f"{unsafe:,} of them may change state")
    if not routes:
        return
    rows = []
    for name, total in routes.most_common(_ROUTES):
        found = sorted(times.get(name, []))
        by_class = " ".join(f"{status}:{n}" for (route, status), n in sorted(statuses.items()) if route == name)
        rows.append((name, by_class, total, size(body[name] / total),
                     milliseconds(found[len(found) // 2]) if found else "-"))  # fmt: skip
    click.echo()
    click.echo(table(("route", "answers", "count", "body", "median"), rows, left=2))
    if len(routes) > _ROUTES:
        named = "" if unsafe or not servers else "; cleansing gives them names: livefire cleanse"
        click.echo(f"... and {len(routes) - _ROUTES:,} more{named}")
    click.echo()
    click.echo(
        "account balanced" if recording.account.balanced else "ACCOUNT NOT BALANCED; see: livefire show --account"
    )


def _plain_route(exchange: Exchange) -> str:
    parts = head.request_head(exchange.request.head)
    path = head.path_of(parts.target) or parts.target
    return f"{parts.method.decode('latin-1')} {path.decode('latin-1')[:60]}"
