"""What every test run has and tells: servers, started once; which tests were skipped, and how to get what they need.

With LIVEFIRE_REQUIRE=all (as in CI) a skip is a failure, so that a missing part cannot pass for a tested one.

Where modules are compiled (`make native`), those are tested, not their sources.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from servers.fixtures import chdb_server, clickhouse_server, elasticsearch_server, kafka_server

from capture.compiled import ROOT, compiled, stale

__all__ = ["chdb_server", "clickhouse_server", "elasticsearch_server", "kafka_server"]
ALL = "all" in os.environ.get("LIVEFIRE_REQUIRE", "").split(",")


def pytest_sessionstart() -> None:
    for source in stale():
        name = source.relative_to(ROOT)
        raise pytest.UsageError(f"{name} was changed since it was compiled: make native, or make interpreted")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if compiled():
        for item in items:
            if item.get_closest_marker("patches"):
                item.add_marker(
                    pytest.mark.skip("modules are compiled, and it patches their sources: make interpreted")
                )


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr).removeprefix("Skipped: ")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if ALL and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and LIVEFIRE_REQUIRE=all: {_reason(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if ALL and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, and LIVEFIRE_REQUIRE=all: {_reason(report)}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = _reason(report)
        reasons[reason] = reasons.get(reason, 0) + 1
    if reasons:
        terminalreporter.section("skipped, and how to get it")
        for reason, count in sorted(reasons.items()):
            terminalreporter.line(f"{count} x {reason}")
