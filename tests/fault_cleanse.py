"""Kills Faust workers at random instants under load, lets others join and leave, and feeds them poison.

The witness is what was written into the raw topic. All of it must come out of the clean one: once, after repetitions are
dropped, and balanced.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from fault_checks import Tally, command, environment, until
from kafka import KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from servers.kafka import Kafka
from servers.process import Missing
from test_cleanse_app import exchange, write

from bus import kafka_layout as layout
from bus.address import open_bus, parse_kafka
from bus.kafka import KafkaBus
from bus.kafka_topics import Topics, Wanted
from bus.ports import BusAway
from cleanse import dead
from cleanse.app import cleanse
from replay.fetch import Fetched, fetch
from replay.recording import Recording
from wire import codec, topics
from wire.records import End, Exchange, Manifest

_T = TypeVar("_T")

NAME = "monday"
AGENTS = ("east", "west")
PARTITIONS = 8
CREATED_NS = 1_800_000_000_000_000_000


@contextmanager
def cluster(server: str) -> Iterator[str]:
    """An address of its own on a broker: its topics are made, and removed."""
    address = f"kafka://{server}/t{uuid.uuid4().hex[:10]}"
    with Topics(parse_kafka(address)) as made:
        kept_up(lambda: made.create(Wanted(partitions=PARTITIONS)))
        try:
            yield address
        finally:
            kept_up(made.delete)


def kept_up(ask: Callable[[], _T]) -> _T:
    """A broker that is slow, or has just come back, is asked again, with the same."""
    deadline = time.monotonic() + 40
    while True:
        try:
            return ask()
        except BusAway:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def learned_file(folder: Path) -> Path:
    """What workers are given: any clean recording does."""
    if not (folder / "clean.lf").exists():
        cleanse(write(folder / "raw.lf", [exchange(n) for n in range(5)]), folder / "clean.lf")
    return folder / "clean.lf"


class Worker:
    """`livefire cleanse --bus`, in a process of its own. Its stdin is its lifeline."""

    def __init__(self, folder: Path, address: str, name: str, *options: str) -> None:
        self.name = name
        self._log = folder / f"{name}.{uuid.uuid4().hex[:6]}.err"
        words = ("cleanse", "--bus", address, "--learned", learned_file(folder), "--worker", name, "--stdin-guard")
        with open(self._log, "wb") as err:
            self.process = subprocess.Popen(
                command(folder, *words, *options), stdin=subprocess.PIPE, stdout=err, stderr=err, cwd=folder,
                env=environment(),
            )  # fmt: skip

    def said(self) -> str:
        return self._log.read_text()

    def ready(self, seconds: float = 40) -> Worker:
        until(
            lambda: "livefire: ready" in self.said() or self.process.poll() is not None,
            seconds, f"worker {self.name} is not ready", self.said,
        )  # fmt: skip
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self, *, term: bool = False) -> int:
        """In peace: its stdin closes, or SIGTERM."""
        assert self.process.stdin is not None
        if term:
            self.process.terminate()
        else:
            self.process.stdin.close()
        return self.process.wait(30)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        if self.process.stdin is not None:
            self.process.stdin.close()


class Agents:
    """Two agents that deal batches over their streams, at a rate, until told to end."""

    def __init__(self, address: str, pause_s: float = 0.01, seed: int = 1) -> None:
        self.written: dict[bytes, Exchange] = {}
        self.batches = 0
        self._address, self._pause_s = address, pause_s
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._seed = seed
        self._threads = [threading.Thread(target=self._run, args=(n, agent)) for n, agent in enumerate(AGENTS)]

    def _run(self, number: int, agent: str) -> None:
        bus = open_bus(self._address, NAME)
        rng = random.Random(self._seed + number)
        streams = [f"{agent}.{k}" for k in range(PARTITIONS)]
        writers = [
            bus.writer(topics.RAW, name, Manifest(topics.RAW, name, NAME, CREATED_NS + number, "test", AGENTS))
            for name in streams
        ]
        counts = [0] * PARTITIONS
        made = 0
        while not self._over.is_set():
            batch = []
            for _ in range(rng.randint(1, 9)):
                batch.append(exchange((made << 4) | number, host=agent))
                made += 1
            turn = made % PARTITIONS
            writers[turn].write_records(batch)
            counts[turn] += len(batch)
            with self._lock:
                self.batches += 1
                self.written.update((one.exchange_id, one) for one in batch)
            self._over.wait(self._pause_s)
        for writer, stream, count in zip(writers, streams, counts, strict=True):
            writer.end(End(NAME, stream, count, 0, 0))
        bus.close()

    def __enter__(self) -> Agents:
        for thread in self._threads:
            thread.start()
        return self

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def __exit__(self, *_: object) -> None:
        self.end()


class Poisoner:
    """Writes what is no batch into a raw stream, past its writer: keyed, and without the header of one."""

    def __init__(self, address: str) -> None:
        self._to = parse_kafka(address)
        self._producer = KafkaProducer(
            bootstrap_servers=list(self._to.servers), compression_type="zstd", max_request_size=64 << 20
        )
        self.written: list[tuple[int, int, str]] = []  # partition, offset, kind

    def write(self, kind: str, stream: str = "east.3") -> None:
        whole = codec.encode([exchange(900_000_001), exchange(900_000_002)], compress=False)
        value = {
            "corrupt": whole[:-40] + b"\xff" * 40,
            "truncated": whole[: len(whole) // 2],
            "future": whole[:2] + b"\x63" + whole[3:],
            "large": b"\0" * (9 << 20),
        }[kind]
        partition = layout.partition_of(stream, PARTITIONS)
        future = self._producer.send(
            layout.kafka_topic(self._to.prefix, topics.RAW), value, layout.key_of(NAME, topics.RAW, stream),
            partition=partition,
        )  # fmt: skip
        self.written.append((partition, future.get(20).offset, kind))

    def close(self) -> None:
        self._producer.close()


def lag(address: str, group: str) -> int:
    """Messages of the raw topic whose cleansing is not committed."""
    to = parse_kafka(address)
    name = layout.kafka_topic(to.prefix, topics.RAW)
    bus = KafkaBus(to, "lag")
    admin = KafkaAdminClient(bootstrap_servers=list(to.servers))
    try:
        found = admin.list_group_offsets(group)
        committed = {at: said.offset for at, said in found.get(group, found).items() if at.topic == name}
        everywhere = [TopicPartition(name, number) for number in range(bus.spread(topics.RAW))]
        with bus.link.lock:
            ends = {at: bus.link.end(at) for at in everywhere}
        return sum(end - committed.get(at, 0) for at, end in ends.items())
    finally:
        admin.close()
        bus.close()


def problems_of(written: dict[bytes, Exchange], fetched: Fetched, clean: Path, unreadable: int = 0) -> list[str]:
    """What is wrong with a fetched recording, beside what was written into the raw topic."""
    problems = []
    found = Counter(stamped.exchange_id for stamped in Recording(clean).stamped())
    if lost := written.keys() - found.keys():
        problems.append(f"{len(lost)} of {len(written)} exchanges are lost")
    if twice := [one for one, times in found.items() if times > 1]:
        problems.append(f"{len(twice)} exchanges are there twice")
    if made_up := found.keys() - written.keys():
        problems.append(f"{len(made_up)} exchanges were never written")
    ledger = fetched.account.ledger("messages")
    if not fetched.account.balanced or ledger.in_flight:
        problems.append(f"the account does not balance: {ledger}")
    if (ledger.seen, ledger.emitted) != (len(written) + unreadable, len(written)):
        problems.append(f"{len(written)} were written, {unreadable} of them unreadable: {ledger}")
    if ledger.drops.get("unreadable", 0) != unreadable or ledger.drops.keys() - {"unreadable"}:
        problems.append(f"lost beside {unreadable} unreadable ones: {ledger.drops}")
    return problems


def letter_problems(address: str, written: Sequence[tuple[int, int, str]]) -> list[str]:
    """Each poison is a dead letter, once, and nothing else is one."""
    bus = open_bus(address, NAME)
    found = Counter(letter.dead.offset for letter in dead.letters(bus))
    messages = 0
    for stream in bus.partitions(topics.DEAD):
        reader = bus.reader(topics.DEAD, stream)
        while read := reader.read():
            messages += len(read)
    bus.close()
    wanted = Counter(offset for _, offset, _ in written)
    return (
        [] if found == wanted else [f"dead letters at {sorted(found)} ({messages} messages), wanted {sorted(wanted)}"]
    )


def kills(folder: Path, server: str, count: int, seed: int) -> Tally:
    """`count` kills of one of two cleansers; now and then a third one joins and leaves in peace, or poison comes."""
    tally, rng = Tally(wanted=count), random.Random(seed)
    kinds = ["corrupt", "truncated", "future", "large"]
    with cluster(server) as address:
        group = f"{parse_kafka(address).prefix}.cleanse"
        poison = Poisoner(address)
        workers = {name: Worker(folder, address, name) for name in ("c0", "c1")}
        third: Worker | None = None
        try:
            for worker in workers.values():
                worker.ready()
            with Agents(address, seed=seed) as agents:
                until(lambda: agents.batches > 20, 20, "nothing is written")
                for number in range(count):
                    if number % 3 == 1:
                        third = Worker(folder, address, f"c{2 + number}")
                    time.sleep(rng.uniform(0.2, 1.5))  # the instant, not a wait for something
                    if number < len(kinds) or rng.random() < 0.3:
                        poison.write(kinds[number % len(kinds)], rng.choice(("east.3", "west.6")))
                    name = rng.choice(sorted(workers))
                    hit = workers[name].process.poll() is None
                    behind = kept_up(lambda: lag(address, group))
                    workers[name].kill()
                    tally.add(hit=hit, in_flight=behind > 0, problems=[] if hit else [workers[name].said()[-300:]])
                    workers[name].close()
                    workers[name] = Worker(folder, address, name)
                    if number % 3 == 2 and third is not None:
                        third.ready()
                        third.end(term=bool(number % 2))
                        third.close()
                        third = None
            bus = open_bus(address, NAME)
            told = {worker.name: worker.said for worker in workers.values()}
            fetched = _fetched(bus, folder / "fetched.lf", told)
            bus.close()
            unreadable = sum(kind != "large" and kind != "future" and 2 for _, _, kind in poison.written)
            tally.problems += problems_of(agents.written, fetched, folder / "fetched.lf", unreadable)
            tally.problems += letter_problems(address, poison.written)
            for worker in workers.values():
                code = worker.end()
                if code:
                    tally.problems.append(f"worker {worker.name} ended with {code}: {worker.said()[-300:]}")
        finally:
            poison.close()
            for worker in (*workers.values(), *([third] if third else [])):
                worker.close()
    return tally


def _fetched(bus: object, to: Path, told: dict[str, Callable[[], str]]) -> Fetched:
    try:
        fetched = fetch(bus, NAME, to, deadline_s=90)  # type: ignore[arg-type]
    except Exception as error:
        raise AssertionError(f"{error}: {[f'{name}: {said()[-300:]}' for name, said in told.items()]}") from error
    assert fetched is not None
    return fetched


def cleanser_kills(count: int, seed: int) -> Tally:
    try:
        with Kafka() as broker, tempfile.TemporaryDirectory() as folder:
            return kills(Path(folder), broker.address, count, seed)
    except Missing as missing:
        return Tally(skipped=str(missing))
