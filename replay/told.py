"""What the firer has to tell and has not told yet: results go to the feeder many at a time."""

from __future__ import annotations

from typing import Final

from replay import pipes
from replay.pipes import FrameType, PipeWriter
from wire.records import Failure

FLUSH_NS: Final = 20_000_000  # for this long a result that nobody waits for may wait
_MANY: Final = 1_000


class Told:
    def __init__(self, writer: PipeWriter) -> None:
        self.rows: list[bytes] = []  # of pipes.RESULT
        self.urgent = False  # somebody waits for one of them
        self.next_ns = 0
        self._writer = writer

    def result(
        self,
        serial: int,
        sent: int,
        first: int,
        done: int,
        wait: int,
        status: int,
        failure: Failure,
        out: int,
        body: int,
    ) -> None:
        self.rows.append(
            pipes.RESULT.pack(serial, sent, first, done, wait, status, pipes.NUMBER_OF[failure], out, body)
        )

    def shed(self, serial: int, failure: Failure, flags: int) -> None:
        self.result(serial, 0, 0, 0, 0, 0, failure, 0, 0)
        if flags & pipes.WANTS_ANSWER:
            self.urgent = True

    def answer(self, serial: int, head: bytes, body: list[bytes]) -> None:
        """Before the result of its shot, and behind all that was told until now."""
        self.flush()
        payload = pipes.ANSWER.pack(serial, len(head)) + head + b"".join(body)
        self._writer.put(pipes.frame(FrameType.ANSWER, payload))

    def flush_if_due(self, now_ns: int) -> None:
        if self.rows and (self.urgent or now_ns >= self.next_ns or len(self.rows) > _MANY):
            self.flush()
            self.next_ns = now_ns + FLUSH_NS
        elif self._writer.waiting_bytes:
            self._writer.flush()

    def flush(self) -> None:
        if self.rows:
            self._writer.put(pipes.frame(FrameType.RESULTS, b"".join(self.rows)))
            self.rows.clear()
        self.urgent = False
