"""Canaries: a few whole recorded sessions that write, fired before the load to prove where their writes go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from bus.logfile import FileBus, LogReader, LogWriter
from bus.topic import TopicReader
from drill.result import Canary
from wire import codec, topics
from wire.codec import RecordType
from wire.records import Failure, Manifest, Outcome, Record, Stamped

MAX_SESSIONS: Final = 8
MAX_EXCHANGES: Final = 200
GAP_NS: Final = 50_000_000  # think time is cut to this: a canary tests where writes go, not pace


class Choice(msgspec.Struct, frozen=True):
    """The sessions, whole and in order, and which unsafe routes they cover."""

    sessions: tuple[tuple[Stamped, ...], ...]
    covered: tuple[str, ...]
    left_out: tuple[str, ...]  # unsafe routes that no chosen session has

    @property
    def exchanges(self) -> int:
        return sum(len(session) for session in self.sessions)


def choose(recorded: Iterable[Stamped]) -> Choice:
    """The fewest, shortest sessions that cover every unsafe route, up to the limits. Greedy.

    Only a request that production accepted (status below 400) covers its route, and only sessions that
    were recorded from their beginning count: one that lacks its login would prove nothing.
    """
    sessions: dict[bytes, list[Stamped]] = {}
    for stamped in recorded:
        sessions.setdefault(stamped.session_id, []).append(stamped)
    wanted: set[str] = set()
    candidates: list[tuple[list[Stamped], set[str]]] = []
    for session in sessions.values():
        routes = {s.route for s in session if s.unsafe and 200 <= s.baseline.status < 400}
        wanted |= {s.route for s in session if s.unsafe}
        if routes and session[0].session_index == 0 and len(session) <= MAX_EXCHANGES:
            candidates.append((session, routes))
    chosen: list[tuple[Stamped, ...]] = []
    covered: set[str] = set()
    room = MAX_EXCHANGES
    while candidates and len(chosen) < MAX_SESSIONS:
        session, routes = max(candidates, key=lambda c: (len(c[1] - covered), -len(c[0])))
        if not routes - covered:
            break
        candidates.remove((session, routes))
        if len(session) > room:
            continue
        room -= len(session)
        covered |= routes
        chosen.append(tuple(session))
    return Choice(tuple(chosen), tuple(sorted(covered)), tuple(sorted(wanted - covered)))


def retimed(sessions: Sequence[Sequence[Stamped]]) -> list[Stamped]:
    """All sessions begin at once, with short pauses; in order of offset."""
    moved = []
    for session in sessions:
        at, before = 0, session[0].offset_ns
        for stamped in session:
            at += min(max(stamped.offset_ns - before, 0), GAP_NS)
            before = stamped.offset_ns
            moved.append(msgspec.structs.replace(stamped, offset_ns=at, session_start_ns=0))
    return sorted(moved, key=lambda s: s.offset_ns)


def write_recording(choice: Choice, source: Path, to: Path, created_ns: int) -> None:
    """A clean recording of the canaries alone, with the routes and flows of the one that they are from."""
    learned: list[tuple[RecordType, Sequence[Record]]] = []
    with LogReader(source) as reader:
        original = reader.manifest
        while messages := reader.read(1):
            header = codec.decode_header(messages[0].data)
            if header.type is RecordType.STAMPED:
                break
            if header.type in (RecordType.FLOWS, RecordType.ROUTE_TABLE):
                learned.append((header.type, codec.decode(messages[0].data, header).records))
    owner = original.owner_id if original else ""
    to.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    manifest = Manifest(topics.CLEAN, "0", owner, created_ns, "livefire drill", inputs=(source.name,), sorted=True)
    with LogWriter(to, manifest) as writer:
        for kind, records in learned:
            writer.write_records(records, kind)
        records = retimed(choice.sessions)
        for at in range(0, len(records), 32):
            writer.write_records(records[at : at + 32])
        writer.end(sorted=True)


def outcomes_of(bus: FileBus) -> list[Outcome]:
    """All outcomes of a (small) run."""
    reader = TopicReader(bus, topics.OUTCOMES)
    found = [o for _, b in reader.batches() if b.header.type is RecordType.OUTCOME for o in b.records]
    reader.close()
    return found


def canary_result(choice: Choice, outcomes: list[Outcome]) -> Canary:
    unsafe = {s.exchange_id for session in choice.sessions for s in session if s.unsafe}
    sent = [o for o in outcomes if o.sent_ns]
    answers: dict[str, int] = {}
    for outcome in sent:
        if outcome.exchange_id in unsafe:
            name = f"{outcome.route} {outcome.status if outcome.failure is Failure.NONE else outcome.failure.value}"
            answers[name] = answers.get(name, 0) + 1
    accepted = sum(o.exchange_id in unsafe and o.failure is Failure.NONE and 200 <= o.status < 400 for o in sent)
    return Canary(len(choice.sessions), len(sent), accepted, choice.covered, choice.left_out, answers)
