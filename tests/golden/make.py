"""Writes the golden files: one log file a record type, and beside it what is in it.

    python tests/golden/make.py          # adds what is missing
    python tests/golden/make.py --check  # fails when something is missing

A golden file that exists is never rewritten: it stands for all files of its version that users have.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from bus.logfile import LogWriter  # noqa: E402
from wire import records as r  # noqa: E402
from wire.account import Account, Increment  # noqa: E402
from wire.codec import TYPE_OF, RecordType  # noqa: E402

T0 = 1_700_000_000_000_000_000
ID = bytes(range(16))
RUN = "01JD0000000000000000000000"

MANIFEST = r.Manifest(
    "raw", "0", RUN, T0, "livefire 0.1.0", ("web-1",), 0.25, {"port": 8080, "deep": {"a": [1, 2.5, None, True]}},
    ("lo",), True, False,
)  # fmt: skip
REQUEST = r.Request(
    b"POST /orders HTTP/1.1\r\nHost: shop\r\n\r\n", b'{"a":1}', 9, r.Framing.CHUNKED, 1, 1, b"X-Sum: 1\r\n\r\n"
)
RESPONSE = r.Response(
    201, b"HTTP/1.1 201 Created\r\n\r\n", b"\x00\xff" * 200, 400, r.Framing.LENGTH, 2, 3, b"",
    (b"HTTP/1.1 100 Continue\r\n\r\n",),
)  # fmt: skip
SKETCH = r.Sketch(6, 1, (-1, 640, 1920), (1, 2, 3), 1_100_000_000, 3_300_002_049)
KEY = r.ShotKey(ID, 1, 2, 3, "POST /orders", T0 + 5)
OUTCOME = r.Outcome(
    RUN, ID, 1, 2, 3, "POST /orders", r.Kind.STRESS, T0, T0 + 1, T0 + 2, T0 + 3, 4, 201, r.Failure.NONE, 120, 400,
    r.Verdict.LENGTH, "w0",
)  # fmt: skip
FLOW = r.Flow(
    "POST /login", r.Place(r.PlaceKind.JSON, "$.token"),
    "GET /cart", r.Place(r.PlaceKind.HEADER, "authorization", "Bearer "), 12, 7,
)  # fmt: skip

#: At least one record a type; every field of the first one differs from its default.
RECORDS: dict[RecordType, tuple[r.Record, ...]] = {
    RecordType.MANIFEST: (MANIFEST,),
    RecordType.END: (r.End(RUN, "0", 3, T0, T0 + 9, "stopped", True),),
    RecordType.EXCHANGE: (
        r.Exchange(
            ID, ID[::-1], ID, "[::1]:40000", "127.0.0.1:80", REQUEST, RESPONSE, T0, T0 + 1, T0 + 2, T0 + 3,
            r.Mode.LENIENT, "lo", "http/1.0", (r.Fault.GAP, r.Fault.UNFINISHED), "web-1",
        ),
        r.Exchange(ID, ID, ID, "10.0.0.1:1", "10.0.0.2:80", r.Request(b""), None, T0, 0, 0, 0),
    ),
    RecordType.STAMPED: (
        r.Stamped(
            ID, ID[::-1], "POST /orders", 123, REQUEST,
            r.Baseline(201, 5, RESPONSE.head, RESPONSE.body, 400, bytes(32)), 100, 4, True,
        ),
    ),
    RecordType.FLOWS: (r.Flows(RUN, (FLOW,)),),
    RecordType.ROUTE_TABLE: (r.RouteTable(RUN, (r.Route("GET /orders/{id}", "GET", ("orders", "{id}"), 42),)),),
    RecordType.CLAIM: (r.Claim(RUN, "w0", 7, (KEY,)),),
    RecordType.SHOT: (r.Shot(KEY, 99, b"GET / HTTP/1.1\r\n\r\n", True, (97, 98), r.Kind.CANARY),),
    RecordType.OUTCOME: (OUTCOME, msgspec.structs.replace(OUTCOME, failure=r.Failure.UNKNOWN, step=-1)),
    RecordType.PANE: (
        r.Pane(
            1_700_000_000, RUN, 3, "POST /orders", r.Kind.PRODUCTION, 2, 10, 9, 1, 2, 3, 4, 5, 6, SKETCH, SKETCH, 7, 8,
            (r.SourceRange("outcomes", "w0", 16, 4096),),
        ),
    ),
    RecordType.DROP: (r.Drop("cleanse", "other_server", True, 5),),
    RecordType.DEAD: (r.Dead("raw", "0", 4096, b"\xf1\x00", "corrupt: zstd", "cleanse"),),
    RecordType.SAMPLE: (r.Sample(T0, "firer", 4711, 1.5, 1 << 30, {"open_files": 12.0}),),
    RecordType.EXEMPLAR: (r.Exemplar(OUTCOME, REQUEST.head, RESPONSE.head),),
    RecordType.AUDIT: (r.Audit(T0, "anna", "stop", {"reason": "p99", "step": 3}),),
    RecordType.CONTROL: (r.Control(RUN, 4, r.Action.STEP, T0, 2, 2.5, "as planned", T0 - 1, T0 + 60),),
    RecordType.LEASE: (r.Lease(RUN, 5, T0, T0 + 3_000_000_000),),
    RecordType.BEAT: (
        r.Beat(RUN, "w0", T0, 4711, 2, 100, 98, 2, 7_000, 500, 0.25, T0 - 5, "holding", "asked to", (7_000, 300)),
    ),
    RecordType.ACCOUNT: (),
}  # fmt: skip


def increment() -> Increment:
    account = Account()
    ledger = account.ledger("messages")
    ledger.seen, ledger.emitted, ledger.in_flight = 10, 6, 1
    ledger.drop("late", 2)
    ledger.drop("other_server", intentional=True)
    account.note("gap_bytes", 3)
    return account.take()


def as_json(records: tuple[r.Record, ...], increment: Increment, sources: tuple[r.SourceRange, ...]) -> Any:
    """What a golden file's middle batch holds, with names for fields and hex for bytes."""
    return {
        "sources": [_plain(source) for source in sources],
        "increment": _plain(increment),
        "records": [_plain(record) for record in records],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in sorted(value.items())}
    return str(value) if isinstance(value, str) else value


