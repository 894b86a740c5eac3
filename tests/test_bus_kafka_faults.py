"""A broker that dies, freezes, or does not know us: nothing lost, nothing twice, nothing hangs, one clear line."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers.fixtures import started
from servers.kafka import Kafka

from bus.address import KafkaAddress, KafkaSecurity
from bus.kafka import KafkaBus
from bus.kafka_topics import Topics, Wanted
from bus.ports import BusAway, BusError, Reader
from wire import codec, topics
from wire.records import Drop, End, Manifest

_JAAS = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_agent="right" user_reader="read";'
_BOUND_S = 20.0  # when no broker answers: what hangs does so for minutes, and busy cores make 2 s many


@pytest.fixture(scope="module")
def server() -> Iterator[Kafka]:
    def make() -> Kafka:
        return Kafka(
            {
                "listener.name.safe.sasl.enabled.mechanisms": "PLAIN",
                "listener.name.safe.plain.sasl.jaas.config": _JAAS,
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:ANONYMOUS;User:agent",
            },
            listeners={"SAFE": "SASL_PLAINTEXT"},
        )

    with started(make) as server:  # type: ignore[arg-type]
        yield server  # type: ignore[misc]


@pytest.fixture(autouse=True)
def up(server: Kafka) -> Iterator[None]:
    yield
    if not server.running:
        server.start()


@pytest.fixture(scope="module")
def address(server: Kafka) -> KafkaAddress:
    address = KafkaAddress((server.address,), "livefire")
    with Topics(address) as made:
        made.create(Wanted(partitions=4))
    return address


@pytest.fixture
def bus(address: KafkaAddress) -> Iterator[KafkaBus]:
    opened = KafkaBus(address, f"run-{uuid.uuid4().hex[:8]}")
    yield opened
    opened.close()


def manifest() -> Manifest:
    return Manifest(topics.OUTCOMES, "w0", "run-1", 5, "test")


def coded(number: int) -> bytes:
    return codec.encode([Drop("stage", "late", False, number)])


def numbers(reader: Reader) -> list[int]:
    """All that is there, however often the bus is away in between."""
    found = []
    deadline = time.monotonic() + 60
    while True:
        try:
            messages = reader.read()
        except BusAway:
            assert time.monotonic() < deadline
            continue
        if not messages:
            return found
        for message in messages:
            found += [record.count for record in codec.decode(message.data).records if isinstance(record, Drop)]


def until_there(call: Callable[[], object]) -> int:
    """Call until the bus is not away; how often it was."""
    deadline = time.monotonic() + 60
    away = 0
    while True:
        try:
            call()
        except BusAway:
            away += 1
            assert time.monotonic() < deadline, "the bus does not come back"
        else:
            return away


def until_stopped(pid: int) -> None:
    """A signal takes its time to reach all threads: until then it may still answer."""
    deadline = time.monotonic() + 30
    while any(
        task.read_text().rpartition(")")[2].split()[0] not in "tT" for task in Path(f"/proc/{pid}/task").glob("*/stat")
    ):
        assert time.monotonic() < deadline


def bounded(call: Callable[[], object]) -> str:
    """What a call says that must fail soon."""
    began = time.monotonic()
    with pytest.raises(BusAway) as away:
        call()
    assert time.monotonic() - began < _BOUND_S
    line = str(away.value)
    assert "\n" not in line and len(line) < 300
    return line


def test_a_broker_that_is_killed_and_comes_back_loses_nothing_and_gives_nothing_twice(
    server: Kafka, bus: KafkaBus
) -> None:
    writer = bus.writer(topics.OUTCOMES, "w0", manifest())
    reader = bus.reader(topics.OUTCOMES, "w0")
    away = 0
    found: list[int] = []
    for turn in range(2):
        killer = threading.Timer(0.05, server.kill)
        killer.start()
        for number in range(turn * 300, turn * 300 + 300):
            deadline = time.monotonic() + 60
            while True:
                try:
                    writer.write(coded(number))
                except BusAway:
                    away += 1
                    if not server.running:
                        server.start()
                    assert time.monotonic() < deadline
                else:
                    break
        killer.join()
        if not server.running:
            server.start()
        found += numbers(reader)
    assert found == list(range(600))
    assert away, "no write met the broker's death: the test shows nothing"
    many = [coded(number) for number in range(600, 900)]
    server.kill()
    bounded(lambda: writer.write_many(many))
    server.start()
    until_there(lambda: writer.write_many(many))
    until_there(lambda: writer.end(End("run-1", "w0", 900, 0, 0)))
    assert numbers(reader) == list(range(600, 900)) and reader.ended
    again = bus.reader(topics.OUTCOMES, "w0")
    assert numbers(again) == list(range(900))


def test_a_frozen_broker_makes_nobody_wait_for_long(server: Kafka, bus: KafkaBus, address: KafkaAddress) -> None:
    writer = bus.writer(topics.OUTCOMES, "w0", manifest())
    writer.write(coded(0))
    reader = bus.reader(topics.OUTCOMES, "w0")
    assert numbers(reader) == [0]
    server.freeze()
    try:
        until_stopped(server.pid)
        for _ in range(3):  # also those that come upon the ruins of the first
            began = time.monotonic()
            with pytest.raises(BusAway):
                reader.read()
            assert time.monotonic() - began < _BOUND_S
        for call in (
            lambda: writer.write(coded(1)),
            lambda: writer.write(coded(1)),
            lambda: bus.partitions(topics.OUTCOMES),
            lambda: bus.reader(topics.OUTCOMES, "w0"),
            lambda: bus.writer(topics.OUTCOMES, "w1", manifest()),
            lambda: bus.held(topics.OUTCOMES, "w0"),
            lambda: KafkaBus(address, "another").partitions(topics.OUTCOMES),
        ):
            bounded(call)
        began = time.monotonic()
        bus_closed = KafkaBus(address, "another")
        bus_closed.close()
        assert time.monotonic() - began < _BOUND_S
    finally:
        server.thaw()
    until_there(lambda: writer.write(coded(1)))
    until_there(lambda: writer.write_many([coded(2), coded(3)]))
    assert numbers(reader) == [1, 2, 3]
    assert numbers(bus.reader(topics.OUTCOMES, "w0")) == [0, 1, 2, 3]
    writer.close()


def test_no_broker_at_all_is_told_in_one_line(address: KafkaAddress) -> None:
    nobody = KafkaBus(KafkaAddress(("127.0.0.1:9",), "livefire"), "run-1")
    assert bounded(lambda: nobody.partitions(topics.RAW)).startswith("kafka://127.0.0.1:9/livefire: no broker answers")
    nobody.close()


_ASKING = """
import gc, os, threading
from bus.address import KafkaAddress
from bus.kafka import KafkaBus
from bus.kafka_topics import Topics
from bus.ports import BusAway
from wire import topics

