"""The proof that stress traffic touches nothing of production.

Two kinds of witness: what each service counted itself (its audit), and rows of the run counted by SQL in each store,
production and shadow. The verdict is one of

- violated: a row of the run is in production, or a service caught work that reached for the wrong store;
- not proven: a witness is silent, or saw nothing: a proof needs stress that was seen, and rows in the shadow;
- proven: every witness was heard, saw the stress, and found nothing wrong;
- not applicable: there is nothing to prove it with, and nothing that could write.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from drill.audit_client import Audit, AuditClient, AuditError
from drill.plan import Isolation
from drill.sql_counts import CountError, RunCounter


class Proof(StrEnum):
    PROVEN = "proven"
    NOT_PROVEN = "not proven"
    VIOLATED = "violated"
    NOT_APPLICABLE = "not applicable"


class ServiceWitness(msgspec.Struct, frozen=True):
    """What one service counted since the run began. `problem`: why nothing is known of it."""

    name: str
    url: str
    problem: str = ""
    marked_requests: int = 0
    shadow_writes: dict[str, int] = {}
    refused: dict[str, int] = {}
    mocked: dict[str, int] = {}
    violations: tuple[str, ...] = ()  # a line each: how often, what, where
    doubts: tuple[str, ...] = ()  # what was refused, and so did no harm, but proves nothing


class StoreWitness(msgspec.Struct, frozen=True):
    """Rows of the run by table."""

    name: str
    problem: str = ""
    production: dict[str, int] = {}
    shadow: dict[str, int] = {}

    @property
    def violations(self) -> tuple[str, ...]:
        return tuple(
            f"store {self.name}, table {table}: {count:,} row{'s' if count != 1 else ''} of this run in production"
            for table, count in self.production.items()
            if count
        )


class IsolationReport(msgspec.Struct, frozen=True):
    """The verdict at one moment, with all that it rests on. `reasons` are lines for people."""

    verdict: Proof
    reasons: tuple[str, ...] = ()
    services: tuple[ServiceWitness, ...] = ()
    stores: tuple[StoreWitness, ...] = ()
    writes_expected: bool = True

    @property
    def violations(self) -> tuple[str, ...]:
        return _violations(self.services, self.stores)

    @property
    def silent(self) -> bool:
        """A witness could not be heard."""
        return any(service.problem for service in self.services) or any(store.problem for store in self.stores)

    @property
    def rows_in_shadow(self) -> int:
        return sum(sum(store.shadow.values()) for store in self.stores)

    @property
    def rows_in_production(self) -> int:
        return sum(sum(store.production.values()) for store in self.stores)

    def said(self) -> str:
        """One line."""
        if self.verdict is Proof.PROVEN:
            if not self.stores:
                return f"isolation proven by {len(self.services)} audits (no store was counted)"
            return f"isolation proven: stress writes: {self.rows_in_shadow:,} in shadow, 0 in production"
        return f"isolation {self.verdict.value}" + (f": {'; '.join(self.reasons)}" if self.reasons else "")


class IsolationProof:
    """Hears the witnesses of one run. `begin` first: what was counted before the run is nobody's fault now."""

    def __init__(self, isolation: Isolation | None, run_id: str, client: AuditClient) -> None:
        """Raises ConfigError for a store URL that is none."""
        self._isolation = isolation
        self._run_id = run_id
        self._client = client
        self._before: dict[str, Audit] = {}
        self._counters: dict[str, tuple[RunCounter, RunCounter]] = {}
        for store in isolation.stores if isolation else ():
            self._counters[store.name] = (
                RunCounter(store.production, store.run_column),
                RunCounter(store.shadow, store.run_column),
            )

    def begin(self) -> None:
        """Note where the services' counters stand."""
        for name, url in self._isolation.services.items() if self._isolation else ():
            try:
                self._before[name] = self._client.read(url)
            except AuditError:
                self._before.pop(name, None)  # said by `check`, when it still does not answer

    def check(self, *, writes_expected: bool = True, unsafe: bool = True) -> IsolationReport:
        """Ask all witnesses now. `writes_expected`: the recording has requests that write, so shadows must hold rows.
        `unsafe`: the recording has requests that may write; without an isolation section that is "not proven"."""
        if self._isolation is None:
            if unsafe:
                return IsolationReport(Proof.NOT_PROVEN, ("the plan has no isolation section",), writes_expected=False)
            return IsolationReport(Proof.NOT_APPLICABLE, ("no recorded request may write",), writes_expected=False)
        services = tuple(self._service(name, url) for name, url in self._isolation.services.items())
        stores = tuple(self._store(name, *counters) for name, counters in self._counters.items())
        return weigh(services, stores, writes_expected=writes_expected)

    def _service(self, name: str, url: str) -> ServiceWitness:
        try:
            now = self._client.read(url)
        except AuditError as error:
            return ServiceWitness(name, url, str(error))
        before = self._before.get(name)
        audit = now.since_then(before)
        violations = [
            f"{name}: {_words(v.kind or 'wrong_store')}, {_times(v.count)}, at {v.place}"
            + (f" ({v.statement}{' on ' + v.store if v.store else ''})" if v.statement or v.store else "")
            for v in audit.violations
        ]
        if audit.violations_elsewhere:
            violations.append(f"{name}: {_times(audit.violations_elsewhere)} at further places")
        doubts = [
            f"{name}: {_times(b.count)} a call to {b.host} was stopped at {b.place}" for b in audit.blocked_outbound
        ]
        if audit.blocked_outbound_elsewhere:
            doubts.append(f"{name}: {_times(audit.blocked_outbound_elsewhere)} a call was stopped at further places")
        if before is not None and not now.same_process(before):
            doubts.append(f"{name} is not the process that it was when the run began: what that one counted is lost")
        if audit.lost_context:
            where = ", ".join(list(audit.lost_places)[:3]) or "an unknown place"
            doubts.append(f"{name}: {_times(audit.lost_context)} work had lost its context at {where}")
        return ServiceWitness(
            name, url, "", audit.marked_requests, audit.shadow_writes, audit.refused, audit.mocked,
            tuple(violations), tuple(doubts),
        )  # fmt: skip

    def _store(self, name: str, production: RunCounter, shadow: RunCounter) -> StoreWitness:
        try:
            in_production = production.count(self._run_id)
        except CountError as error:
            return StoreWitness(name, f"store {name}, production: {error}")
        try:
            return StoreWitness(name, "", in_production, shadow.count(self._run_id))
        except CountError as error:
            return StoreWitness(name, f"store {name}, shadow: {error}", in_production)


