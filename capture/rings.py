"""Several interfaces, each with a ring of its own."""

from __future__ import annotations

import select
from collections.abc import Sequence

from bus.ports import BusError
from capture.source import PacketSink
from capture.source_ring import RingSource


class Rings:
    """What is read in turns; containers come and go, so an interface that is gone does not end it."""

    kernel_times = False

    def __init__(self, rings: Sequence[RingSource]) -> None:
        self._rings = list(rings)
        self._poll = select.poll()
        for ring in self._rings:
            self._poll.register(ring.fileno(), select.POLLIN | select.POLLERR)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(ring.interface for ring in self._rings)

    @property
    def described(self) -> str:
        return f"rings on {', '.join(self.inputs)} ({sum(ring.ring_bytes for ring in self._rings) >> 20} MB)"

    def feed(self, sink: PacketSink, timeout_s: float) -> int:
        """One block of each that has one. An interface that is gone is noted (`gone.<interface>`), and the others are
        read on. Raises BusError when the last one is gone."""
        taken = self._read(sink)
        if not taken and timeout_s and self._poll.poll(round(timeout_s * 1000)):
            taken = self._read(sink)
        return taken

    def _read(self, sink: PacketSink) -> int:
        taken = 0
        for ring in tuple(self._rings):
            try:
                taken += ring.feed(sink, 0)
            except BusError:
                if len(self._rings) == 1:
                    raise
                self._poll.unregister(ring.fileno())
                self._rings.remove(ring)
                ring.finish(sink)
                ring.close()
                sink.account.note(f"gone.{ring.interface}")
        return taken

    def count(self, sink: PacketSink) -> None:
        for ring in self._rings:
            ring.count(sink)

    def finish(self, sink: PacketSink) -> None:
        for ring in self._rings:
            ring.finish(sink)

    def close(self) -> None:
        for ring in self._rings:
            ring.close()
