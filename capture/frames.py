"""Where packets come from: the port that every source of frames implements."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeAlias

#: ts_ns, captured bytes from the link header on, length on the wire, link type (LINKTYPE_*), interface.
#: A plain tuple: an object a packet would cost more than decoding it.
Frame: TypeAlias = tuple[int, bytes, int, int, str]


class Source(Protocol):
    """Frames in the order of their arrival, which is nearly, not exactly, the order of their times."""

    name: str

    def frames(self) -> Iterator[Frame]:
        """Every frame that is whole. Ends at the end of the input; called once."""

    @property
    def faults(self) -> dict[str, int]:
        """What could not be read, by reason: known once `frames` has ended."""


class PacketClock:
    """The time as packets tell it: the latest time seen. It never goes back."""

    __slots__ = ("now_ns",)

    def __init__(self) -> None:
        self.now_ns = 0

    def advance(self, ts_ns: int) -> int:
        if ts_ns > self.now_ns:
            self.now_ns = ts_ns
        return self.now_ns
