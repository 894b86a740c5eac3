"""A recorder whose bus is away from the beginning: it says so, and where what it records waits."""

from __future__ import annotations

import subprocess
from pathlib import Path

from fault_checks import command, environment, until


def test_a_recorder_without_a_bus_says_so_and_where_it_keeps_what_it_records(tmp_path: Path) -> None:
    bus, spool, log = "kafka://127.0.0.1:9", tmp_path / "spool", tmp_path / "said"
    words = ("record", "--bus", bus, "--recording", "monday", "--agent", "a", "--spool", str(spool), "--stdin-guard")
    with open(log, "wb") as said:
        recorder = subprocess.Popen(
            command(tmp_path, *words, "--proxy", "127.0.0.1:0=127.0.0.1:9"), stdin=subprocess.PIPE, stdout=said,
            stderr=said, cwd=tmp_path, env=environment(),
        )  # fmt: skip
    try:
        line = f"{bus} is away; what is recorded waits in {spool}/monday"
        until(lambda: line in log.read_text() or recorder.poll() is not None, 40, "it says nothing", log.read_text)
        assert recorder.poll() is None, log.read_text()
        assert log.read_text().count("is away; what") == 1
        said_first = next(text for text in log.read_text().splitlines() if not text.startswith("livefire: made a key"))
        assert said_first == f"connects to {bus}", "before the first wait"
    finally:
        recorder.kill()
        recorder.wait()
        assert recorder.stdin is not None
        recorder.stdin.close()
