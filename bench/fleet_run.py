"""A fleet at work on one machine: how soon a stop ends the load, and what memory each of its processes holds."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fault_checks import environment, until
from fleet import Fleet, Process
from http_target import Target
from kafka import KafkaConsumer, TopicPartition
from recordings import even
from servers.process import Missing, free_port

from bench.fleet_bed import Place, Servers, percentile, rss_mb, skipped, topics_of_its_own
from bench.fleet_carry import KEY, _learn, make
from bench.fleet_outcomes import database
from bus import kafka_layout as layout
from mask.masker import Masker
from wire import codec, topics
from wire.codec import RecordType

_RATE = 200.0
_SOME_BYTES = 40_000  # of the target's log: some hundred requests


@contextlib.contextmanager
def _fleet(kafka: Place, partitions: int = 8) -> Iterator[tuple[Fleet, str]]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-fleet-")))
        address = stack.enter_context(topics_of_its_own(kafka.address, partitions))
        target = stack.enter_context(Target(folder))
        yield (
            stack.enter_context(Fleet(folder, str(address), target)),
            layout.kafka_topic(address.prefix, topics.OUTCOMES),
        )


# ---------------------------------------------------------------------------- stop


def stops(kafka: Place, count: int) -> None:
    """Two standing workers fire one drill after another; each is stopped in the middle of its load."""
    from_start: list[float] = []
    from_written: list[float] = []
    took: list[float] = []
    with _fleet(kafka) as (fleet, topic):
        fleet.publish(even(400, _RATE, target="/item/1"))
        for name in ("w0", "w1"):
            fleet.worker(name)
        until(lambda: sum(b.state == "idle" for b in fleet.beats().values()) == 2, 40, "no idle workers")
        for number in range(count):
            log = fleet.target.log
            enough = log.stat().st_size + _SOME_BYTES
            drill = fleet.drill(seconds=60, name=f"drill{number}")
            until(lambda log=log, enough=enough: log.stat().st_size > enough, 60, "no load", drill.err)
            began = time.time_ns()
            done = subprocess.run(
                fleet.command("stop", "--all"),
                capture_output=True,
                text=True,
                env=environment(),
                check=True,
                timeout=30,
            )
            written = time.time_ns()
            assert "told to stop" in done.stdout, done.stdout
            drill.ended(60)
            fleet.processes.remove(drill)
            last = json.loads(log.read_text().rstrip().rpartition("\n")[2])["at_ns"]
            from_start.append((last - began) / 1e6)
            from_written.append(max(0.0, (last - written) / 1e6))
            took.append((written - began) / 1e6)
            until(lambda: sum(b.state == "idle" for b in fleet.beats().values()) == 2, 40, "no idle workers")
        booked = _booked_ms(kafka, topic)
    print(
        f"\nlivefire stop --all --bus -> last request in the target's log: {count} drills, {_RATE:g}/s, 2 workers; ms"
    )
    print(f"{'':44}{'p50':>8}{'p90':>8}{'p99':>8}{'max':>8}   target: p99 1000")
    for name, values in (
        ("from the command's start", from_start), ("(the command itself, start to end)", took),
        ("from the command's end", from_written), ("(a shot done -> its outcome on the bus)", booked),
    ):  # fmt: skip
        row = "".join(f"{percentile(values, q):8.0f}" for q in (0.5, 0.9, 0.99, 1.0))
        missed = name == "from the command's start" and percentile(values, 0.99) > 1000
        print(f"{name:44}{row}" + ("   MISSED" if missed else ""))


def _booked_ms(kafka: Place, topic: str) -> list[float]:
    """From an answer's end to the broker's time of the message that tells of it."""
    consumer = KafkaConsumer(bootstrap_servers=kafka.address, group_id=None, auto_offset_reset="earliest")
    parts = [TopicPartition(topic, part) for part in consumer.partitions_for_topic(topic) or ()]
    consumer.assign(parts)
    ends = consumer.end_offsets(parts)
    late = []
    while any(consumer.position(part) < ends[part] for part in parts):
        for records in consumer.poll(timeout_ms=500).values():
            for record in records:
                if record.value and codec.decode_header(record.value).type is RecordType.OUTCOME:
                    held = codec.decode(record.value).records
                    late += [record.timestamp - outcome.done_ns / 1e6 for outcome in held if outcome.status]
    consumer.close()
    return late


# ---------------------------------------------------------------------------- memory


class _Shoppers:
    """GETs through the recording proxy, `_RATE` a second, until closed."""

    def __init__(self, port: int) -> None:
        self._port, self._over = port, threading.Event()
        self.sent = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        due = time.monotonic()
        while not self._over.is_set():
            due += 1 / _RATE
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                connection.request("GET", f"/item/{self.sent % 5000}", headers={"Cookie": f"sid=s{self.sent // 8}"})
                connection.getresponse().read()
                self.sent += 1
            except (OSError, http.client.HTTPException):
                connection.close()
                self._over.wait(0.1)

    def close(self) -> None:
        self._over.set()
        self._thread.join(10)


def memory(servers: Servers, minutes: float) -> None:
    """All stages at once: a recorder behind which people shop, a cleanser, two workers, a drill, an aggregator."""
    kafka = servers.get("kafka")
    with contextlib.ExitStack() as stack:
        fleet, _ = stack.enter_context(_fleet(kafka))
        stores = ["--store", f"{fleet.folder}/stores/"]
        (fleet.folder / "stores").mkdir()
        try:
            stores += ["--store", stack.enter_context(database(servers.get("clickhouse")))]
        except Missing as missing:
            skipped("memory with ClickHouse", missing)
        known = fleet.folder / "learned.lf"
        masker = Masker(KEY)
        _learn([masker.exchange(exchange) for exchange in make(4000, False)], known)
        port = free_port()
        shown: dict[str, Process] = {}
        shown["recorder"] = fleet.start(
            "recorder", "record", "--recording", "live", "--agent", "a", "--proxy",
            f"127.0.0.1:{port}=127.0.0.1:{fleet.target.port}", "--spool", str(fleet.folder / "spool"), "--stdin-guard",
        )  # fmt: skip
        shown["cleanser"] = fleet.start(
            "cleanser", "cleanse", "--recording", "live", "--learned", str(known), "--worker", "c0", "--stdin-guard"
        )
        shown["aggregator"] = fleet.start("aggregator", "aggregate", *stores, "--stdin-guard")
        fleet.publish(even(400, _RATE, target="/item/1"))
        for name in ("w0", "w1"):
            shown[f"worker {name}"] = fleet.worker(name)
        shoppers = _Shoppers(port)
        stack.callback(shoppers.close)
        until(lambda: sum(b.state == "idle" for b in fleet.beats().values()) == 2, 40, "no idle workers")
        seconds = int(minutes * 60)
        held: dict[tuple[str, int], list[tuple[float, float]]] = {}  # name, pid -> minutes, MB
        begin, drills = time.monotonic(), 0
        while (left := seconds - (time.monotonic() - begin)) > 0:
            # A guard or a lease may end a drill before its time, on a busy machine: then the next one begins.
            drills += 1
            shown["drill"] = drill = fleet.drill(seconds=int(left) + 60, name=f"drill{drills}")
            until(lambda: _below(shown["worker w0"].pid) or shown["drill"].process.poll() is not None, 40, "no load")
            if drills == 1:
                time.sleep(15)  # what is made once has been made
                begin = time.monotonic()
            while (at := time.monotonic() - begin) < seconds and drill.process.poll() is None:
                for name, pid in _processes(shown):
                    held.setdefault((name, pid), []).append((at / 60, rss_mb(pid)))
                time.sleep(1)
            if drill.process.poll() is not None:
                why = next(
                    (line for line in drill.err().splitlines() if "lease" in line or "stop:" in line), "of itself"
                )
                print(f"drill {drills} ended after {at / 60:.1f} min: {why}", flush=True)
        shoppers.close()
        _show(held, minutes)  # before all is taken down


def _show(held: dict[tuple[str, int], list[tuple[float, float]]], minutes: float) -> None:
    print(
        f"\nRSS in MB over {minutes:g} min: {_RATE:g} exchanges/s recorded, {_RATE:g}/s replayed; "
        f"machine: load {os.getloadavg()[2]:.1f} on {os.cpu_count()} cores"
    )
    print(f"{'':24}{'minutes':>10}{'at first':>10}{'at last':>10}{'most':>10}{'slope, MB/min':>16}{'of 2nd half':>14}")
    for (name, _), looks in held.items():
        series = [(at, size) for at, size in looks if size]
        if len(series) > 20:
            sizes = [size for _, size in series]
            print(
                f"{name:24}{series[-1][0] - series[0][0]:10.1f}{sizes[0]:10.1f}{sizes[-1]:10.1f}{max(sizes):10.1f}"
                f"{_slope(series):16.2f}{_slope(series[len(series) // 2 :]):14.2f}"
            )


def _processes(shown: dict[str, Process]) -> list[tuple[str, int]]:
    """Each process by its name, and those below it: a worker's are the feeder and the firer."""
    found = []
    for name, process in shown.items():
        found.append((name, process.pid))
        found += [(f"{name}, {number}", pid) for number, pid in enumerate(_below(process.pid), 2)]
    return found


def _below(pid: int) -> list[int]:
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [below for child in map(int, words) for below in (child, *_below(child))]


def _slope(series: list[tuple[float, float]]) -> float:
    """Least squares."""
    n = len(series)
    mean_x, mean_y = sum(x for x, _ in series) / n, sum(y for _, y in series) / n
    return sum((x - mean_x) * (y - mean_y) for x, y in series) / sum((x - mean_x) ** 2 for x, _ in series)
