"""What the parts of the fleet's bench stand on: servers, topics of their own, CPU and memory of processes, tables."""

from __future__ import annotations

import contextlib
import os
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from servers.clickhouse import ClickHouse
from servers.elasticsearch import Elasticsearch
from servers.kafka import Kafka
from servers.process import Missing, Server

from bus.address import KafkaAddress, open_bus
from bus.kafka_topics import Topics, Wanted
from bus.ports import Bus, BusAway

ROOT = Path(__file__).resolve().parent.parent
_TICKS = os.sysconf("SC_CLK_TCK")
_KINDS: dict[str, type[Server]] = {"kafka": Kafka, "clickhouse": ClickHouse, "elasticsearch": Elasticsearch}


class Place(NamedTuple):
    """Where a server listens, and its process; 0 = it runs on another machine."""

    address: str
    pid: int


class Servers:
    """Started when first asked for, unless the environment names a running one (LIVEFIRE_KAFKA and so on)."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._known: dict[str, Place] = {}

    def get(self, name: str) -> Place:
        """Raises Missing, with a line that says how to get it."""
        if name not in self._known:
            address = os.environ.get(f"LIVEFIRE_{name.upper()}", "").removeprefix("http://")
            if not address:
                address = self._stack.enter_context(_KINDS[name]()).address.removeprefix("http://")
            self._known[name] = Place(address, listener(int(address.rpartition(":")[2])))
        return self._known[name]

    def close(self) -> None:
        self._stack.close()


def listener(port: int) -> int:
    """The process that listens on a port of this machine; 0 where it cannot be told."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{words[9]}]")
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if any(os.readlink(fd) in inodes for fd in (process / "fd").iterdir()):
                    return int(process.name)
    return 0


@contextlib.contextmanager
def topics_of_its_own(server: str, partitions: int = 8) -> Iterator[KafkaAddress]:
    address = KafkaAddress((server,), f"bench-{secrets.token_hex(4)}")
    with Topics(address) as made:
        made.create(Wanted(partitions=partitions, retention_ms=3_600_000))
    try:
        yield address
    finally:
        with Topics(address) as made:
            made.delete()


def opened(address: KafkaAddress, scope: str, use: Callable[[Bus], Any]) -> Any:
    """`use(bus)`; again where a topic that was made just now has no leader yet."""
    for left in range(10, -1, -1):
        with contextlib.closing(open_bus(str(address), scope)) as bus:
            try:
                return use(bus)
            except BusAway:
                if not left:
                    raise
                time.sleep(0.3)


# ---------------------------------------------------------------------------- measuring


def cpu_s(pid: int) -> float:
    """User and system time of a process, threads included; 0 when it is gone, or is nobody's."""
    with contextlib.suppress(OSError, IndexError):
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / _TICKS
    return 0.0


def rss_mb(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
    return 0.0


_best = float("inf")


def slow() -> float:
    """CPU time of a fixed piece of work, beside the least that it took in this run."""
    global _best
    used = time.process_time()
    sum(n & 7 for n in range(300_000))
    used = time.process_time() - used
    _best = min(_best, used)
    return used / _best


class Cost(NamedTuple):
    """CPU us a unit of work: of ours, and of the server's process beside it."""

    us: float
    server_us: float = float("nan")


def cost_of(work: Callable[[], object], count: int, server: int = 0) -> Cost:
    """Of this process, all its threads."""
    theirs, ours = cpu_s(server), time.process_time()
    work()
    ours = time.process_time() - ours
    return Cost(ours / count * 1e6, (cpu_s(server) - theirs) / count * 1e6 if server else float("nan"))


class Row(NamedTuple):
    name: str
    costs: list[Cost]
    floor: list[float] | None = None  # of the same round each; None = it is one itself
    target: float = 0.0  # units a second of one core


def show(title: str, rows: Sequence[Row], slowness: Sequence[float]) -> None:
    """Medians, and the least. A ratio is that of medians: a neighbour slows both down."""
    print(f"\n{title}")
    print(f"{'':44}{'us median':>10}{'least':>7}{'a second, median':>18}{'best':>10}{'target':>10}{'x floor':>9}"
          f"{'server us':>11}")  # fmt: skip
    for name, costs, floor, target in rows:
        us = [cost.us for cost in costs]
        middle, least = statistics.median(us), min(us)
        server = statistics.median(cost.server_us for cost in costs)
        print(
            f"{name:44}{middle:10.2f}{least:7.2f}{1e6 / middle:18,.0f}{1e6 / least:10,.0f}"
            f"{f'{target:,.0f}' if target else '':>10}{f'{middle / statistics.median(floor):.2f}' if floor else '':>9}"
            f"{f'{server:.2f}' if server == server else '-':>11}"
            + ("" if not target or 1e6 / middle >= target else "  MISSED" if 1e6 / least < target else "  best only"),
            flush=True,
        )
    print(
        f"  {len(rows[0].costs)} rounds; the machine was {statistics.median(slowness):.2f} times as slow as at its best"
    )


def percentile(values: Sequence[float], q: float) -> float:
    """Nearest rank."""
    held = sorted(values)
    return held[max(0, -(-int(q * len(held) * 1000) // 1000) - 1)] if held else float("nan")


def skipped(section: str, missing: Missing) -> None:
    print(f"\n{section}: left out: {missing}", file=sys.stderr)
