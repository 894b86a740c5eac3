"""A drill as the front door runs it: mocks and workers started, the story told, the report written."""

from __future__ import annotations

import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from analytics.app import window_dicts
from analytics.kibana.address import base_address, dashboard_address
from analytics.windows import text_table
from bus.address import KafkaSecurity
from drill import app
from drill.events import Event, EventKind
from drill.plan import Plan, load_plan
from drill.report import write_report
from drill.result import DrillResult
from drill.settings import DrillSettings
from livefire import keyring
from livefire.story import Story
from livefire.supervisor import Supervisor
from livefire.tables import counted, table
from replay import targets
from replay.summary import TOLD
from wire.config import ConfigError
from wire.records import Failure

MOCK_READY: Final = "/.livefire/ready"
_MOCK_S: Final = 20.0


def drill_and_tell(
    plan: Plan,
    keys: Path,
    runs: Path,
    supervisor: Supervisor,
    story: Story,
    *,
    disposable: bool = False,
    kibana: str = "",
    bus: str = "",
    security: KafkaSecurity | None = None,
) -> DrillResult:
    """Carry a plan out, telling what happens. Raises ConfigError and the like before the first shot.

    `bus`: where the workers are, and the recording that the plan names; "" = both are on this machine.
    """
    targets.admit(plan.target)
    if kibana:
        base_address(kibana)  # for its errors
    ring = keyring.load(keys)
    settings = DrillSettings(
        runs_dir=runs, key_id=ring.marker.id, key_hex=ring.marker.key, disposable_target=disposable,
        bus=bus, security=security,
    )  # fmt: skip
    _start_mocks(plan, keys, supervisor, story, bus)
    begun = False

    def tell(event: Event) -> None:
        nonlocal begun
        _tell(event, story)
        if kibana and event.kind is EventKind.STARTED and not begun:
            story.line(f"Kibana: {dashboard_address(kibana, '', event.detail['run_id'], event.at_ns, None)}")
        begun = begun or event.kind is EventKind.STARTED

    try:
        result = app.run(plan, settings, supervisor.spawn, tell)
    except KeyboardInterrupt:
        if begun:
            story.line("interrupted: nothing more is sent; what there is of it: livefire windows, livefire report")
        raise
    story.done()
    _tell_result(result, story)
    if kibana:
        story.line()
        story.line(f"Kibana: {dashboard_address(kibana, '', result.run_id, result.started_ns, result.ended_ns)}")
    return result


def plan_with(path: Path, variables: Mapping[str, str], *, on_bus: bool = False) -> Plan:
    """The plan with those of the variables that it names."""
    text = path.read_text("utf-8") if path.exists() else ""
    named = set(re.findall(r"\$\{([\w.-]+)", text))
    return load_plan(path, {name: value for name, value in variables.items() if name in named}, on_bus=on_bus)


def report_of(result: DrillResult, to: Path | None = None) -> Path:
    """Write the report page; where it is."""
    path = to or result.run_dir / "report.html"
    write_report(result.run_dir, path)
    return path


def _start_mocks(plan: Plan, keys: Path, supervisor: Supervisor, story: Story, bus: str) -> None:
    """A mock that answers already is left alone; another is started, from what production's recording holds."""
    for party in plan.third_parties:
        if _answers(party.mock):
            story.line(f"mock of {party.name}: answers at {party.mock} already")
            continue
        if plan.production is None:
            raise ConfigError(
                f"{plan.source}: nothing answers for {party.name} at {party.mock}; start it: livefire mock RECORDING "
                f"--server {party.recorded} --listen {party.mock}"
            )
        name = f"mock-{party.name}"
        argv = [sys.executable, "-m", "livefire", "--keys", str(keys), "mock", str(plan.production.recording)]
        if bus and not plan.production.recording.exists():
            argv += ["--bus", bus]
        child = supervisor.spawn(name, [*argv, "--server", party.recorded, "--listen", party.mock, "--stdin-guard"])
        deadline = time.monotonic() + _MOCK_S
        while not _answers(party.mock):
            if child.poll() is not None or time.monotonic() > deadline:
                words = " / ".join(supervisor.errors_of(name)) or "it said nothing"
                raise ConfigError(f"the mock of {party.name} did not start: {words}")
            time.sleep(0.05)
        story.line(f"mock of {party.name}: recorded answers, at {party.mock}")


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}{MOCK_READY}", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _tell(event: Event, story: Story) -> None:
    if event.kind is EventKind.WINDOW:
        story.progress(event.text)
    else:
        story.line(event.text)


def _tell_result(result: DrillResult, story: Story) -> None:
    told = {
        *result.isolation.violations,
        result.isolation.said(),
        "" if result.decision is None else result.decision.said,
    }
    for reason in result.verdict.reasons:
        if reason not in told:
            story.line(reason)
    if result.steps and result.capacity.said() not in result.verdict.headline:
        story.line(f"capacity: {result.capacity.said()}")
    if result.steps:
        story.line()
        story.line(steps_table(result))
    windows = window_dicts(result.run_dir, every="5s")
    if windows:
        story.line()
        story.line(f"windows of 5s (livefire windows {result.run_id})")
        story.line(text_table(windows))


def tell_account(result: DrillResult, story: Story) -> None:
    """What became of the shots."""
    account = result.account
    story.line(
        f"shots: {account.planned:,} planned = {account.sent:,} sent + {account.shed:,} shed "
        f"+ {account.unknown:,} unknown; "
        f"{account.sent:,} sent = {account.answered:,} answered + {account.failed:,} failed; "
        f"{'balanced' if account.balanced else 'NOT BALANCED'}"
    )
    for failure, count in account.failures.items():
        story.line(f"  {count:,} {TOLD[Failure(failure)]}")


def tell_proof(result: DrillResult, story: Story) -> None:
    """What was written where."""
    isolation = result.isolation
    unknown = [f"{store.name} ({store.problem})" for store in isolation.stores if store.problem]
    if unknown:
        story.line(f"stress writes: not known, nobody could count in {', '.join(unknown)}")
    elif isolation.stores:
        story.line(
            f"stress writes: {isolation.rows_in_shadow:,} in shadow, {isolation.rows_in_production:,} in production "
            f"(rows of this run, by SQL)"
        )
    for violation in isolation.violations:
        story.line(f"VIOLATED: {violation}")
    for party in result.third_parties:
        calls = counted(party.mocked, "stress call")
        story.line(f"{party.name}: {calls} went to its mock, {party.unmatched or 0:,} unmatched")


def steps_table(result: DrillResult) -> str:
    """Each step: what was meant, what came of it, how it was judged."""
    rows = []
    for step in result.steps:
        stress = step.stress
        share = "-" if stress.error_share is None else f"{stress.error_share:.1%}"
        judged = "stopped" if step.cut else {True: "held", False: "not held", None: "not judged"}[step.held]
        rows.append(
            (step.index + 1, f"{step.load:g}x", step.planned_rate, step.offered_rate, step.completed_rate, share,
             stress.shed, stress.quantile_ms(0.5), stress.quantile_ms(0.95), judged)
        )  # fmt: skip
    heads = ("step", "load", "meant/s", "offered/s", "done/s", "errors", "shed", "p50 ms", "p95 ms", "judged")
    return table(heads, rows, left=0, words_last=True)
