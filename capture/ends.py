"""How a connection ended, and what became of it: one row of the ledger `connections` each, and one note.

    ledger   seen = emitted (an exchange of it was recorded) + drops (why not) + in_flight (open)
    notes    connections.<how it ended>: their sum is what has ended; connections.midstream: of those, how many began
             before they were seen

What comes of a connection that had to go, or was idle, is a new one whose beginning was not seen.
"""

from __future__ import annotations

from typing import Final

from capture.connection import Connection
from capture.ledgers import Ledgers

IDLE: Final = "idle"  # no packet for longer than patience
EVICTED: Final = "evicted"  # it made room
REPLACED: Final = "replaced"  # its addresses are another connection's by now, and nobody saw it end
OPEN: Final = "open"  # when the recording ended
CLOSED, RESET = "closed", "reset"
HOW: Final = (CLOSED, RESET, IDLE, EVICTED, REPLACED, OPEN)
NOTES: Final = {how: f"connections.{how}" for how in HOW}
MIDSTREAM: Final = "connections.midstream"

RECORDED: Final = "recorded"
EMPTY: Final = "empty"  # not a byte of payload passed: a probe, a scan, a connection kept in reserve
NO_EXCHANGE: Final = "no_exchange"  # bytes, and nothing whole enough for an exchange: an answer's end, a lost request
_AS_BYTES: Final = {"h2c": "http2", "unknown": "not_http", "proxy_protocol": NO_EXCHANGE, "": NO_EXCHANGE}


def ended(connection: Connection, ledgers: Ledgers) -> None:
    """Count it; called once, when it is over."""
    how = connection.ended_by or (RESET if connection.was_reset else CLOSED)
    notes = ledgers.account.notes
    note = NOTES[how]
    notes[note] = notes.get(note, 0) + 1
    if connection.midstream:
        notes[MIDSTREAM] = notes.get(MIDSTREAM, 0) + 1
    became = connection.became
    if became == RECORDED:
        ledgers.connections.emitted += 1
        return
    if not became:
        became = EMPTY if connection.half_open else what_it_spoke(connection)
    ledgers.drop_connection(became)


def what_it_spoke(connection: Connection) -> str:
    name = connection.other.name if connection.other is not None else ""
    return _AS_BYTES.get(name, name)
