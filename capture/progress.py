"""How far a recorder is."""

from __future__ import annotations

import msgspec


class Progress(msgspec.Struct, frozen=True):
    """Told once a second, and once before the first packet."""

    elapsed_ns: int
    source: str  # "ring on lo (32 MB)"
    why: str  # why this source
    exchanges: int  # written or queued so far, by this process
    exchanges_per_s: float  # over the last second
    connections: int  # open now
    file_bytes: int
    lost_packets: int  # that the kernel had no room for
    shed: int  # messages and bytes' worth of connections that were given up here, see the account
    recording_id: str
    waiting_bytes: int = 0  # in the spool, till the bus takes them
    away: bool = False  # the bus cannot be reached now
    written_bytes: int = 0  # so far; those that were removed too
    blind_ns: int = -1  # it goes on with what a killed recorder left: how long nobody looked; -1: it began anew
    full: bool = False  # the disk has no room now
    unreached: int = 0  # connections whose upstream could not be reached, of a proxy
