"""Clean recordings made of records, for tests that need exact ones."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

from bus.logfile import LogWriter
from bus.ports import Bus
from wire import head as heads
from wire import topics
from wire.records import Baseline, End, Flow, Flows, Framing, Manifest, Request, RouteTable, SourceRange, Stamped
from wire.streams import CLEAN_WIDTH

MS = 1_000_000
SECOND = 1_000_000_000
RECORDING_ID = "recording-of-tests"


def id_of(*parts: object) -> bytes:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()


def exchange(
    number: int,
    offset_ns: int,
    *,
    session: object = 0,
    session_start_ns: int = 0,
    session_index: int = 0,
    method: str = "GET",
    target: str = "/",
    fields: Sequence[tuple[str, str]] = (),
    body: bytes = b"",
    status: int = 200,
    answer_fields: Sequence[tuple[str, str]] = (),
    answer: bytes = b"ok",
    answer_bytes: int | None = None,
    route: str = "",
) -> Stamped:
    """One stamped exchange. `number` makes its id."""
    head = heads.build(
        f"{method} {target} HTTP/1.1".encode(),
        [(b"Host", b"recorded.example"), *((name.encode(), value.encode()) for name, value in fields)],
    )
    answer_head = heads.build(
        f"HTTP/1.1 {status} X".encode(), [(name.encode(), value.encode()) for name, value in answer_fields]
    )
    framing = Framing.LENGTH if body else Framing.NONE
    return Stamped(
        id_of("exchange", number),
        id_of("session", session),
        route or f"{method} {target.partition('?')[0]}",
        offset_ns,
        Request(head, body, len(body), framing),
        Baseline(
            status, 5 * MS, answer_head, answer, len(answer) if answer_bytes is None else answer_bytes,
            hashlib.sha256(answer).digest(),
        ),
        session_start_ns,
        session_index,
        method not in ("GET", "HEAD", "OPTIONS", "TRACE"),
    )  # fmt: skip


def make_clean(
    path: Path, exchanges: Sequence[Stamped], *, flows: Sequence[Flow] = (), per_batch: int = 100, scale: float = 1.0
) -> Path:
    """A whole clean recording: manifest, routes, flows, exchanges in the order given, end mark."""
    manifest = Manifest(topics.CLEAN, "0", RECORDING_ID, 1, "tests", scale=scale, sorted=True)
    with LogWriter(path, manifest) as writer:
        writer.write_records((RouteTable(RECORDING_ID, ()),))
        writer.write_records((Flows(RECORDING_ID, tuple(flows)),))
        for at in range(0, len(exchanges), per_batch):
            batch = exchanges[at : at + per_batch]
            writer.write_records(batch, first_ns=batch[0].offset_ns, last_ns=batch[-1].offset_ns)
        writer.end(sorted=True)
    return path


def even(count: int, rate_per_s: float, *, per_session: int = 4, **more: object) -> list[Stamped]:
    """`count` GETs at exact distances; every `per_session` of them are one session, one after another."""
    made: list[Stamped] = []
    for number in range(count):
        session, index = divmod(number, per_session)
        made.append(
            exchange(
                number,
                round(number / rate_per_s * SECOND),
                session=session,
                session_start_ns=round(session * per_session / rate_per_s * SECOND),
                session_index=index,
                **{"target": f"/item/{number}", **more},  # type: ignore[arg-type]
            )
        )
    return made


def publish(bus: Bus, name: str, exchanges: Sequence[Stamped], *, agent: str = "a", flows: Sequence[Flow] = ()) -> None:
    """A whole recording in the topic `clean` of a bus, as one cleanser of one agent's one stream would write it."""
    stream = f"{agent}.0.0"
    manifest = Manifest(topics.CLEAN, stream, name, 1, "tests", hosts=(agent,), settings={CLEAN_WIDTH: 1})
    with contextlib.closing(bus.writer(topics.CLEAN, stream, manifest)) as writer:
        writer.write_records((RouteTable(name, ()),))
        writer.write_records((Flows(name, tuple(flows)),))
        for at in range(0, len(exchanges), 100):
            batch = exchanges[at : at + 100]
            source = SourceRange(topics.RAW, f"{agent}.0", at, at + 1)
            writer.write_records(batch, first_ns=batch[0].offset_ns, last_ns=batch[-1].offset_ns, sources=(source,))
        writer.end(End(name, stream, len(exchanges), 0, 0))