def weigh(
    services: tuple[ServiceWitness, ...], stores: tuple[StoreWitness, ...], *, writes_expected: bool
) -> IsolationReport:
    """The verdict on what the witnesses said. Pure."""
    violations = _violations(services, stores)
    doubts = [service.problem for service in services if service.problem]
    doubts += [store.problem for store in stores if store.problem]
    if not services and not stores:
        doubts.append("there is no witness")
    for service in services:
        if not service.problem and not service.marked_requests:
            refused = f"; it refused {sum(service.refused.values())}" if service.refused else ""
            doubts.append(f"{service.name} saw no stress request{refused}")
        doubts.extend(service.doubts)
    if services and not stores and writes_expected and not any(service.shadow_writes for service in services):
        doubts.append("no service counted a write to its shadow")
    for store in stores:
        if not store.problem and writes_expected and not any(store.shadow.values()):
            doubts.append(f"store {store.name}: no row of this run in the shadow either")
    verdict = Proof.VIOLATED if violations else Proof.NOT_PROVEN if doubts else Proof.PROVEN
    return IsolationReport(verdict, violations or tuple(doubts), services, stores, writes_expected)


def _violations(services: tuple[ServiceWitness, ...], stores: tuple[StoreWitness, ...]) -> tuple[str, ...]:
    found = [line for service in services for line in service.violations]
    return (*found, *(line for store in stores for line in store.violations))


def mocked_calls(report: IsolationReport) -> Mapping[str, int]:
    """Calls that went to a mock rather than to the third party, by its host."""
    calls: dict[str, int] = {}
    for service in report.services:
        for host, count in service.mocked.items():
            calls[host] = calls.get(host, 0) + count
    return calls


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _words(kind: str) -> str:
    return kind.replace("_", " ")
