"""A recording is read in the order of time, whatever the order in which it was written, and not held as a whole."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.logfile import LogWriter
from livefire import recording
from livefire.recording import Recording
from wire.codec import RecordType
from wire.records import Exchange, Manifest, Request


def exchange(number: int, at_ns: int, body: bytes = b"") -> Exchange:
    request = Request(b"POST /a HTTP/1.1\r\nHost: a\r\n\r\n", body, len(body))
    return Exchange(number.to_bytes(16, "big"), bytes(16), bytes(16), "c", "s", request, None, at_ns, at_ns, 0, 0)


def written(path: Path, batches: list[list[Exchange]], partition: str = "0") -> None:
    with LogWriter(path, Manifest("raw", partition, "R", 1, "tests", masked=False)) as log:
        for batch in batches:
            log.write_records(batch, RecordType.EXCHANGE)
        log.end()


@given(st.integers(0, 1 << 30), st.integers(1, 6), st.integers(1, 400))
@settings(max_examples=30, deadline=None)
def test_records_come_in_the_order_of_time_then_in_that_of_writing(
    tmp_path_factory: pytest.TempPathFactory, seed: int, parts: int, span: int
) -> None:
    rng, folder = random.Random(seed), tmp_path_factory.mktemp("r")
    want: list[tuple[int, int, int]] = []
    for part in range(parts):
        batches, number = [], 0
        for _ in range(rng.randrange(12)):
            batch = []
            for _ in range(rng.randrange(1, 30)):
                want.append((rng.randrange(1, span + 1), part, number))
                batch.append(exchange(part << 32 | number, want[-1][0]))
                number += 1
            batches.append(batch)
        written(folder / f"raw-{part}.000001.lf", batches, f"{part}.000001")
    found = Recording(folder)
    assert found.count == len(want)
    got = [(e.request_start_ns, int.from_bytes(e.exchange_id, "big")) for e in found.exchanges()]
    assert got == [(at, part << 32 | number) for at, part, number in sorted(want)]
    assert list(found.exchanges()) == list(found.exchanges()), "it can be read again"


def test_what_is_decoded_at_a_time_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where every batch has a request that began long before, as a long poll's: all of them are under way then."""
    monkeypatch.setattr(recording, "_KEPT_BYTES", 100_000)
    rng = random.Random(3)
    batches = [[exchange(n, 1 + n), *(exchange(n * 100 + k, 10**6 + n * 100 + k, rng.randbytes(5000)) for k in range(9))]
               for n in range(40)]  # fmt: skip
    written(tmp_path / "r.lf", batches)
    found, most, last = Recording(tmp_path / "r.lf"), 0, 0
    for one in found.exchanges():
        most = max(most, sum(recording._weight(e) for batch, _ in found._cache.values() for e in batch.records))
        assert one.request_start_ns >= last
        last = one.request_start_ns
    assert found.count == 400 and 50_000 < most <= 100_000
