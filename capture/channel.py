"""A connection whose bytes arrive in order, with no packets around them: what a proxy passes on."""

from __future__ import annotations

from capture.connection import Connection
from capture.frames import PacketClock
from capture.ledgers import Ledgers


class Channel:
    __slots__ = ("_clock", "_connection", "_ledgers")

    def __init__(self, connection: Connection, clock: PacketClock, ledgers: Ledgers) -> None:
        self._connection = connection
        self._clock = clock
        self._ledgers = ledgers

    def data(self, from_client: bool, data: bytes, ts_ns: int) -> None:
        connection = self._connection
        side = connection.sides[0 if from_client else 1]
        self._clock.advance(ts_ns)
        self._ledgers.bytes.seen += len(data)
        if connection.closed or side.ended:
            self._ledgers.drop_bytes("after_close", len(data))
        elif data:
            connection.data(side, data, ts_ns)
            if connection.requests_only:
                connection.pairer.no_more_answers()

    def no_answers(self) -> None:
        """A mirror: only requests pass here, and each is complete when it is whole."""
        self._connection.requests_only = True
        self._ledgers.account.note("requests_only_connections")

    def closed(self, from_client: bool, ts_ns: int) -> None:
        """This direction has sent its last byte."""
        if not self._connection.closed:
            self._connection.end(self._connection.sides[0 if from_client else 1], ts_ns)

    def reset(self, ts_ns: int) -> None:
        """Both directions ended abruptly."""
        self._connection.was_reset = True
        self._connection.close(ts_ns, closed=True)
