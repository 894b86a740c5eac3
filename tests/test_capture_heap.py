"""Memory that is kept between large bodies, as the kernel counts its pages."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from capture_corpus import corpus
from pcap_build import Conversation, pcap

from capture import heap
from capture.app import import_files
from capture.assembler import Assembler
from capture.settings import CaptureSettings
from capture.source_pcap import PcapSource

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


HOUR_NS = 3600 * 10**9


@contextmanager
def circles() -> Iterator[list[str]]:
    """What is found within it, in the end, that is free and knows itself: names of types."""
    found: list[str] = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found += sorted({type(one).__name__ for one in gc.garbage})
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_connections_that_are_over_are_free_at_once() -> None:
    """So memory does not grow with all that have been, however seldom anybody looks for circles."""
    captures = sorted(path for path in corpus("pcap").iterdir() if path.suffix in (".pcap", ".pcapng"))[::4]
    connections = 0
    for path in captures:
        assembler = Assembler("r", CaptureSettings(), None, b"k" * 32)
        with circles() as found:
            for _ in PcapSource(path).read_into(assembler, 1000):
                assembler.take()
            for later in (1, 2, 3):
                assembler.expire(assembler.now_ns + later * HOUR_NS)
            assembler.take()
            connections += assembler.account.ledger("connections").seen
            assert assembler.connections == 0
        assert not {"Connection", "Side", "Pairer", "Reader", "Stream", "Message"} & set(found), path
    assert connections > 100


def test_circles_are_seen() -> None:
    with circles() as found:
        one = Assembler("r", CaptureSettings(), None, b"k" * 32)
        one.packet(0, b"", 0)
        del one  # its parts know each other
    assert "Assembler" in found
