"""What every test run has and tells: servers, started once; which tests were skipped, and how to get what they need.

With LIVEFIRE_REQUIRE=all (as in CI) a skip is a failure, so that a missing part cannot pass for a tested one.

What tests import is interpreted, also where modules are compiled: some look at, or change, what only sources have. With
LIVEFIRE_TEST_COMPILED=1 it is compiled, and those are left out. The commands that tests start are what a user has.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from servers.fixtures import chdb_server, clickhouse_server, elasticsearch_server, kafka_server

COMPILED = os.environ.get("LIVEFIRE_TEST_COMPILED") == "1"
with pytest.MonkeyPatch.context() as asked:
    if not COMPILED:
        asked.setenv("LIVEFIRE_INTERPRETED", "1")  # for this process, not for those that tests start
    from wire.compiled import compiled

    compiled()  # it is asked once a process

__all__ = ["chdb_server", "clickhouse_server", "elasticsearch_server", "kafka_server"]
ALL = "all" in os.environ.get("LIVEFIRE_REQUIRE", "").split(",")


def pytest_sessionstart() -> None:
    if COMPILED and not compiled():
        raise pytest.UsageError("nothing is compiled, or its sources were changed since: make native")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if COMPILED:
        for item in items:
            if item.get_closest_marker("patches"):
                item.add_marker(pytest.mark.skip("it patches sources, and modules are compiled: make test"))


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
