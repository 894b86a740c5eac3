"""What a replay is told: by its user (ReplaySettings), and by the conductor to each worker (WorkerSettings)."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import msgspec

from bus.address import KafkaSecurity
from wire.config import ConfigError
from wire.ids import ulid_ms
from wire.records import Kind

SECOND_NS: Final = 1_000_000_000
DAY_NS: Final = 86_400 * SECOND_NS
MS_NS: Final = 1_000_000

LEASE_NS: Final = 3 * SECOND_NS
RENEW_NS: Final = SECOND_NS // 2
BEAT_NS: Final = SECOND_NS // 4
#: A step is announced at least this long before it takes effect, so that no worker has made shots beyond it.
LEAD_NS: Final = SECOND_NS // 2
#: The shots of this much due time are claimed together.
SLICE_NS: Final = 100 * MS_NS
#: How long before its first due time a slice is made.
AHEAD_NS: Final = 250 * MS_NS
#: What is still open after a stop is given up after this.
GRACE_NS: Final = SECOND_NS // 2
#: For so long is tried to write down what was done, while the bus is away.
AWAY_NS: Final = 60 * SECOND_NS

HostHeader = Literal["target", "recorded"]


class WorkerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One worker's part of a run: the first line on its stdin, as JSON. Times in ns, rates per second."""

    run_id: str
    run_dir: str  # the bus of the run is this folder, where `bus` names none
    worker: str  # names its partitions: "w0"
    index: int  # 0 <= index < workers
    workers: int
    recording: str  # path of a clean log file
    target: str  # http://host:port
    pinned: str = ""  # the address to connect to; "" = resolved by the worker, once
    named_sources: tuple[str, ...] = ()  # capture sources that may be fired at all the same
    refused_sources: tuple[str, ...] = ()  # "ip:port" or "ip": where the recording was captured
    speed: float = 1.0
    spread_ns: int = 0
    laps: int = 1  # 0 = until END or STOP
    lap_ns: int = 0  # length of a lap in recording time; 0 = surveyed by the worker
    max_rate: float = 5_000.0  # hard cap of this worker; 0 = nothing leaves
    max_open: int = 2_000
    timeout_ns: int = 10 * SECOND_NS
    late_ns: int = SECOND_NS  # a shot that could not leave within this of its time is shed
    lease_ns: int = LEASE_NS
    key_id: str
    key_hex: str
    marker_lifetime_s: int = 60
    accounts: str = ""  # CSV of seeded accounts
    kind: Kind = Kind.STRESS
    allow_unsafe: bool = False
    skip_unsafe: bool = False
    host: HostHeader = "target"
    length_tolerance: float = 0.1
    bus: str = ""  # address of the bus that the run is on
    security: KafkaSecurity | None = None  # how its machine is known there
    fetch: str = ""  # name of a recording on the bus, which is copied to `recording` first
    mask_hex: str = ""  # the key that masks exemplars; "" = none are kept


class ReplaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One finite replay. Caps are of all workers together. The user's file or flags, with the front's additions."""

    recording: Path
    target: str
    runs: Path  # the folder that run directories are made in
    key_id: str
    key_hex: str
    run_id: str = ""  # "" = a new one
    speed: float = 1.0
    copies: float = 1.0
    spread_ns: int = 10 * SECOND_NS
    laps: int = 1
    workers: int = 1
    max_rate: float = 5_000.0
    max_open: int = 2_000
    timeout_ns: int = 10 * SECOND_NS
    late_ns: int = SECOND_NS
    lease_ns: int = LEASE_NS
    accounts: Path | None = None
    allow_unsafe: bool = False  # an isolation proof, or a target declared disposable
    skip_unsafe: bool = False
    allowed_targets: tuple[str, ...] = ()  # host, host:port, address or CIDR; () = the target itself
    named_sources: tuple[str, ...] = ()
    refused_sources: tuple[str, ...] = ()
    host: HostHeader = "target"
    marker_lifetime_s: int = 60
    length_tolerance: float = 0.1


def check_plan(settings: WorkerSettings) -> None:
    """Of a plan that came over a bus: what it says may have been written by anybody, and its `run_id` names files.

    Raises ConfigError for what no drill asks for. Where it may fire, how fast and with which keys is not judged here.
    """
    try:
        ulid_ms(settings.run_id)
    except ValueError:
        raise ConfigError(f"{settings.run_id[:40]!r} is no id of a run") from None
    bounds: tuple[tuple[str, float, float, float], ...] = (
        ("workers", settings.workers, 1, 10_000),
        ("index", settings.index, 0, settings.workers - 1),
        ("speed", settings.speed, 1e-6, 1e6),
        ("spread_ns", settings.spread_ns, 0, DAY_NS),
        ("laps", settings.laps, 0, 1e9),
        ("lap_ns", settings.lap_ns, 0, 366 * DAY_NS),
        ("max_rate", settings.max_rate, 0, 1e7),
        ("max_open", settings.max_open, 1, 1e6),
        ("timeout_ns", settings.timeout_ns, 1, 3600 * SECOND_NS),
        ("late_ns", settings.late_ns, 0, 3600 * SECOND_NS),
        ("lease_ns", settings.lease_ns, 1, 10 * LEASE_NS),
        ("marker_lifetime_s", settings.marker_lifetime_s, 1, 3600),
        ("length_tolerance", settings.length_tolerance, 0, 1e6),
    )
    for name, value, low, high in bounds:
        if not low <= value <= high:
            raise ConfigError(f"its {name} is {value:g}: {low:g} to {high:g}")


def check(settings: ReplaySettings) -> None:
    """Raises ConfigError for what no run could be made of."""
    for name, value, low in (
        ("speed", settings.speed, 0.0),
        ("copies", settings.copies, 0.0),
        ("max_rate", settings.max_rate, 0.0),
        ("max_open", settings.max_open, 0),
        ("timeout", settings.timeout_ns, 0),
        ("workers", settings.workers, 0),
        ("laps", settings.laps, 0),
    ):
        if not value > low:
            raise ConfigError(f"{name} is {value}: it must be above {low:g}")
    if settings.spread_ns < 0:
        raise ConfigError("spread is below 0: it is the time over which copies are shifted (as in 10s)")
    if settings.max_open < settings.workers:
        raise ConfigError(f"max_open is {settings.max_open}: at least one for each of the {settings.workers} workers")
    if settings.workers > 64:
        raise ConfigError(f"workers is {settings.workers}: at most 64 on one machine (a worker uses two cores)")
    if not 0 < settings.marker_lifetime_s <= 3600:
        raise ConfigError(
            f"marker lifetime is {settings.marker_lifetime_s} s: 1 to 3600, as services refuse longer ones"
        )
