"""Where packets come from: the port that every source of frames implements."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from struct import Struct
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from capture.lane import Lane

#: ts_ns, captured bytes from the link header on, length on the wire, link type (LINKTYPE_*), interface.
#: A plain tuple: an object a packet would cost more than decoding it.
Frame: TypeAlias = tuple[int, bytes, int, int, str]
Buffer: TypeAlias = bytes | mmap.mmap  # that holds frames; a slice of it is bytes

#: Of Ethernet, IPv4 without options, TCP, as bytes, so that it may stand behind numbers of either order: EtherType,
#: version and length; fragment and protocol; addresses and ports; sequence; acknowledgement and flags.
PARTS: Final = "12x6s2x4s2x12s4s6s"


class Sink(Protocol):
    """Who reads frames."""

    @property
    def lane(self) -> Lane | None:
        """Who reads most frames where they stand. Not a function: what is compiled calls its methods past objects."""

    def run(self, buffer: bytes, at: int, size: int, record: Struct, unit: int, most: int) -> tuple[int, int]:
        """Records of a pcap that go on with what the one before did; how many were read, and where the next begins.
        See `run.Runs.take`."""

    def packet(self, ts_ns: int, data: bytes, wire_len: int, linktype: int = 1, interface: str = "") -> None:
        """Any frame."""


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

    __slots__ = ("now_ns", "sweep_ns")

    def __init__(self) -> None:
        self.now_ns = 0
        self.sweep_ns = 0  # when it is time to give up what waits, see `Assembler.expire`

    def advance(self, ts_ns: int) -> int:
        if ts_ns > self.now_ns:
            self.now_ns = ts_ns
        return self.now_ns