SOURCES = (r.SourceRange("raw", "web-1", 16, 4096),)


def write(kind: RecordType, to: Path) -> None:
    """A log file: manifest, one batch of the type (but for the marks, which every file has), end mark."""
    with LogWriter(to, MANIFEST) as writer:
        if kind not in (RecordType.MANIFEST, RecordType.END):
            writer.write_records(
                RECORDS[kind], kind, first_ns=T0, last_ns=T0 + 3, sources=SOURCES, increment=increment()
            )
        writer.end(RECORDS[RecordType.END][0])  # type: ignore[arg-type]


def document(kind: RecordType) -> Any:
    if kind in (RecordType.MANIFEST, RecordType.END):
        return as_json(RECORDS[kind], Increment(), ())
    return as_json(RECORDS[kind], increment(), SOURCES)


def main(check: bool) -> int:
    missing = 0
    for kind in RecordType:
        path = HERE / f"{kind.name.lower()}.lf"
        if path.exists() and path.with_suffix(".json").exists():
            continue
        missing += 1
        if not check:
            write(kind, path)
            path.with_suffix(".json").write_text(json.dumps(document(kind), indent=1) + "\n")
        print(f"{'missing' if check else 'written'}: {path.name}")
    assert set(TYPE_OF.values()) == set(RECORDS), "a record type has no golden record"
    return 1 if check and missing else 0


if __name__ == "__main__":
    raise SystemExit(main("--check" in sys.argv[1:]))
