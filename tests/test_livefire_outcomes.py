"""What became of shots, as people are told: the same failures as the windows count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bus.logfile import FileBus
from livefire.cli import cli
from wire import topics
from wire.ids import ulid
from wire.records import Failure, Kind, Manifest, Outcome, Verdict

NS = 1_000_000_000
AT = 1_800_000_000 * NS


def test_an_answer_that_broke_off_is_a_failure_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ulid(AT)
    folder = tmp_path / "runs" / run
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"run_id": run}))

    def outcome(number: int, status: int, failure: Failure, verdict: Verdict) -> Outcome:
        return Outcome(
            run, bytes([number]) * 16, 0, 0, 0, "GET /x", Kind.STRESS, AT, AT, AT + 5, AT + NS // 2, 0, status, failure,
            10, 20, verdict, "w0",
        )  # fmt: skip

    with FileBus(folder).writer(topics.OUTCOMES, "w0", Manifest(topics.OUTCOMES, "w0", run, AT, "test")) as writer:
        made = (
            outcome(1, 200, Failure.NONE, Verdict.SAME),
            outcome(2, 200, Failure.TIMEOUT, Verdict.NONE),
            outcome(3, 0, Failure.RESET, Verdict.NONE),
        )
        writer.write_records(made, first_ns=AT, last_ns=AT)
        writer.end()
    monkeypatch.chdir(tmp_path)

    def said(*words: str) -> str:
        done = CliRunner().invoke(cli, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    rows = [line.split() for line in said("outcomes").splitlines() if line.startswith("GET /x")]
    assert [row[2:] for row in rows] == [["200", "same", "1"], ["reset", "none", "1"], ["timeout", "none", "1"]]
    failed = [json.loads(line) for line in said("outcomes", "--failed", "--json").splitlines()]
    assert [line["failure"] for line in failed] == ["timeout", "reset"]
    windows = [json.loads(line) for line in said("windows", "--json", "--route", "*").splitlines()]
    assert (sum(w["completed"] for w in windows), sum(w["failed"] for w in windows)) == (1, len(failed))
