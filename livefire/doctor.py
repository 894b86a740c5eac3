"""What this machine can do, and what to do about each lack."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from bus.address import KafkaSecurity, is_kafka, parse_kafka
from bus.ports import BusError
from capture import doctor as capture_doctor
from livefire import keyring
from wire.config import ConfigError

_WANTED_FILES = 8_192  # the default cap of open shots, several times
_WANTED_DISK = 2 << 30


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. `mend` is what to do, "" when it is fine."""

    name: str
    fine: bool
    detail: str
    mend: str = ""


def examine(runs: Path, keys: Path, bus: str = "", security: KafkaSecurity | None = None) -> list[Finding]:
    """All findings, in the order in which a user meets them: recording, firing, results, and the bus that is set."""
    recording = [Finding(found.name, found.good, found.says, found.remedy) for found in capture_doctor.findings()]
    checks: Iterable[Callable[[], Finding]] = (
        _open_files,
        _timer,
        lambda: _disk(runs),
        lambda: _keys(keys),
        lambda: _extra("aiohttp", "livefire[mock]", "the mock of third parties"),
        lambda: _extra("sqlalchemy", "livefire[sql]", "counting stress writes by SQL"),
        lambda: _extra("bokeh", "livefire[report]", "the report page"),
        lambda: _extra("kafka", "livefire[kafka]", "a bus on Kafka"),
        lambda: _extra("faust", "livefire[faust]", "cleansing what comes over Kafka"),
        lambda: _extra("clickhouse_driver", "livefire[clickhouse]", "windows in ClickHouse"),
        lambda: _extra("elasticsearch", "livefire[elasticsearch]", "windows in Elasticsearch"),
    )
    return [_python(), *recording, *(check() for check in checks), *([_bus(bus, security)] if is_kafka(bus) else [])]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    fine = sys.version_info >= (3, 11)
    return Finding("python", fine, version, "" if fine else "install Python 3.11 or newer")


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fine = soft >= _WANTED_FILES
    raised = f"ulimit -n {min(hard, _WANTED_FILES)}" if hard > soft else "raise nofile in /etc/security/limits.conf"
    return Finding(
        "open files", fine, f"{soft:,} allowed, {hard:,} at most",
        "" if fine else f"every open shot holds a connection; for more than {max(soft - 100, 0):,} of them: {raised}",
    )  # fmt: skip


def timer_jitter_us(samples: int = 300) -> tuple[float, float]:
    """How late this machine wakes a process that slept 1 ms: median and 99th percentile, in microseconds."""
    late = []
    for _ in range(samples):
        due = time.perf_counter_ns() + 1_000_000
        time.sleep(0.001)
        late.append((time.perf_counter_ns() - due) / 1000)
    late.sort()
    return late[len(late) // 2], late[int(len(late) * 0.99)]


def _timer() -> Finding:
    middle, high = timer_jitter_us()
    fine = high < 2000
    mend = "other work takes the processors: send errors will be of this size; fire from a quieter machine"
    return Finding("timer", fine, f"wakes {middle:.0f} us late (median), {high:.0f} us (p99)", "" if fine else mend)


def _disk(runs: Path) -> Finding:
    folder = runs if runs.exists() else Path()
    free = shutil.disk_usage(folder).free
    writable = os.access(folder, os.W_OK)
    if not writable:
        return Finding("runs folder", False, f"{runs} cannot be written", "choose another: livefire --runs DIR")
    fine = free >= _WANTED_DISK
    mend = "" if fine else "a recording of 1,000 requests/s takes about 1 GB an hour: free some room"
    return Finding("runs folder", fine, f"{runs}, {free / 1e9:.1f} GB free", mend)


def _keys(path: Path) -> Finding:
    try:
        ring = keyring.load(path)
    except ConfigError as error:
        return Finding("keys", False, str(error).partition(";")[0], "livefire keys new")
    return Finding("keys", True, f"{path}, signs with {ring.marker.id}")


def _bus(address: str, security: KafkaSecurity | None) -> Finding:
    try:
        from bus.kafka_topics import Topics

        with Topics(parse_kafka(address), security) as topics:
            wrong = [finding for finding in topics.check() if finding.problem]
    except (BusError, ImportError) as error:
        return Finding(
            "bus", False, str(error), "--bus ADDRESS, LIVEFIRE_BUS or `bus:` in livefire.yaml say where it is"
        )
    said = f"{len(wrong)} topics do not fit" if wrong else "all topics are there"
    return Finding("bus", not wrong, f"{address}: {said}", f"livefire topics check --bus {address}" if wrong else "")


def _extra(module: str, extra: str, use: str) -> Finding:
    fine = importlib.util.find_spec(module) is not None
    return Finding(module, fine, use if fine else f"absent; needed for {use}", "" if fine else f"pip install '{extra}'")
