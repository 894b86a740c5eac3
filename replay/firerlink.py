"""The feeder's end of the firer: the child process and both pipes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Final

import msgspec

from replay import pipes
from replay.pipes import FrameType, Gauge, PipeReader, PipeWriter

#: Shots per frame: what is withdrawn by a stop is withdrawn in whole frames.
_PER_FRAME: Final = 64

OnResults = Callable[[bytes], None]
OnAnswer = Callable[[int, bytes, bytes], None]


class FirerLink:
    def __init__(self, settings: pipes.FirerSettings) -> None:
        self.process = subprocess.Popen(
            (sys.executable, "-m", "replay.firer"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.writer = PipeWriter(self.process.stdin.fileno())
        self.reader = PipeReader(self.process.stdout.fileno())
        self.ready = False
        self.bye: str | None = None  # why the firer left; None while it has not said so
        self.gauge: Gauge | None = None
        self._parts: list[bytes] = []
        self._serials: list[int] = []
        self.writer.put(pipes.frame(FrameType.CONFIG, msgspec.json.encode(settings)))

    @property
    def died(self) -> bool:
        """The firer is gone and has not said goodbye."""
        return self.reader.ended and self.bye is None

    def shot(self, serial: int, ready_ns: int, flags: int, first: bytes, last: bytes) -> None:
        self._parts.append(pipes.SHOT.pack(serial, ready_ns, flags, len(first), len(last)) + first + last)
        self._serials.append(serial)
        if len(self._serials) >= _PER_FRAME:
            self.send_shots()

    def send_shots(self) -> None:
        if self._serials:
            self.writer.put(pipes.frame(FrameType.SHOTS, b"".join(self._parts)), tuple(self._serials))
            self._parts.clear()
            self._serials.clear()

    def lease(self, expires_ns: int) -> None:
        self.writer.put(pipes.frame(FrameType.LEASE, pipes.TIME.pack(expires_ns)))

    def stop_at(self, effective_ns: int) -> None:
        """Nothing leaves after a time that is still to come."""
        self.writer.put(pipes.frame(FrameType.STOP, pipes.TIME.pack(effective_ns)))

    def stop(self, effective_ns: int) -> list[int]:
        """Stop at once. The serials of shots that were still on this side and will not be sent."""
        self.send_shots()
        withdrawn = self.writer.withdraw()
        self.writer.put(pipes.frame(FrameType.STOP, pipes.TIME.pack(effective_ns)))
        return withdrawn

    def end(self) -> None:
        self.send_shots()
        self.writer.put(pipes.frame(FrameType.END))

    def read(self, on_results: OnResults, on_answer: OnAnswer) -> None:
        """Take in what the firer says, in the order in which it says it."""
        for kind, payload in self.reader.read():
            if kind == FrameType.RESULTS:
                on_results(payload)
            elif kind == FrameType.ANSWER:
                serial, length = pipes.ANSWER.unpack_from(payload)
                middle = pipes.ANSWER.size + length
                on_answer(serial, payload[pipes.ANSWER.size : middle], payload[middle:])
            elif kind == FrameType.GAUGE:
                self.gauge = msgspec.msgpack.decode(payload, type=Gauge)
            elif kind == FrameType.READY:
                self.ready = True
            elif kind == FrameType.BYE:
                self.bye = payload.decode()

    def close(self) -> None:
        """The firer ends when its stdin closes; one that does not is killed."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.close()
        except OSError:
            pass
        try:
            self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
