"""What a run came to, counted from its two books, and whether they agree.

    planned = sent + shed + unknown        planned is counted from claims, the others from outcomes
    sent    = answered + failed

Percentiles are exact (nearest rank, of all answered shots) and None below 10 / (1 - p) samples.

Memory: some 40 bytes a shot, so a run of ten million is read in half a gigabyte.
"""

from __future__ import annotations

import contextlib
import math
from array import array
from pathlib import Path
from typing import Final

import msgspec

from bus.logfile import FileBus
from bus.ports import Bus
from replay.book import ShotName, name_of, records_of
from wire import topics
from wire.account import Account
from wire.codec import RecordType
from wire.records import Failure, Verdict

SHED: Final = frozenset(failure for failure in Failure if failure.startswith("shed_"))
_SHOWN: Final = (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p999", 0.999))

#: What became of a shot, for people.
TOLD: Final = {
    Failure.CONNECT: "failed: no connection",
    Failure.TIMEOUT: "failed: no answer within the timeout",
    Failure.RESET: "failed: the connection broke",
    Failure.PROTOCOL: "failed: the answer could not be read",
    Failure.SHED_RATE: "shed: above the cap on the rate",
    Failure.SHED_OPEN: "shed: above the cap on open shots",
    Failure.SHED_LATE: "shed: could not leave near its time",
    Failure.SHED_FLOW: "shed: a value that it needs was never handed out",
    Failure.SHED_STEP: "shed: its copy was cut",
    Failure.SHED_STOP: "shed: the run was stopped",
    Failure.GIVEN_UP: "failed: without an answer when the run was stopped",
    Failure.UNKNOWN: "unknown: its worker died",
}

#: ms by name of percentile; None where there are too few samples.
Percentiles = dict[str, float | None]


class Summary(msgspec.Struct, kw_only=True):
    """What `livefire replay --json` prints."""

    run_id: str
    planned: int = 0
    sent: int = 0
    answered: int = 0
    failed: int = 0
    shed: int = 0
    unknown: int = 0
    balanced: bool = True
    twice: int = 0  # shots with more than one claim or outcome: 0, or there is a bug
    differing: int = 0  # answers unlike the recorded ones
    failures: dict[str, int] = msgspec.field(default_factory=dict)
    statuses: dict[str, int] = msgspec.field(default_factory=dict)
    cpu_s: float = 0.0  # of all processes
    duration_s: float = 0.0  # from the first due time to the last answer
    reason: str = "done"
    latency_ms: Percentiles = msgspec.field(default_factory=dict)  # from when it should have left
    service_ms: Percentiles = msgspec.field(default_factory=dict)  # from when it left
    send_error_ms: Percentiles = msgspec.field(default_factory=dict)  # how late it left, without waits for values


class _Names:
    """Names of shots, 8 bytes each: hashes of 64 bits, which two of ten million share once in 400,000 runs. In parts,
    so that one part at a time is made a set."""

    _PARTS: Final = 256

    def __init__(self) -> None:
        self._parts = [array("q") for _ in range(self._PARTS)]

    def add(self, name: ShotName) -> None:
        number = hash(name)
        self._parts[number % self._PARTS].append(number)

    def compare(self, other: _Names) -> tuple[bool, int]:
        """Whether both hold the same names; how many are there more than once, in one or the other."""
        same, twice = True, 0
        for mine, theirs in zip(self._parts, other._parts, strict=True):
            one, two = set(mine), set(theirs)
            same = same and one == two
            twice += len(mine) - len(one) + len(theirs) - len(two)
        return same, twice


def percentiles(values: array[int]) -> Percentiles:
    """Of ns, in ms. `max` is there whenever there is a sample."""
    ordered = sorted(values)
    count = len(ordered)
    shown: Percentiles = {}
    for name, p in _SHOWN:
        enough = count >= 10 / (1 - p) - 1e-9
        shown[name] = round(ordered[math.ceil(p * count) - 1] / 1e6, 3) if enough else None
    shown["max"] = round(ordered[-1] / 1e6, 3) if ordered else None
    return shown


def account_of(run: Bus | Path | str) -> Account:
    """Ledgers "shots" (claimed = sent + shed + unknown) and "answers" (sent = answered + failed)."""
    return read(run)[1]


def read(run: Bus | Path | str) -> tuple[Summary, Account]:
    """Everything that the outcomes and claims of a run say. `run` is its bus, or its folder."""
    bus = FileBus(run) if isinstance(run, Path | str) else run
    summary = Summary(run_id=Path(run).name if isinstance(run, Path | str) else "")
    account = Account()
    shots, answers = account.ledger("shots"), account.ledger("answers")
    latency, service, error = array("q"), array("q"), array("q")
    first_due, last_done = 0, 0
    claimed, settled = _Names(), _Names()
    for worker in bus.partitions(topics.CLAIMS):
        with contextlib.closing(bus.reader(topics.CLAIMS, worker)) as reader:
            for claim in records_of(reader, RecordType.CLAIM):
                summary.run_id = claim.run_id
                summary.planned += len(claim.shots)
                for shot in claim.shots:
                    claimed.add(name_of(shot))
    for worker in bus.partitions(topics.OUTCOMES):
        with contextlib.closing(bus.reader(topics.OUTCOMES, worker)) as reader:
            for outcome in records_of(reader, RecordType.OUTCOME):
                settled.add(name_of(outcome))
                failure = outcome.failure
                first_due = min(first_due or outcome.due_ns, outcome.due_ns)
                last_done = max(last_done, outcome.done_ns)
                if failure != Failure.NONE:
                    summary.failures[failure.value] = summary.failures.get(failure.value, 0) + 1
                if failure == Failure.UNKNOWN:
                    summary.unknown += 1
                    shots.drop(failure.value)
                elif failure in SHED:
                    summary.shed += 1
                    shots.drop(failure.value)
                else:
                    shots.emitted += 1
                    answers.seen += 1
                    if failure == Failure.NONE:
                        summary.answered += 1
                        answers.emitted += 1
                        status = str(outcome.status)
                        summary.statuses[status] = summary.statuses.get(status, 0) + 1
                        latency.append(outcome.done_ns - outcome.due_ns)
                        service.append(outcome.done_ns - outcome.sent_ns)
                    else:
                        summary.failed += 1
                        answers.drop(failure.value)
                    if outcome.sent_ns:
                        error.append(max(outcome.sent_ns - outcome.due_ns - outcome.pool_wait_ns, 0))
                if outcome.verdict in (Verdict.STATUS, Verdict.LENGTH):
                    summary.differing += 1
    shots.seen = summary.planned
    summary.sent = summary.answered + summary.failed
    same, summary.twice = claimed.compare(settled)
    summary.balanced = account.balanced and same and not summary.twice
    summary.duration_s = round(max(last_done - first_due, 0) / 1e9, 3)
    summary.latency_ms, summary.service_ms = percentiles(latency), percentiles(service)
    summary.send_error_ms = percentiles(error)
    return summary, account
