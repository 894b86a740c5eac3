"""Memory that is kept between large bodies, as the kernel counts its pages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pcap_build import Conversation, pcap

from capture import heap
from capture.app import import_files

#: As an import does: some large blocks, all of them let go, and so on.
BODIES = """
import resource, sys
from capture import heap
if sys.argv[1] == "kept":
    heap.keep_freed()
def bodies():
    return [b"x" * (1 << 20) for _ in range(6)]
bodies()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    bodies()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
needs_mallopt = pytest.mark.skipif(heap._call is None, reason="this C library has no mallopt(3): glibc has it")


def pages(how: str) -> int:
    command = [sys.executable, "-c", BODIES, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@needs_mallopt
def test_pages_are_not_asked_for_again_for_each_large_body() -> None:
    kept, given_back = pages("kept"), pages("given back")
    assert kept < 20 * 6 * 20 < given_back, "of 256 pages a body"


def test_an_import_keeps_what_it_frees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(heap, "_call", lambda what, size: asked.append(size))
    capture = tmp_path / "one.pcap"
    talk = Conversation().open()
    talk.client(b"GET / HTTP/1.1\r\n\r\n")
    capture.write_bytes(pcap(talk.close().packets))
    import_files([capture], tmp_path / "one.lf")
    assert asked == [16 << 20, 8 << 20]
