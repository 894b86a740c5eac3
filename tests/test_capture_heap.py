"""Memory that is kept between large bodies, as the kernel counts its pages."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from pcap_build import Conversation, pcap

from capture import heap

IMPORT = """
import resource, sys
from pathlib import Path
from capture import heap
from capture.app import import_files
if sys.argv[3] == "given back":
    heap._call = None
import_files([Path(sys.argv[1])], Path(sys.argv[2] + "/first.lf"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
account = import_files([Path(sys.argv[1])], Path(sys.argv[2] + "/second.lf"))
print(account.ledger("messages").emitted, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(folder: Path, capture: Path, how: str) -> int:
    folder.mkdir()
    command = [sys.executable, "-c", IMPORT, str(capture), str(folder), how]
    messages, faults = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert messages == "128"
    return int(faults)


@pytest.mark.skipif(heap._call is None, reason="this C library has no mallopt(3): glibc has it")
def test_pages_are_not_asked_for_again_for_each_large_body(tmp_path: Path) -> None:
    talk = Conversation(step_ns=2_000).open()
    for _ in range(64):
        body = random.Random(1).randbytes(1 << 20)
        talk.client(b"GET / HTTP/1.1\r\n\r\n")
        talk.send(1, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body, mss=60_000)
    capture = tmp_path / "large.pcap"
    capture.write_bytes(pcap(talk.close().packets))
    kept, given_back = (pages(tmp_path / how, capture, how) for how in ("kept", "given back"))
    assert kept < 64 * 20 < given_back, "of 256 pages a MiB"
