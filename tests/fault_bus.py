"""Kills and freezes a real Kafka broker under a writer and a reader, puts messages into a stream that nobody should
have written, and asks with a wrong password.

Writer and reader have a bus of their own each, as two processes of a fleet have. The witness is what the writer was
told: a number counts as acknowledged once `write_many` has returned.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from fault_checks import SECOND, Tally, until
from servers.kafka import Kafka
from servers.process import Missing

from bus.address import KafkaSecurity, open_bus, parse_kafka
from bus.kafka_layout import kafka_topic, key_of, partition_of
from bus.kafka_topics import Topics, Wanted
from bus.ports import Bus, BusAway, BusError, Reader
from bus.topic import TopicReader
from wire import codec
from wire.records import Drop, End, Manifest

PREFIX: Final = "faults"
SCOPE: Final = "run-1"
TOPIC: Final = "outcomes"
PARTITIONS: Final = 8
COMMIT_S: Final = 15.0  # from a broker that answers again to the first message that it acknowledges
#: A read says within a second that nobody answers, a write within two (`bus.ports`). Cores that other faults keep busy make
#: that several times as long; what hangs does so for minutes.
CALL_S: Final = 10.0
_HELD_S: Final = 4.0  # longer than a writer's hold lasts without being renewed
_LARGE: Final = 10 << 20


def address_of(broker: Kafka, listener: str = "PLAINTEXT") -> str:
    return f"kafka://{broker.addresses[listener]}/{PREFIX}"


def make_topics(broker: Kafka) -> None:
    with Topics(parse_kafka(address_of(broker))) as topics:
        bad = [finding for finding in topics.create(Wanted(partitions=PARTITIONS)) if finding.problem]
    assert not bad, bad


@contextmanager
def opened(broker: Kafka, scope: str = SCOPE) -> Iterator[Bus]:
    bus = open_bus(address_of(broker), scope)
    try:
        yield bus
    finally:
        bus.close()


def manifest(partition: str, scope: str = SCOPE) -> Manifest:
    return Manifest(TOPIC, partition, scope, 5, "test")


def batch(number: int) -> bytes:
    return codec.encode((Drop("stage", "late", False, number),), first_ns=number, last_ns=number)


def number_of(data: bytes) -> int:
    return int(codec.decode(data).records[0].count)


# ---------------------------------------------------------------------------- a writer and a reader


class Worker(threading.Thread):
    """Does its work again and again while the bus is away. `moved_at`: when something was done last (monotonic)."""

    def __init__(self, broker: Kafka) -> None:
        super().__init__(daemon=True)
        self.broker = broker
        self.moved_at = 0.0
        self.longest_s = 0.0  # of any one call
        self.away = 0  # calls that ended in BusAway
        self.error = ""

    def run(self) -> None:
        try:
            with opened(self.broker) as bus:
                self.work(bus)
        except BusError as error:
            self.error = f"{type(self).__name__}: {error}"

    def work(self, bus: Bus) -> None:
        raise NotImplementedError

    def patiently(self, call: Callable[..., Any], *args: Any) -> Any:
        while True:
            begun = time.monotonic()
            try:
                return call(*args)
            except BusAway:
                self.away += 1
                time.sleep(0.02)
            finally:
                self.longest_s = max(self.longest_s, time.monotonic() - begun)


class Writing(Worker):
    """Writes numbers from 0 on, one a message, sometimes many at once, until it is told that it is over."""

    def __init__(self, broker: Kafka, partition: str, seed: int) -> None:
        super().__init__(broker)
        self.partition, self.over = partition, threading.Event()
        self.asked = self.done = 0
        self._rng = random.Random(seed)

    def work(self, bus: Bus) -> None:
        writer = self.patiently(bus.writer, TOPIC, self.partition, manifest(self.partition))
        while not self.over.wait(0.004):
            self.asked = self.done + self._rng.choice((1, 1, 5, 50))
            self.patiently(writer.write_many, [batch(number) for number in range(self.done, self.asked)])
            self.done = self.asked
            self.moved_at = time.monotonic()
        self.patiently(writer.end, End(SCOPE, self.partition, self.done, 0, 0))


class Reading(Worker):
    """Reads them, until the end mark."""

    def __init__(self, broker: Kafka, partition: str) -> None:
        super().__init__(broker)
        self.partition = partition
        self.numbers: list[int] = []
        self.fenced = self.repeats = 0

    def work(self, bus: Bus) -> None:
        while self.partition not in self.patiently(bus.partitions, TOPIC):
            time.sleep(0.02)
        reader: Reader = self.patiently(bus.reader, TOPIC, self.partition)
        while not reader.ended:
            messages = self.patiently(reader.read)
            for message in messages:
                glance = codec.glance(message.data)
                if glance is not None and glance.type == codec.RecordType.DROP:
                    self.numbers.append(number_of(message.data))
            if messages:
                self.moved_at = time.monotonic()
            else:
                time.sleep(0.02)
        self.fenced, self.repeats = getattr(reader, "fenced", 0), getattr(reader, "repeats", 0)


class Load:
    """Two streams in two Kafka partitions, each with its writer and its reader."""

    def __init__(self, broker: Kafka, seed: int) -> None:
        names = ("a.0", "a.3")
        self.writing = [Writing(broker, name, seed + at) for at, name in enumerate(names)]
        self.reading = [Reading(broker, name) for name in names]
        self.workers: list[Worker] = [*self.writing, *self.reading]

    def __enter__(self) -> Load:
        for worker in self.workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        for writing in self.writing:
            writing.over.set()

    def errors(self) -> list[str]:
        return [worker.error for worker in self.workers if worker.error]

    def in_flight(self) -> bool:
        return any(writing.asked > writing.done for writing in self.writing)

    def moves_again(self, since: float) -> float | None:
        """Seconds from `since` (monotonic) until each worker has moved; None when one does not."""
        try:
            until(
                lambda: self.errors() or all(worker.moved_at > since for worker in self.workers), COMMIT_S, "no commit"
            )
        except AssertionError:
            return None
        return time.monotonic() - since

    def end(self) -> list[str]:
        """Ends both streams and says all that does not hold."""
        for writing in self.writing:
            writing.over.set()
        for worker in self.workers:
            worker.join(60)
        problems = self.errors()
        for writing, reading in zip(self.writing, self.reading, strict=True):
            if writing.is_alive() or reading.is_alive():
                problems.append(f"{writing.partition}: does not come to its end")
            else:
                problems += stream_problems(writing.partition, writing.done, reading.numbers)
        problems += [
            f"{type(worker).__name__} {worker.partition}: one call took {worker.longest_s:.1f} s"
            for worker in (*self.writing, *self.reading)
            if worker.longest_s > CALL_S
        ]
        return problems


def stream_problems(name: str, acknowledged: int, read: Sequence[int]) -> list[str]:
    """`acknowledged`: numbers 0 .. n - 1 were. `read`: what came, in its order."""
    times = Counter(read)
    problems = []
    if lost := [number for number in range(acknowledged) if not times[number]]:
        problems.append(f"{name}: {len(lost)} of {acknowledged} acknowledged are lost: {lost[:5]}")
    if twice := [number for number, count in times.items() if count > 1]:
        problems.append(f"{name}: {len(twice)} came twice: {twice[:5]}")
    if made_up := [number for number in times if number >= acknowledged]:
        problems.append(f"{name}: came, and never acknowledged: {made_up[:5]}")
    if not problems and list(read) != sorted(read):
        problems.append(f"{name}: came in another order")
    return problems


def _kept(fault: Callable[[Tally, int], None], wanted: int, seed: int) -> Tally:
    tally = Tally(wanted=wanted)
    try:
        fault(tally, seed)
    except Missing as missing:
        return Tally(skipped=str(missing))
    return tally


# ---------------------------------------------------------------------------- the broker dies, or stands still


def _back(load: Load, tally: Tally, what: str, in_flight: bool) -> None:
    """The broker answers again, from now on."""
    took_s = load.moves_again(time.monotonic())
    problems = [f"{what}: no commit within {COMMIT_S:.0f} s"] if took_s is None else []
    tally.add(
        hit=True, in_flight=in_flight, problems=problems, last_ns=None if took_s is None else int(took_s * SECOND)
    )


def _kills(tally: Tally, seed: int) -> None:
    rng = random.Random(seed)
    with Kafka() as broker:
        make_topics(broker)
        with Load(broker, seed) as load:
            if load.moves_again(0.0) is None:
                tally.problems.append("nothing moves before the first kill")
            for number in range(tally.wanted):
                time.sleep(rng.uniform(0.0, 1.0))  # the instant, not a wait for something
                in_flight = load.in_flight()
                broker.kill()
                if number % 5 == 3:
                    time.sleep(_HELD_S)  # holds lapse
                if number % 5 == 4:
                    broker.launch()
                    time.sleep(rng.uniform(0.5, 3.0))
                    broker.kill()  # while it looks through what the first kill left
                broker.start()
                _back(load, tally, f"seed {seed}, kill {number}", in_flight)
            tally.problems += load.end()


def kills(count: int, seed: int) -> Tally:
    """`count` kills of one broker, under load all along."""
    return _kept(_kills, count, seed)


def _freezes(tally: Tally, seed: int, seconds: float) -> None:
    rng = random.Random(seed)
    with Kafka() as broker:
        make_topics(broker)
        with Load(broker, seed) as load:
            load.moves_again(0.0)
            for number in range(tally.wanted):
                time.sleep(rng.uniform(0.0, 1.0))
                before = [worker.away for worker in load.workers]
                in_flight = load.in_flight()
                broker.freeze()
                time.sleep(seconds)
                said = [worker.away - away for worker, away in zip(load.workers, before, strict=True)]
                broker.thaw()
                if min(said) < seconds / CALL_S / 2:
                    tally.problems.append(f"seed {seed}, freeze {number}: told {said} times that the bus is away")
                _back(load, tally, f"seed {seed}, freeze {number}", in_flight)
            tally.problems += load.end()


def freezes(count: int, seed: int) -> Tally:
    """10 s, once; where many are asked for, 60 s, three times."""
    many = count > 20
    return _kept(lambda tally, seed: _freezes(tally, seed, 60.0 if many else 10.0), 3 if many else 1, seed)


# ---------------------------------------------------------------------------- what nobody should have written


def corrupt(whole: bytes, rng: random.Random) -> bytes:
    """One byte is another, so that it shows: a batch has no checksum of its own, Kafka's batches and files' frames do."""
    while True:
        at = rng.randrange(4, len(whole))  # the type stays: an end mark would be one
        data = whole[:at] + bytes((whole[at] ^ 0xFF,)) + whole[at + 1 :]
        try:
            codec.decode(data)
        except codec.CodecError:
            return data


def strange(rng: random.Random) -> dict[str, bytes]:
    """Messages that are no batches of this version, by what is wrong with them."""
    whole = codec.encode([Drop("stage", "late", False, number) for number in range(200)])
    return {
        "corrupt": corrupt(whole, rng),
        "truncated": whole[: rng.randrange(1, len(whole) - 1)],
        "of a future version": whole[:2] + bytes((codec.VERSION + 1,)) + whole[3:],
        "of 10 MB": rng.randbytes(1 << 20) * (_LARGE >> 20),
        "foreign": b'{"Req_URL": "/"}',
    }


def _strangers(tally: Tally, seed: int) -> None:
    from kafka import KafkaProducer
    from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
    from kafka.errors import MessageSizeTooLargeError

    with Kafka({"message.max.bytes": 2 * _LARGE, "replica.fetch.max.bytes": 2 * _LARGE}) as broker:
        make_topics(broker)
        topic = kafka_topic(PREFIX, TOPIC)
        admin = KafkaAdminClient(bootstrap_servers=broker.address)
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": str(2 * _LARGE)})])
        admin.close()
        # Not an idempotent one: after one refusal the driver would refuse all that follows with the same words.
        producer = KafkaProducer(
            bootstrap_servers=broker.address, max_request_size=2 * _LARGE, enable_idempotence=False
        )
        for number in range(tally.wanted):
            scope, rng = f"run-{number}", random.Random(seed + number)

            def stranger(data: bytes | None, scope: str = scope) -> None:
                key = key_of(scope, TOPIC, "w0")
                deadline = time.monotonic() + 20
                while True:
                    try:
                        producer.send(topic, data, key, partition=partition_of("w0", PARTITIONS)).get(20)
                        return
                    except MessageSizeTooLargeError:  # the broker does not go by the topic's new bound yet
                        if time.monotonic() > deadline:
                            raise

            with opened(broker, scope) as bus:
                problems = stranger_problems(bus, scope, strange(rng), stranger, rng)
            tally.add(hit=True, in_flight=True, problems=[f"seed {seed + number}: {text}" for text in problems])
        producer.close(timeout=1)


def stranger_problems(
    bus: Bus, scope: str, wrong: Mapping[str, bytes], put: Callable[[bytes | None], None], rng: random.Random
) -> list[str]:
    """Strange messages among good ones: the good ones come all, in order; each of the others is counted."""
    problems = []
    count = 60
    places = {name: rng.randrange(count) for name in wrong}
    nothing_at = rng.randrange(count)
    writer = bus.writer(TOPIC, "w0", manifest("w0", scope))
    for number in range(count):
        writer.write(batch(number))
        for name, place in places.items():
            if place == number:
                put(wrong[name])
        if nothing_at == number:
            put(None)  # what a compacted topic forgets by; it says nothing
    try:
        writer.write(bytes(_LARGE))
        problems.append("10 MB were written")
    except BusError as error:
        if isinstance(error, BusAway) or "at most" not in str(error) or "\n" in str(error):
            problems.append(f"10 MB are refused with {error!r}")
    writer.end(End(scope, "w0", count, 0, 0))
    reader, numbers = TopicReader(bus, TOPIC), []
    deadline = time.monotonic() + 30
    while not reader.ended and time.monotonic() < deadline:
        for _, found in reader.batches():
            numbers += [record.count for record in found.records if isinstance(record, Drop)]
    if not reader.ended:
        problems.append(f"it stalls behind {numbers[-1:]}")
    reader.close()
    if numbers != list(range(count)):
        problems += stream_problems("w0", count, numbers) or ["out of order"]
    if reader.unreadable != len(wrong):
        problems.append(f"{reader.unreadable} of {len(wrong)} strange messages are counted")
    return problems


def strangers(count: int, seed: int) -> Tally:
    """Corrupt, truncated, 10 MB, future version, foreign: in a stream that is being written."""
    return _kept(_strangers, count, seed)


# ---------------------------------------------------------------------------- the wrong password

_SAFE: Final = {
    "listener.name.safe.sasl.enabled.mechanisms": "SCRAM-SHA-256",
    "listener.name.safe.scram-sha-256.sasl.jaas.config": (
        "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    ),
}


def _passwords(tally: Tally, seed: int) -> None:
    rng = random.Random(seed)
    word = f"{rng.getrandbits(64):x}"
    with Kafka(_SAFE, listeners={"SAFE": "SASL_PLAINTEXT"}, scram={"anna": word}) as broker:
        make_topics(broker)
        for number in range(tally.wanted):
            for user, tried in (("anna", word[:-1] + "!"), ("otto", word)):
                problems = refused_problems(address_of(broker, "SAFE"), user, tried)
                tally.problems += [f"seed {seed}, try {number}, {user}: {text}" for text in problems]
            tally.add(hit=True, in_flight=True, problems=())
        if not refused_problems(address_of(broker, "SAFE"), "anna", word):
            tally.problems.append("the right password is refused, too")


def refused_problems(address: str, user: str, password: str) -> list[str]:
    """Each way in says in one line, soon, that it is the password."""
    security = KafkaSecurity(mechanism="SCRAM-SHA-256", user=user, password=password)

    def topics() -> None:
        Topics(parse_kafka(address), security).close()

    bus = open_bus(address, "run-p", security)
    ways: dict[str, Callable[[], object]] = {
        "topics": topics,
        "partitions": lambda: bus.partitions(TOPIC),
        "writer": lambda: bus.writer(TOPIC, "w0", manifest("w0", "run-p")),
    }
    problems = []
    for name, way in ways.items():
        for left in (2, 1, 0):
            begun = time.monotonic()
            try:
                way()
                problems.append(f"{name}: let in")
            except BusError as error:
                said = str(error)
                if left and isinstance(error, BusAway) and ("timed out" in said or "TimeoutError" in said):
                    continue  # the machine is too busy for an answer: that is no verdict
                if isinstance(error, BusAway) or "password" not in said or "\n" in said or password in said:
                    problems.append(f"{name}: {type(error).__name__}: {said}")
            if (took := time.monotonic() - begun) > CALL_S:
                problems.append(f"{name}: says so after {took:.1f} s")
            break
    bus.close()
    return problems


def passwords(count: int, seed: int) -> Tally:
    return _kept(_passwords, min(count, 5), seed)
