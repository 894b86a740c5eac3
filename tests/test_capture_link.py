"""An interface that goes down while it is recorded, and comes up again: in a network namespace of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_capture_record import ROOT, exchanges, needs_ring, target

_can = os.geteuid() == 0 and shutil.which("ip") and shutil.which("unshare")

SCRIPT = """
import json, subprocess, sys, threading, time
from pathlib import Path
from test_capture_record import Counting, get, recording, settings_for
link = lambda state: subprocess.run(["ip", "link", "set", "lo", state], check=True)
link("up")
with Counting() as server:
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    settings, port = settings_for("ring", server, Path(sys.argv[1]))
    with recording(settings) as recorder:
        get(port, ["/before"])
        link("down")
        time.sleep(0.7)  # how long it is down, not a wait for something
        link("up")
        get(port, ["/after"])
        print(json.dumps([recorder.stop(), server.seen]))
    server.shutdown()
"""


@needs_ring
@pytest.mark.skipif(not _can, reason="needs root, ip and unshare")
def test_an_interface_that_was_down_is_recorded_again_and_the_time_is_told(tmp_path: Path) -> None:
    file = tmp_path / "live.lf"
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "sdk" / "src")))
    command = ["unshare", "--net", sys.executable, "-c", SCRIPT, str(file)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"no network namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    account, served = json.loads(done.stdout)
    assert served == ["/before", "/after"]
    assert [target(exchange) for exchange in exchanges(file)] == served
    assert account["balanced"]
    assert account["notes"]["down.lo"] == 1 and account["notes"]["down_ns.lo"] > 200_000_000
