"""What every bus promises (`bus.ports`). A further backend is one more entry in BACKENDS; no test asks which it is."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator

import pytest

from bus.address import KafkaAddress, open_bus
from bus.kafka_topics import Topics, Wanted
from bus.ports import Bus, BusError, Message, Reader
from bus.topic import TopicReader
from wire import codec
from wire.account import Account
from wire.records import Drop, End, Manifest, SourceRange


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[str]:
    """An address with topics of its own. One more topic than programs use: its name begins as another's."""
    address = KafkaAddress((request.getfixturevalue("kafka_server").address,), f"test-{uuid.uuid4().hex[:8]}")
    with Topics(address) as topics:
        topics.create(Wanted(), extra=("controls",))
        yield str(address)
        topics.delete(extra=("controls",))


def folder(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("tmp_path"))


def kafka(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("cluster"))


#: How to come by an address.
BACKENDS: dict[str, Callable[[pytest.FixtureRequest], str]] = {"files": folder, "kafka": kafka}


@pytest.fixture(params=sorted(BACKENDS))
def address(request: pytest.FixtureRequest) -> str:
    return BACKENDS[request.param](request)


@pytest.fixture
def scope() -> str:
    return f"run-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def bus(address: str, scope: str) -> Iterator[Bus]:
    opened = open_bus(address, scope)
    yield opened
    opened.close()
    opened.close()


@pytest.fixture
def other_bus(address: str, scope: str) -> Iterator[Bus]:
    """The same streams, as another process sees them."""
    opened = open_bus(address, scope)
    yield opened
    opened.close()


def manifest(topic: str = "outcomes", partition: str = "w0") -> Manifest:
    return Manifest(topic, partition, "run-1", 5, "test")


def drop(number: int) -> Drop:
    return Drop("stage", "late", False, number)


def fill(bus: Bus, *numbers: int, topic: str = "outcomes", partition: str = "w0", end: bool = False) -> list[int]:
    """Write one batch a number; their offsets."""
    writer = bus.writer(topic, partition, manifest(topic, partition))
    offsets = [writer.write_records([drop(number)], first_ns=number, last_ns=number) for number in numbers]
    if end:
        writer.end(End("run-1", partition, len(numbers), 0, 0))
    writer.close()
    writer.close()
    return offsets


def all_of(reader: Reader) -> list[Message]:
    messages: list[Message] = []
    while found := reader.read():
        messages.extend(found)
    return messages


def numbers(messages: list[Message]) -> list[int]:
    batches = [codec.decode(message.data) for message in messages]
    return [record.count for batch in batches for record in batch.records if isinstance(record, Drop)]


def test_messages_come_in_order_with_offsets_that_grow(bus: Bus) -> None:
    offsets = fill(bus, *range(200))
    reader = bus.reader("outcomes", "w0")
    messages = all_of(reader)
    assert numbers(messages) == list(range(200))
    assert [message.offset for message in messages][1:] == offsets
    assert offsets == sorted(set(offsets))
    assert all(one.next_offset <= two.offset for one, two in itertools.pairwise(messages))
    assert reader.next_offset == messages[-1].next_offset
    assert {(message.topic, message.partition) for message in messages} == {("outcomes", "w0")}
    reader.close()
    reader.close()


def test_any_next_offset_is_a_place_to_go_on_from(bus: Bus) -> None:
    fill(bus, *range(20), end=True)
    reader = bus.reader("outcomes", "w0")
    messages = all_of(reader)
    assert reader.ended
    for index, message in enumerate(messages):
        later = bus.reader("outcomes", "w0", message.next_offset)
        assert all_of(later) == messages[index + 1 :]
        assert later.ended, "who resumes behind the end mark must see that there is one"
        reader.seek(message.next_offset)
        assert all_of(reader) == messages[index + 1 :]
        assert reader.ended
        later.close()
    reader.seek(0)
    assert not reader.ended
    assert all_of(reader) == messages
    reader.close()


def test_what_is_written_can_be_read_at_once_and_reading_never_waits(bus: Bus) -> None:
    writer = bus.writer("outcomes", "w0", manifest())
    one, two = bus.reader("outcomes", "w0"), bus.reader("outcomes", "w0")
    assert numbers(all_of(one)) == [] and one.read() == []
    for number in range(50):
        least = writer.next_offset
        offset = writer.write(codec.encode([drop(number)]))
        assert least <= offset < writer.next_offset
        [message] = all_of(one)
        assert message.offset == offset and numbers([message]) == [number]
        assert one.read() == []
    assert numbers(all_of(two)) == list(range(50))
    writer.close()
    one.close()
    two.close()


def test_no_more_messages_are_read_than_asked_for(bus: Bus) -> None:
    fill(bus, *range(10))
    reader = bus.reader("outcomes", "w0")
    sizes = []
    while found := reader.read(max_messages=4):
        sizes.append(len(found))
    assert sum(sizes) == 11 and max(sizes) <= 4
    reader.close()


