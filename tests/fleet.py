"""A fleet on one machine: the commands that its machines would run, over a bus, against a target with a log of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fault_checks import Line, environment, make_keys, until
from http_target import Target
from recordings import even, publish

from bus.address import KafkaAddress, open_bus
from bus.kafka_topics import Topics, Wanted
from bus.topic import TopicReader
from replay.away import patiently
from replay.hearing import FLEET
from wire import topics
from wire.codec import RecordType
from wire.records import Beat, Stamped


class Cluster:
    """Topics of a test's own in a running Kafka; removed in the end."""

    def __init__(self, server: str) -> None:
        self.address = KafkaAddress((server,), f"test-{uuid.uuid4().hex[:8]}")

    def __enter__(self) -> str:
        with Topics(self.address) as found:
            found.create(Wanted(partitions=2))
        return str(self.address)

    def __exit__(self, *_: object) -> None:
        with Topics(self.address) as found:
            found.delete()


class Process:
    """A `livefire` command. Its stdin is held open; what it says is in a file."""

    def __init__(self, fleet: Fleet, name: str, *arguments: str) -> None:
        self.name = name
        self._files = fleet.folder / f"{name}.out", fleet.folder / f"{name}.err"
        with open(self._files[0], "wb") as out, open(self._files[1], "wb") as err:
            self.process = subprocess.Popen(
                fleet.command(*arguments), stdin=subprocess.PIPE, stdout=out, stderr=err, cwd=fleet.folder,
                env=environment(),
            )  # fmt: skip
        self.pid = self.process.pid

    def out(self) -> str:
        return self._files[0].read_text()

    def err(self) -> str:
        return self._files[1].read_text()

    def ended(self, seconds: float = 90.0) -> int:
        """Its exit code, once it has ended by itself."""
        return self.process.wait(seconds)

    def let_go(self) -> None:
        """Close its stdin, which is what ends a worker."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def close(self) -> None:
        self.let_go()
        try:
            self.process.wait(12)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Fleet:
    """Use as a context manager: no process stays."""

    def __init__(self, folder: Path, address: str, target: Target) -> None:
        self.folder, self.address, self.target = folder, address, target
        self.recording = ""
        self.processes: list[Process] = []
        make_keys(folder)

    def command(self, *arguments: str) -> list[str]:
        base = (sys.executable, "-m", "livefire", "--runs", self.folder / "runs", "--keys", self.folder / "keys.json")
        return [*map(str, base), "--bus", self.address, *arguments]

    def publish(self, exchanges: Sequence[Stamped] | None = None) -> None:
        def attempt() -> None:
            """A topic that was made just now may have no leader yet."""
            self.recording = f"monday-{uuid.uuid4().hex[:6]}"
            with contextlib.closing(open_bus(self.address, self.recording)) as bus:
                publish(bus, self.recording, exchanges or even(200, 100.0, target="/sleep/20"))

        patiently(attempt, time.time_ns)

    def start(self, name: str, *arguments: str) -> Process:
        process = Process(self, name, *arguments)
        self.processes.append(process)
        return process

    def worker(self, name: str, *more: str, target: str = "") -> Process:
        return self.start(name, "worker", "--name", name, "--target", target or self.target.url, "--stdin-guard", *more)

    def drill(self, *, seconds: int = 4, workers: int = 2, more: str = "", name: str = "drill") -> Process:
        plan = self.folder / f"{name}.yaml"
        plan.write_text(
            f"recording: {self.recording}\ntarget: {self.target.url}\nspread: 500ms\nramp: 0s\nworkers: {workers}\n"
            f"steps: [{{load: 1x, for: {seconds}s}}]\nthresholds: [p50 < 10s over 1s]\n"
            f"caps: {{rate: 2000/s, open: 500}}\n{more}"
        )
        return self.start(name, "drill", str(plan), "--disposable-target", "--json")

    def result(self, drill: Process) -> dict[str, Any]:
        return dict(json.loads(drill.out()))

    def outcomes(self, run_id: str) -> list[Line]:
        done = subprocess.run(
            self.command("outcomes", run_id, "--json"), capture_output=True, text=True, env=environment(), timeout=60,
            check=True,
        )  # fmt: skip
        return [json.loads(line) for line in done.stdout.splitlines()]

    def until_load(self, count: int = 20, *processes: Process) -> None:
        """Until the target has had so many requests."""
        said = lambda: "\n".join(p.err() + p.out() for p in self.processes)  # noqa: E731
        until(lambda: len(self.target.requests()) >= count, 40, "no load", said)

    def beats_as(self, worker: str, **said: Any) -> bool:
        """Whether the worker's latest beat says this. One whose stream begins anew has none for a moment."""
        beat = self.beats().get(worker)
        return beat is not None and all(getattr(beat, name) == value for name, value in said.items())

    def beats(self) -> dict[str, Beat]:
        """The latest that each worker said on the scope `fleet`."""
        bus = open_bus(self.address, FLEET)
        try:
            found = {}
            since_ns = time.time_ns() - 5_000_000_000  # they have beaten for long
            for _, batch in TopicReader(bus, topics.BEATS, since_ns=since_ns).batches():
                if batch.header.type is RecordType.BEAT:
                    for beat in batch.records:
                        found[beat.worker] = beat
            return found
        finally:
            bus.close()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            process.close()
