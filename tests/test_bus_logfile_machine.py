"""A log file under writers that come, go and are killed in a frame, and readers that tail it: what was acknowledged is
read by everybody, once, in order, and nothing else is."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from bus import frames
from bus.logfile import LogReader, LogWriter
from bus.ports import BusError
from wire import codec
from wire.records import Manifest

MANIFEST = Manifest("outcomes", "w0", "run-1", 5, "test")
#: Some look like the beginning of a frame, as recorded bodies may.
BODIES = st.one_of(st.binary(max_size=300), st.binary(max_size=40).map(lambda data: frames.SYNC + data)).map(
    lambda data: b"." + data
)


class LogFile(RuleBasedStateMachine):
    #: Bytes that a kill takes of what was acknowledged: none.
    lost = 0

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "a.lf"
        self.acknowledged: list[bytes] = []
        self.writer: LogWriter | None = LogWriter(self.path, MANIFEST)
        self.tails: list[tuple[LogReader, list[bytes]]] = []
        self.begin_to_tail()

    def bodies(self, reader: LogReader, most: int = 1000) -> list[bytes]:
        return [message.data for message in reader.read(most) if message.data[:2] != codec.MAGIC]

    @precondition(lambda self: self.writer is None)
    @rule()
    def come(self) -> None:
        self.writer = LogWriter(self.path, MANIFEST)

    @precondition(lambda self: self.writer is not None)
    @rule()
    def go(self) -> None:
        assert self.writer is not None
        self.writer.close()
        self.writer = None

    @precondition(lambda self: self.writer is not None)
    @rule(body=BODIES)
    def write(self, body: bytes) -> None:
        assert self.writer is not None
        self.writer.write(body)
        self.acknowledged.append(body)

    @precondition(lambda self: self.writer is not None)
    @rule(bodies=st.lists(BODIES, max_size=5))
    def write_some(self, bodies: list[bytes]) -> None:
        assert self.writer is not None
        assert len(self.writer.write_many(bodies)) == len(bodies)
        self.acknowledged += bodies

    @precondition(lambda self: self.writer is not None)
    @rule(body=BODIES, share=st.floats(0, 1, exclude_max=True))
    def is_killed_in_a_frame(self, body: bytes, share: float) -> None:
        """As it looks on the disk: the frame's beginning is there, its end is not, nobody holds the lock."""
        before = self.path.read_bytes()
        assert self.writer is not None
        self.writer.write(body)
        self.go()
        after = self.path.read_bytes()
        torn = after[len(before) : len(before) + int(share * (len(after) - len(before)))]
        self.path.write_bytes(before[: len(before) - self.lost] + torn)

    @precondition(lambda self: len(self.tails) < 4)
    @rule()
    def begin_to_tail(self) -> None:
        self.tails.append((LogReader(self.path), []))

    @rule(which=st.integers(0, 3), most=st.integers(1, 8))
    def tail(self, which: int, most: int) -> None:
        reader, found = self.tails[which % len(self.tails)]
        found += self.bodies(reader, most)

    @rule(which=st.integers(0, 3))
    def go_on_elsewhere(self, which: int) -> None:
        """Another reader takes over at the offset that this one stands at."""
        which %= len(self.tails)
        reader, found = self.tails[which]
        self.tails[which] = (LogReader(self.path, offset=reader.next_offset), found)
        reader.close()

    @invariant()
    def nothing_is_read_that_was_not_acknowledged(self) -> None:
        for _, found in self.tails:
            assert found == self.acknowledged[: len(found)]

    def teardown(self) -> None:
        try:
            for reader, found in [*self.tails, (LogReader(self.path), [])]:
                while more := reader.read():
                    found += [message.data for message in more if message.data[:2] != codec.MAGIC]
                reader.close()
                assert found == self.acknowledged
        finally:
            if self.writer is not None:
                self.writer.close()
            self.folder.cleanup()


class LosesAByte(LogFile):
    lost = 1


_FEW = settings(max_examples=50, stateful_step_count=25, deadline=None)
_FIRST = settings(_FEW, phases=[Phase.generate], report_multiple_bugs=False, database=None)


def test_what_was_acknowledged_is_read_once_and_nothing_else_is() -> None:
    run_state_machine_as_test(LogFile, settings=_FEW)


def test_a_kill_that_took_a_byte_of_it_would_be_seen() -> None:
    with pytest.raises((AssertionError, BusError)):
        run_state_machine_as_test(LosesAByte, settings=_FIRST)
