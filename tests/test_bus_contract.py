"""What every bus promises (`bus.ports`). A further backend is one more entry in BACKENDS; no test asks which it is."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bus.address import KafkaAddress, open_bus
from bus.kafka_topics import Topics, Wanted
from bus.ports import Bus, BusError, BusGone, BusHeld, BusWhole, Message, Reader, Writer
from bus.topic import TopicReader
from wire import codec
from wire.account import Account
from wire.records import Drop, End, Manifest, SourceRange

ROOT = Path(__file__).resolve().parent.parent


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


def test_a_partition_is_whole_once_its_end_mark_is_written(bus: Bus, other_bus: Bus) -> None:
    assert not bus.whole("outcomes", "w0")
    writer = bus.writer("outcomes", "w0", manifest())
    for number in range(5):
        writer.write_records((drop(number),))
        assert not bus.whole("outcomes", "w0") and not other_bus.whole("outcomes", "w0")
    writer.close()
    assert not bus.whole("outcomes", "w0") and not bus.whole("outcomes", "w1")
    writer = bus.writer("outcomes", "w0", manifest())
    writer.write(codec.encode((End("run-1", "w0", 5, 0, 0),)))  # and killed, before it could say so anywhere else
    assert bus.whole("outcomes", "w0") and other_bus.whole("outcomes", "w0")
    writer.close()
    for one in (bus, other_bus):
        with pytest.raises(BusWhole, match="is whole already"):
            one.writer("outcomes", "w0", manifest())


def test_a_partition_that_was_ended_takes_no_writer(bus: Bus, other_bus: Bus) -> None:
    writer = bus.writer("outcomes", "w0", manifest())
    writer.end(End("run-1", "w0", 0, 0, 0))
    for one in (bus, other_bus):
        with pytest.raises(BusWhole, match="is whole already"):
            one.writer("outcomes", "w0", manifest())


def test_an_absent_partition_is_an_error_and_an_absent_topic_is_empty(bus: Bus) -> None:
    with pytest.raises(BusGone):
        bus.reader("outcomes", "w0")
    with pytest.raises(BusGone):
        bus.offset_at("outcomes", "w0", 1)
    assert not bus.whole("outcomes", "w0")
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


def test_of_writers_that_come_at_once_one_writes(address: str, scope: str) -> None:
    buses = [open_bus(address, scope) for _ in range(6)]
    opened: list[int] = []
    refused: list[int] = []
    ready = threading.Barrier(len(buses))

    def come(number: int) -> None:
        ready.wait()
        try:
            writer = buses[number].writer("outcomes", "w0", manifest())
        except BusHeld:
            refused.append(number)
        else:
            opened.append(number)
            writer.write_records([drop(number)])
            writers.append(writer)

    writers: list[Writer] = []
    threads = [threading.Thread(target=come, args=(number,)) for number in range(len(buses))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(opened) == 1 and len(refused) == len(buses) - 1
    reader = buses[0].reader("outcomes", "w0")
    assert numbers(all_of(reader)) == opened
    assert reader.manifest == manifest()
    reader.close()
    writers[0].close()
    for bus in buses:
        bus.close()


def test_a_partition_is_held_while_its_writer_is_open(bus: Bus, other_bus: Bus) -> None:
    assert not bus.held("outcomes", "w0")
    writer = bus.writer("outcomes", "w0", manifest())
    assert bus.held("outcomes", "w0") and other_bus.held("outcomes", "w0")
    assert not other_bus.held("outcomes", "w1")
    writer.close()
    assert not bus.held("outcomes", "w0") and not other_bus.held("outcomes", "w0")
    writer = other_bus.writer("outcomes", "w0", manifest())
    assert bus.held("outcomes", "w0")
    writer.end(End("run-1", "w0", 0, 0, 0))
    assert not bus.held("outcomes", "w0")


_KILLED = """
import os, signal, sys
from bus.address import open_bus
from wire.records import Drop, Manifest
writer = open_bus(sys.argv[1], sys.argv[2]).writer("outcomes", "w0", Manifest("outcomes", "w0", "run-1", 5, "test"))
for number in range(20):
    writer.write_records([Drop("stage", "late", False, number)])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_loses_nothing_and_soon_holds_nothing(bus: Bus, address: str, scope: str) -> None:
    killed = subprocess.run([sys.executable, "-c", _KILLED, address, scope], cwd=ROOT, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while bus.held("outcomes", "w0"):
        assert time.monotonic() < deadline, "the hold of a killed writer does not lapse"
    fill(bus, 20, end=True)
    reader = bus.reader("outcomes", "w0")
    assert numbers(all_of(reader)) == list(range(21)) and reader.ended
    reader.close()


def test_what_another_process_wrote_is_there_at_the_next_read(bus: Bus, other_bus: Bus) -> None:
    writer = bus.writer("outcomes", "w0", manifest())
    reader = other_bus.reader("outcomes", "w0")
    all_of(reader)
    for number in range(30):
        writer.write_records([drop(number)])
        assert numbers(reader.read()) == [number], "a reader said that there was nothing, and there was"
    assert reader.read() == []
    reader.close()
    writer.close()


def test_several_are_written_at_once_in_order(bus: Bus) -> None:
    writer = bus.writer("outcomes", "w0", manifest())
    assert writer.write_many([]) == []
    offsets = [offset for at in range(0, 600, 200) for offset in writer.write_many(coded(range(at, at + 200)))]
    assert offsets == sorted(set(offsets)) and offsets[-1] < writer.next_offset
    writer.write_records([drop(600)])
    reader = bus.reader("outcomes", "w0")
    messages = all_of(reader)
    assert numbers(messages) == list(range(601))
    assert [message.offset for message in messages[1:-1]] == offsets
    reader.close()
    writer.close()


def coded(numbers: range) -> list[bytes]:
    return [codec.encode([drop(number)]) for number in numbers]


def test_readers_at_different_places_each_get_all(bus: Bus) -> None:
    """One is never read, one is far behind, one keeps up: none holds up another, none misses anything."""
    writer = bus.writer("outcomes", "w0", manifest())
    never, late, prompt = (bus.reader("outcomes", "w0") for _ in range(3))
    big = [codec.encode([Drop("x" * 20_000, "late", False, number)], compress=False) for number in range(60)]
    for at in range(0, 60, 6):
        writer.write_many(big[at : at + 6])
        assert numbers(all_of(prompt)) == list(range(at, at + 6))
        late.read(1)
    assert numbers(all_of(late)) == list(range(9, 60))
    assert numbers(all_of(never)) == list(range(60))
    for reader in (never, late, prompt):
        reader.close()
    writer.close()


def test_owners_do_not_see_each_other(bus: Bus, address: str) -> None:
    other = open_bus(address, "another-run")
    fill(bus, 1)
    assert other.partitions("outcomes") == [] and not other.held("outcomes", "w0")
    with pytest.raises(BusError):
        other.reader("outcomes", "w0")
    other.close()
    with pytest.raises(BusError):
        open_bus(address, "../elsewhere")


def test_many_partitions_are_read_side_by_side(bus: Bus) -> None:
    names = [f"w{number}" for number in range(24)] + [f"a.{number}" for number in range(16)]
    for at, name in enumerate(names):
        fill(bus, *range(at, at + 5), partition=name, end=at % 2 == 0)
    topic = TopicReader(bus, "outcomes")
    found: dict[str, list[int]] = {name: [] for name in names}
    while messages := topic.poll():
        for message in messages:
            found[message.partition].extend(numbers([message]))
    assert found == {name: list(range(at, at + 5)) for at, name in enumerate(names)}
    assert {name: reader.ended for name, reader in topic.readers.items()} == {
        name: at % 2 == 0 for at, name in enumerate(names)
    }
    topic.close()


def test_a_topic_is_read_from_a_time_on_and_what_is_over_is_let_go(bus: Bus) -> None:
    def written(partition: str, number: int) -> Writer:
        writer = bus.writer("outcomes", partition, manifest(partition=partition))
        now_ns = time.time_ns()
        writer.write_records([drop(number)], first_ns=now_ns, last_ns=now_ns)
        return writer

    fill(bus, 1, 2, partition="over", end=True)
    writer = written("w0", 3)
    deadline = time.monotonic() + 0.02  # another millisecond: that is how finely brokers stamp
    while time.monotonic() < deadline:
        pass
    late, all_of_it = TopicReader(bus, "outcomes", since_ns=time.time_ns()), TopicReader(bus, "outcomes")
    assert numbers(late.poll()) == []
    now_ns = time.time_ns()
    writer.write_records([drop(4)], first_ns=now_ns, last_ns=now_ns)
    written("w1", 5).end(End("run-1", "w1", 1, 0, 0))
    assert sorted(numbers(late.poll())) == [4, 5]
    assert sorted(numbers(all_of_it.poll())) == [1, 2, 3, 4, 5]
    assert late.poll() == all_of_it.poll() == []
    for name, reader in all_of_it.readers.items():
        if name == "w0":
            assert reader.read() == []
        else:
            with pytest.raises(BusError):
                reader.read()  # closed
    late.close()
    all_of_it.close()
    writer.close()


def test_what_is_discarded_is_read_to_its_end_by_who_has_it_open(bus: Bus) -> None:
    fill(bus, 1, 2, partition="old", end=True)
    writer = bus.writer("outcomes", "w0", manifest())
    reader = bus.reader("outcomes", "old")
    bus.discard("outcomes", "old")
    bus.discard("outcomes", "never-there")
    assert numbers(all_of(reader)) == [1, 2] and reader.ended
    with pytest.raises(BusHeld):
        bus.discard("outcomes", "w0")
    assert bus.partitions("outcomes")[-1] == "w0" and bus.held("outcomes", "w0")
    reader.close()
    writer.close()


def test_reading_begins_at_a_time(bus: Bus) -> None:
    """Nothing of that time or later is missed: what is written is written after it happened."""
    began = time.time_ns()
    writer = bus.writer("outcomes", "w0", manifest())
    times = []
    for number in range(3):
        times.append(time.time_ns())
        writer.write_records([drop(number)], first_ns=times[-1], last_ns=times[-1])
        deadline = time.monotonic() + 0.02  # another millisecond: that is how finely brokers stamp
        while time.monotonic() < deadline:
            pass
    for number, at in enumerate(times):
        reader = bus.reader("outcomes", "w0", bus.offset_at("outcomes", "w0", at))
        assert numbers(all_of(reader)) == list(range(number, 3))
        reader.close()
    early = bus.reader("outcomes", "w0", bus.offset_at("outcomes", "w0", began - 60_000_000_000))
    assert numbers(all_of(early)) == [0, 1, 2]
    late = bus.reader("outcomes", "w0", bus.offset_at("outcomes", "w0", times[-1] + 60_000_000_000))
    assert numbers(all_of(late)) == []
    writer.write_records([drop(3)])
    assert numbers(all_of(late)) == [3]
    early.close()
    late.close()
    writer.close()


def test_work_may_be_spread(bus: Bus) -> None:
    width = bus.spread("raw")
    for number in range(width):
        fill(bus, number, topic="raw", partition=f"a.{number}")
    assert bus.partitions("raw") == sorted(f"a.{number}" for number in range(width)) and width >= 1


def test_a_glance_is_as_of_its_beginning(bus: Bus) -> None:
    fill(bus, 1)
    reader = bus.reader("outcomes", "w0")
    with bus.glance():
        assert numbers(all_of(reader)) == [1]
    fill(bus, 2)
    with bus.glance(), bus.glance():
        assert numbers(all_of(reader)) == [2]
        writer = bus.writer("outcomes", "w1", manifest(partition="w1"))
        writer.close()
    assert reader.read() == []
    reader.close()


def test_long_partitions_are_read_side_by_side_to_their_ends(bus: Bus) -> None:
    """More than one fetch of each, in turn: none of them must get stuck half-way."""
    data = codec.encode([drop(1)])
    for partition in ("a.0", "a.1", "a.2"):
        writer = bus.writer("outcomes", partition, manifest(partition=partition))
        writer.write_many([data] * 4_300)
        writer.end(End("run-1", partition, 4_300, 0, 0))
    readers = [bus.reader("outcomes", partition) for partition in bus.partitions("outcomes")]
    count = 0
    for _ in range(1_000):
        with bus.glance():
            count += sum(len(reader.read()) for reader in readers)
        if all(reader.ended for reader in readers):
            break
    assert count == 3 * 4_302