def held():
    gc.collect()  # the driver leaves the sockets of refused connections to it
    return len(os.listdir("/proc/self/fd")), [thread.name for thread in threading.enumerate()]

address = KafkaAddress(("127.0.0.1:9",), "livefire")
bus = KafkaBus(address, "run-1")
asking = {
    "partitions": lambda: bus.partitions(topics.RAW), "topics": lambda: Topics(address),
    "producer": bus.link.producer, "consumer": bus.link.consumer,
}
before = None  # what is opened once and kept is opened by the first
for name in ("partitions", *asking):
    try:
        asking[name]()
    except BusAway:
        before = before or (held()[0], ["MainThread"])
        print(name, "ok" if held() == before else "is gathering", held())
"""


def test_asking_again_and_again_while_no_broker_answers_gathers_nothing() -> None:
    """An agent does so for as long as its brokers are away. In a process of its own: here log records are kept, and
    hold the sockets that they tell of."""
    done = subprocess.run([sys.executable, "-c", _ASKING], capture_output=True, text=True, check=True)
    assert done.stdout.count(" ok ") == 5 and "is gathering" not in done.stdout, done.stdout


def test_two_clusters_in_one_process_have_words_of_their_own() -> None:
    """What one driver says is not told of the other's brokers."""
    servers = ("127.0.0.1:9", "nobody.invalid:9092")
    buses = [KafkaBus(KafkaAddress((server,), "livefire"), "run-1") for server in servers]
    said = ["", ""]

    def ask(number: int) -> None:
        said[number] = bounded(lambda: buses[number].partitions(topics.RAW))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for bus in buses:
        bus.close()
    assert "connection refused" in said[0] and "DNS" in said[1]


@pytest.mark.parametrize(
    ("security", "says"),
    [
        (KafkaSecurity(mechanism="PLAIN", user="agent", password="wrong"), "refuse user or password"),
        (KafkaSecurity(mechanism="PLAIN", user="reader", password="read"), "not allowed|there is no topic"),
        (KafkaSecurity(mechanism="PLAIN", user="agent"), "needs user, and password_file or password"),
        (KafkaSecurity(user="agent", password="right"), "a user, and no mechanism"),
        (KafkaSecurity(mechanism="MAGIC", user="agent", password="right"), "mechanism is 'MAGIC', not one of"),
        (KafkaSecurity(ca="/nowhere/ca.pem"), "no file /nowhere/ca.pem"),
        (KafkaSecurity(), "no broker answers"),
        (KafkaSecurity(tls=True), "does not speak TLS"),
    ],
)
def test_who_is_not_let_in_is_told_why_and_soon(
    server: Kafka, address: KafkaAddress, security: KafkaSecurity, says: str
) -> None:
    began = time.monotonic()
    with pytest.raises(BusError, match=says) as told:
        bus = KafkaBus(KafkaAddress((server.addresses["SAFE"],), "livefire"), "run-1", security)
        try:
            bus.writer(topics.OUTCOMES, "w9", manifest())
        finally:
            bus.close()
    assert time.monotonic() - began < _BOUND_S
    assert "\n" not in str(told.value) and "wrong" not in str(told.value)


def test_who_has_the_password_is_let_in(server: Kafka, address: KafkaAddress) -> None:
    security = KafkaSecurity(mechanism="PLAIN", user="agent", password="right")
    bus = KafkaBus(KafkaAddress((server.addresses["SAFE"],), "livefire"), "run-1", security)
    writer = bus.writer(topics.OUTCOMES, "w9", manifest())
    writer.write(coded(1))
    reader = bus.reader(topics.OUTCOMES, "w9")
    assert numbers(reader) == [1]
    bus.close()


def test_a_bus_with_many_writers_is_closed_in_bounded_time_also_while_no_broker_answers(
    server: Kafka, address: KafkaAddress
) -> None:
    threads = set(threading.enumerate())
    bus = KafkaBus(address, f"run-{uuid.uuid4().hex[:8]}")
    for number in range(8):
        bus.writer(topics.OUTCOMES, f"w{number}", Manifest(topics.OUTCOMES, f"w{number}", "run-1", 5, "test"))
    assert any("kafka-io-livefire" in thread.name for thread in set(threading.enumerate()) - threads)
    server.freeze()
    try:
        until_stopped(server.pid)
        began = time.monotonic()
        bus.close()
        assert time.monotonic() - began < _BOUND_S
        deadline = time.monotonic() + 30
        while any("kafka-io-livefire" in thread.name for thread in set(threading.enumerate()) - threads):
            assert time.monotonic() < deadline, "the driver goes on behind our back"
    finally:
        server.thaw()
