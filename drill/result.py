"""The result of a drill, and how it is written down (`result.json`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from analytics.windows import ALL_ROUTES, Tally, tallies
from drill.guard import Decision
from drill.isolation import IsolationReport
from drill.verdict import Capacity, Fidelity, StepResult, Verdict, figures
from wire.records import Failure, Kind, Pane


class Account(msgspec.Struct, frozen=True):
    """Of all stress shots of the load: planned = sent + shed + unknown; sent = answered + failed.

    What was planned is counted from the workers' claims, all else from the panes that their outcomes became.
    """

    planned: int
    sent: int
    answered: int
    failed: int
    shed: int
    unknown: int
    failures: dict[str, int] = {}  # by `wire.records.Failure`, the most frequent first: why shots failed, or were shed

    @property
    def lost(self) -> int:
        """Shots that were claimed, and of which nothing more is known; below 0: outcomes that nobody claimed."""
        return self.planned - self.sent - self.shed - self.unknown

    @property
    def balanced(self) -> bool:
        return self.lost == 0 and self.sent == self.answered + self.failed


def account_of(panes: list[Pane], claimed: int, failures: Mapping[Failure, int]) -> Account:
    t = tallies(panes, -(1 << 40), 1 << 40).get((Kind.STRESS, ALL_ROUTES), Tally())
    by_count = sorted(failures, key=lambda failure: (-failures[failure], failure))
    why = {failure.value: failures[failure] for failure in by_count}
    return Account(claimed, t.finished, t.completed, t.failed, t.shed, t.unknown, why)


class Canary(msgspec.Struct, frozen=True):
    """What the canaries were, and what became of them. `writes_accepted`: unsafe ones that were answered below 400."""

    sessions: int = 0
    sent: int = 0
    writes_accepted: int = 0
    covered: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    answers: dict[str, int] = {}  # "POST /orders 201": how often

    def said(self) -> str:
        routes = ", ".join(self.covered) or "no route that writes"
        plural = "s" if self.sessions != 1 else ""
        sessions = f"{self.sessions} session{plural}, {self.sent} requests"
        return f"canary: {sessions}, {self.writes_accepted} writes accepted ({routes})"


class ThirdPartyResult(msgspec.Struct, frozen=True):
    """`mocked`: calls that services sent to the mock. `served`, `unmatched`: what the mock says, if it does."""

    name: str
    recorded: str
    mock: str
    mocked: int
    served: int | None = None
    unmatched: int | None = None


class DrillResult(msgspec.Struct, frozen=True):
    run_id: str
    run_dir: Path
    name: str
    exit_code: int
    verdict: Verdict
    capacity: Capacity
    fidelity: Fidelity
    steps: tuple[StepResult, ...]
    isolation: IsolationReport
    canary: Canary
    account: Account
    third_parties: tuple[ThirdPartyResult, ...]
    arithmetic: tuple[str, ...]
    started_ns: int
    ended_ns: int
    decision: Decision | None = None
    decision_ns: int = 0  # 0 = none was made
    last_sent_ns: int = 0

    @property
    def stopped_after_ns(self) -> int | None:
        """How long after the decision the last request left; 0 or less: none left after it."""
        return self.last_sent_ns - self.decision_ns if self.decision_ns and self.last_sent_ns else None

    def as_dict(self) -> dict[str, Any]:
        """What `livefire drill --json` prints, and result.json holds."""
        step = self.capacity.step
        return {
            "run_id": self.run_id,
            "name": self.name,
            "exit_code": self.exit_code,
            "headline": self.verdict.headline,
            "reasons": list(self.verdict.reasons),
            "capacity": {
                "said": self.capacity.said(),
                "step": None if step is None else step + 1,
                "load": self.capacity.load,
                "rate": round(self.capacity.rate, 3),
                "limited": self.capacity.limited,
            },
            "fidelity": {"score": self.fidelity.score, "same": self.fidelity.same, "sent": self.fidelity.sent},
            "steps": [step.as_dict() for step in self.steps],
            "isolation": {
                **msgspec.to_builtins(self.isolation),
                "said": self.isolation.said(),
                "violations": list(self.isolation.violations),
                "rows_in_shadow": self.isolation.rows_in_shadow,
                "rows_in_production": self.isolation.rows_in_production,
            },
            "canary": msgspec.to_builtins(self.canary),
            "account": {**msgspec.to_builtins(self.account), "balanced": self.account.balanced},
            "third_parties": msgspec.to_builtins(self.third_parties),
            "arithmetic": list(self.arithmetic),
            "started_ns": self.started_ns,
            "ended_ns": self.ended_ns,
            "decision": None if self.decision is None else msgspec.to_builtins(self.decision),
            "decision_ns": self.decision_ns or None,
            "last_sent_ns": self.last_sent_ns or None,
            "stopped_after_ms": None if self.stopped_after_ns is None else round(self.stopped_after_ns / 1e6, 3),
        }


def total_figures(panes: list[Pane]) -> dict[str, Any]:
    """Of all stress together: counts and latencies."""
    found = tallies(panes, -(1 << 40), 1 << 40).get((Kind.STRESS, ALL_ROUTES))
    return {} if found is None else figures(found)
