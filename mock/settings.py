"""What the mock is told."""

from __future__ import annotations

import msgspec


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where it listens, and what it answers from."""

    listen: str  # host:port
    recordings: tuple[str, ...]  # .lf files, of topic raw or clean
    service: str = "mock"  # its name in the audit
    servers: tuple[str, ...] = ()  # host:port as recorded (address or Host); () = every exchange of the recordings
    latency_factor: float = 1.0  # of the recorded time to the first byte; 0 = answer at once
    max_latency_s: float = 30.0
    max_answers: int = 50_000  # kept in memory; further ones are counted as surplus
    stdin_guard: bool = True  # stop when stdin closes