def test_the_first_batch_is_the_manifest_wherever_a_reader_stands(bus: Bus) -> None:
    fill(bus, 1, 2, 3)
    reader = bus.reader("outcomes", "w0")
    messages = all_of(reader)
    later = bus.reader("outcomes", "w0", messages[-1].next_offset)
    assert reader.manifest == later.manifest == manifest()
    assert codec.decode(messages[0].data).records == (manifest(),)
    later.close()
    reader.close()


def test_a_partition_has_one_writer(bus: Bus) -> None:
    writer = bus.writer("outcomes", "w0", manifest())
    with pytest.raises(BusError):
        bus.writer("outcomes", "w0", manifest())
    other = bus.writer("outcomes", "w1", manifest(partition="w1"))  # negative control: another partition is free
    other.close()
    writer.close()
    fill(bus, 1)


def test_a_partition_goes_on_where_it_was_left(bus: Bus) -> None:
    fill(bus, 1, 2)
    reader = bus.reader("outcomes", "w0")
    assert numbers(all_of(reader)) == [1, 2]
    fill(bus, 3, end=True)
    assert numbers(all_of(reader)) == [3]
    assert reader.ended
    reader.close()


def test_an_end_mark_is_seen_only_behind_it(bus: Bus) -> None:
    fill(bus, 1)
    reader = bus.reader("outcomes", "w0")
    all_of(reader)
    assert not reader.ended
    fill(bus, end=True)
    assert not reader.ended
    assert len(reader.read()) == 1
    assert reader.ended
    reader.close()


def test_nothing_is_written_behind_an_end_mark(bus: Bus) -> None:
    writer = bus.writer("outcomes", "w0", manifest())
    writer.end(End("run-1", "w0", 0, 0, 0))
    with pytest.raises(BusError):
        writer.write(codec.encode([drop(1)]))
    reader = bus.reader("outcomes", "w0")
    assert numbers(all_of(reader)) == [] and reader.ended
    reader.close()


def test_an_absent_partition_is_an_error_and_an_absent_topic_is_empty(bus: Bus) -> None:
    with pytest.raises(BusError):
        bus.reader("outcomes", "w0")
    assert bus.partitions("outcomes") == []


def test_partitions_belong_to_one_topic_whatever_their_names(bus: Bus) -> None:
    for topic, partition in (("control", "stop-01JD"), ("control", "conductor"), ("controls", "a"), ("beats", "w-0")):
        fill(bus, 1, topic=topic, partition=partition)
    assert bus.partitions("control") == ["conductor", "stop-01JD"]
    assert bus.partitions("controls") == ["a"] and bus.partitions("beats") == ["w-0"]
    reader = bus.reader("control", "stop-01JD")
    assert numbers(all_of(reader)) == [1]
    reader.close()


def test_names_that_would_leave_the_bus_are_refused(bus: Bus) -> None:
    for topic, partition in (
        ("control-x", "a"), ("", "a"), ("a/b", "a"), ("control", ""), ("control", "../x"), ("control", "a/b"),
        ("control", "a\0b"), ("control", ".x"), ("control", "a\n"),
    ):  # fmt: skip
        with pytest.raises(BusError):
            bus.writer(topic, partition, manifest(topic, partition))


def test_sources_and_increments_travel_with_their_batch(bus: Bus) -> None:
    account = Account()
    account.ledger("messages").seen = 2
    increment = account.take()
    writer = bus.writer("outcomes", "w0", manifest())
    writer.write_records([drop(1)], sources=(SourceRange("raw", "0", 16, 99),), increment=increment)
    writer.close()
    reader = bus.reader("outcomes", "w0")
    header = codec.decode_header(all_of(reader)[-1].data)
    assert header.sources == (SourceRange("raw", "0", 16, 99),) and header.increment == increment
    reader.close()


def test_a_message_that_is_too_large_is_refused_and_leaves_the_partition_whole(bus: Bus) -> None:
    writer = bus.writer("outcomes", "w0", manifest())
    with pytest.raises(BusError, match=r"at most \d+"):
        writer.write(bytes((128 << 20) + 1))
    with pytest.raises(BusError, match=r"at most \d+"):
        writer.write_records([Drop("x" * (9 << 20), "", False, 1)])
    writer.write_records([drop(7)])
    writer.close()
    reader = bus.reader("outcomes", "w0")
    assert numbers(all_of(reader)) == [7]
    reader.close()


def test_a_topic_is_read_with_the_partitions_that_appear(bus: Bus) -> None:
    topic = TopicReader(bus, "outcomes")
    assert topic.poll() == [] and not topic.ended
    for worker in range(4):
        fill(bus, worker, partition=f"w{worker}")
        assert numbers(topic.poll()) == [worker]
    for worker in range(4):
        assert not topic.ended
        fill(bus, partition=f"w{worker}", end=True)
        assert len(topic.poll()) == 1
    assert topic.ended
    topic.close()
