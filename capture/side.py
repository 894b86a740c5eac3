"""One direction of a connection, and who owns connections."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from capture.http1 import Reader
from capture.message import Pair
from capture.reassemble import Piece, Stream
from capture.settings import CaptureSettings

if TYPE_CHECKING:
    from capture.connection import Connection


#: Who reads what comes next, where that is known; see `lane`. Numbers: what is compiled compares them at no cost.
WHOEVER: Final = 0
ASKED: Final = 1
ANSWERED: Final = 2
WENT_ON: Final = 3


class Host(Protocol):
    """Who owns connections."""

    settings: CaptureSettings
    busy: dict[Connection, None]  # whose count of what waits may have changed: entered by who changes it

    def drop_bytes(self, reason: str, count: int) -> None: ...

    def pair(self, connection: Connection, pair: Pair) -> None: ...

    def head(self) -> None: ...

    def keep(self, pair: Pair | None, count: int) -> bool: ...

    def gap(self, count: int) -> None: ...

    def other(self, protocol: str, port: str, name: str) -> None:
        """What a connection speaks that is no HTTP/1."""

    def note(self, name: str, count: int = 1) -> None: ...

    def holes(self, connection: Connection) -> None:
        """It waits for bytes: `sweep` it."""

    def over(self, connection: Connection) -> None:
        """Both directions have ended."""


NOTHING_HELD: deque[Piece] = deque(maxlen=0)  # for nearly all of them: an empty deque takes 600 bytes


class Side:
    """One direction, and who sends in it."""

    __slots__ = (
        "address", "connection", "ended", "expected", "far", "held", "held_bytes", "interface", "other", "reader",
        "reset", "seen", "step", "stream",
    )  # fmt: skip

    __deletable__ = ("connection", "other")  # for mypyc: see `Connection.release`

    other: Side

    def __init__(self, connection: Connection, address: str, stream: Stream, reader: Reader) -> None:
        self.connection = connection
        self.address = address
        self.stream = stream
        self.reader = reader
        self.interface: str | None = None  # the one that its packets are taken from
        self.seen = False
        self.ended = False
        self.held = NOTHING_HELD  # a piece of length 0 is the end
        self.held_bytes = 0
        self.far = -1  # the sequence number after a segment that was too far away
        #: A reset beyond what has been seen: its offset, where the stream stood then, when. It holds when nothing else
        #: comes, or what comes ends there.
        self.reset: tuple[int, int, int] | None = None
        # Known by `lane`, and by nobody else: the sequence number that comes next, with nothing held or waiting (-1:
        # that is not known), and who reads what comes then.
        self.expected = -1
        self.step = WHOEVER

    @property
    def lacks(self) -> bool:
        """Whether bytes of it were acknowledged that have not been seen. One more may be the FIN; not while the other
        direction waits for what it answers."""
        stream = self.stream
        return self.seen and stream.started and stream.acked > stream.next + (0 if self.other.held else 1)
