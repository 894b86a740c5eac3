"""What the front tells a drill beside its plan."""

from __future__ import annotations

from pathlib import Path

import msgspec

from bus.address import KafkaSecurity


class DrillSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`key_id` and `key_hex` sign the markers; services must trust them. Times in ns."""

    runs_dir: Path
    key_id: str
    key_hex: str
    run_id: str = ""  # "" = a new ULID
    disposable_target: bool = False  # unsafe requests may be fired without a proof
    refused_sources: tuple[str, ...] = ()  # where the recording was captured; the plan's target is named, so allowed
    ready_ns: int = 20_000_000_000  # how long workers may take to give their first sign of life
    lead_ns: int = 1_500_000_000  # a step is announced this long before it takes effect
    tick_ns: int = 50_000_000
    poll_ns: int = 200_000_000  # panes, and with them the guard's windows
    window_s: int = 1  # how often a live line is told
    proof_ns: int = 2_000_000_000  # isolation is looked at again this often while the load is on
    canary_ns: int = 30_000_000_000  # canaries that take longer are given up
    enough_fidelity: float = 0.8
    bus: str = ""  # address of the fleet's bus; "" = workers are processes of this machine
    security: KafkaSecurity | None = None
    ask_ns: int = 5_000_000_000  # how long idle workers may take to be heard
    fetch_s: float = 60.0  # how long the recording may take to be whole
