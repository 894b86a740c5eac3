"""What the bus on Kafka promises beyond the contract: epochs, sequences, topics, the broker's clock, foreign topics."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from kafka import TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.future import Future

from bus import kafka_layout as layout
from bus import kafka_reader, kafka_writer
from bus.address import KafkaAddress, KafkaSecurity, open_bus, parse_kafka
from bus.kafka import KafkaBus
from bus.kafka_foreign import foreign_messages
from bus.kafka_link import Link
from bus.kafka_reader import KafkaReader
from bus.kafka_topics import Topics, Wanted
from bus.ports import BusError, BusGone, BusHeld, Reader
from livefire.cli import cli
from wire import codec, topics
from wire.records import Drop, End, Manifest


@pytest.fixture(scope="module")
def address(request: pytest.FixtureRequest) -> Iterator[KafkaAddress]:
    address = KafkaAddress((request.getfixturevalue("kafka_server").address,), f"test-{uuid.uuid4().hex[:8]}")
    with Topics(address) as made:
        made.create(Wanted(partitions=4))
        yield address
        made.delete()


@pytest.fixture
def bus(address: KafkaAddress) -> Iterator[KafkaBus]:
    opened = KafkaBus(address, f"run-{uuid.uuid4().hex[:8]}")
    yield opened
    opened.close()


def manifest(partition: str = "w0", topic: str = topics.OUTCOMES) -> Manifest:
    return Manifest(topic, partition, "run-1", 5, "test")


def coded(number: int) -> bytes:
    return codec.encode([Drop("stage", "late", False, number)])


def numbers(reader: Reader) -> list[int]:
    found = []
    while messages := reader.read():
        for message in messages:
            found += [record.count for record in codec.decode(message.data).records if isinstance(record, Drop)]
    return found


def put_raw(bus: KafkaBus, reader: KafkaReader, number: int, headers: list[tuple[str, bytes]]) -> None:
    future = bus.link.send(reader.at.topic, reader.at.partition, reader.key, coded(number), headers)
    bus.link.acknowledged(future, time.monotonic() + 30)


def test_a_message_that_brokers_refuse_is_told_and_those_behind_it_are_written(
    bus: KafkaBus, address: KafkaAddress
) -> None:
    """The driver itself would refuse all that follows with the words for the first."""
    other = bus.writer(topics.CLAIMS, "w0", manifest(topic=topics.CLAIMS))
    name = layout.kafka_topic(address.prefix, topics.SAMPLES)
    admin = KafkaAdminClient(bootstrap_servers=address.servers)
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, {"max.message.bytes": "100000"})])
    admin.close()
    writer = bus.writer(topics.SAMPLES, "w0", manifest(topic=topics.SAMPLES))
    written, deadline = 0, time.monotonic() + 20
    with pytest.raises(BusError, match="larger than the topic takes"):
        while time.monotonic() < deadline:  # until brokers go by the new bound
            writer.write(codec.encode([Drop("stage", "late", False, 1)]) + random.Random(1).randbytes(200_000))
            written += 1
    writer.write(coded(1))
    other.write(coded(2))
    assert numbers(bus.reader(topics.CLAIMS, "w0")) == [2]
    reader, read = bus.reader(topics.SAMPLES, "w0"), 0
    while messages := reader.read():
        read += len(messages)
    assert read == written + 2  # and the manifest


def test_streams_that_retention_took_from_the_directory_are_forgotten(
    address: KafkaAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who stands by for weeks keeps no more than who comes now would find."""
    monkeypatch.setattr("bus.kafka_streams._LOOK_ENTRIES", 1)
    scope = f"run-{uuid.uuid4().hex[:8]}"
    with contextlib.closing(KafkaBus(address, scope)) as bus:
        for name in ("w0", "w1"):
            bus.writer(topics.OUTCOMES, name, manifest(name)).end(End(scope, name, 0, 0, 0))
        assert bus.partitions(topics.OUTCOMES) == ["w0", "w1"]
        directory = layout.kafka_topic(address.prefix, layout.STREAMS)
        known = bus.streams.get(layout.key_of(scope, topics.OUTCOMES, "w0"))
        assert known is not None
        admin = KafkaAdminClient(bootstrap_servers=address.servers)
        admin.delete_records({TopicPartition(directory, 0): known.offset + 1})
        admin.close()
        bus.writer(topics.OUTCOMES, "w2", manifest("w2")).close()
        assert bus.partitions(topics.OUTCOMES) == ["w1", "w2"]
        with contextlib.closing(KafkaBus(address, scope)) as now:
            assert now.partitions(topics.OUTCOMES) == ["w1", "w2"]


def test_what_is_written_twice_is_read_once(bus: KafkaBus) -> None:
    """As after a producer that had to be made anew: it cannot know whether its last message had been written."""
    writer = bus.writer(topics.OUTCOMES, "w0", manifest())
    writer.write(coded(1))
    writer.write(coded(2))
    reader = bus.reader(topics.OUTCOMES, "w0")
    put_raw(bus, reader, 2, layout.header(1, 3))  # the manifest was 1
    writer.write(coded(3))
    put_raw(bus, reader, 9, [])  # negative control: without a number nothing is known to be a repeat
    assert numbers(reader) == [1, 2, 3, 9] and (reader.repeats, reader.fenced) == (1, 0)
    middle = bus.reader(
        topics.OUTCOMES, "w0", reader.next_offset - 3
    )  # behind the first 2: its repeat is one all the same
    assert numbers(middle) == [3, 9]
    writer.close()


def test_a_writer_that_lost_its_stream_is_told_and_not_read(bus: KafkaBus, address: KafkaAddress) -> None:
    first = bus.writer(topics.OUTCOMES, "w0", manifest())
    first.write(coded(1))
    bus._stop.set()  # as when the process is stopped: it renews nothing
    other = KafkaBus(address, bus.scope)
    with pytest.raises(BusHeld):
        other.writer(topics.OUTCOMES, "w0", manifest())
    deadline = time.monotonic() + 30
    while other.held(topics.OUTCOMES, "w0"):
        assert time.monotonic() < deadline
    second = other.writer(topics.OUTCOMES, "w0", manifest())
    with pytest.raises(BusHeld, match="taken over"):
        first.write(coded(2))
    with pytest.raises(BusError):
        first.write(coded(3))
    second.write(coded(4))
    reader = other.reader(topics.OUTCOMES, "w0")
    assert numbers(reader) == [1, 4]
    assert reader.fenced == 1
    second.end(End("run-1", "w0", 2, 0, 0))
    assert other.reader(topics.OUTCOMES, "w0", reader.next_offset).read(), "the end mark"
    other.close()


def test_a_writer_that_still_renews_what_it_lost_is_told(
    bus: KafkaBus, address: KafkaAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the brokers' clock was set forward: its renewals are written, and mean nothing."""
    monkeypatch.setattr(kafka_writer, "_LOOK_S", 0.5)
    first = bus.writer(topics.OUTCOMES, "w0", manifest())
    other = KafkaBus(address, bus.scope)
    monkeypatch.setattr(other.streams, "held", lambda key: False)
    second = other.writer(topics.OUTCOMES, "w0", manifest())
    deadline = time.monotonic() + 30
    with pytest.raises(BusHeld, match="taken over"):
        while time.monotonic() < deadline:
            first.write(coded(2))
    second.write(coded(4))
    assert numbers(other.reader(topics.OUTCOMES, "w0")) == [4]
    other.close()


def test_renewals_do_not_pile_up_while_no_broker_answers(bus: KafkaBus) -> None:
    posted: list[Future] = []

    def post(key: bytes, entry: layout.Entry) -> Future:
        posted.append(Future())
        return posted[-1]

    writer = bus.writer(topics.OUTCOMES, "w0", manifest())
    bus._stop.set()
    assert bus._keeper is not None
    bus._keeper.join()
    for _ in range(3):
        writer.renew(post)
    assert len(posted) == 1
    posted[0].success(None)
    writer.renew(post)
    assert len(posted) == 2


def test_who_only_writes_outlives_the_retention_of_the_directory(bus: KafkaBus, address: KafkaAddress) -> None:
    writer = bus.writer(topics.OUTCOMES, "w0", manifest())
    directory = TopicPartition(layout.kafka_topic(address.prefix, layout.STREAMS), 0)
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=address.servers)) as admin:
        bus.put(writer.key, writer.entry())
        bus.put(writer.key, writer.entry())
        admin.delete_records({directory: bus.link.end(directory) - 1})
    writer._held_until = 0.0  # as after an outage
    writer.write(coded(1))
    assert bus.partitions(topics.OUTCOMES) == ["w0"]
    assert numbers(bus.reader(topics.OUTCOMES, "w0")) == [1]


def test_a_reader_of_a_stream_that_the_directory_forgot_is_told_so(bus: KafkaBus) -> None:
    bus.writer(topics.OUTCOMES, "w0", manifest()).close()
    reader = bus.reader(topics.OUTCOMES, "w0")
    bus.streams._forget(1 << 60)
    with pytest.raises(BusGone, match="the directory does not hold it any more"):
        reader.seek(0)


def test_partitions_that_a_topic_got_later_are_found(request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue("kafka_server").address
    address = KafkaAddress((server,), f"grows-{uuid.uuid4().hex[:8]}")
    with Topics(address) as made:
        made.create(Wanted(partitions=1))
        with contextlib.closing(KafkaBus(address, "run-1")) as early:
            assert early.partitions(topics.RAW) == [] and early.link.count(f"{address.prefix}.raw") == 1
            with contextlib.closing(KafkaAdminClient(bootstrap_servers=address.servers)) as admin:
                admin.create_partitions({f"{address.prefix}.raw": 4})
            late = KafkaBus(address, "run-1")
            deadline = time.monotonic() + 30
            while late.link.count(f"{address.prefix}.raw") != 4:
                assert time.monotonic() < deadline
                late.link.counted_anew(f"{address.prefix}.raw")
            names = [f"a.{number}" for number in range(12)]
            for name in names:
                late.writer(topics.RAW, name, manifest(name, topics.RAW)).write(coded(int(name[2:])))
            assert [numbers(early.reader(topics.RAW, name)) for name in names] == [[number] for number in range(12)]
            late.close()
        made.delete()


def test_a_hold_is_renewed_while_nothing_is_written(bus: KafkaBus, address: KafkaAddress) -> None:
    writer = bus.writer(topics.OUTCOMES, "w0", manifest())
    other = KafkaBus(address, bus.scope)
    until = time.monotonic() + layout.HOLD_MS / 1000 + 1.5
    while time.monotonic() < until:
        assert other.held(topics.OUTCOMES, "w0")
        time.sleep(0.1)  # not for an event: it must hold all the while
    writer.write(coded(1))
    writer.close()
    assert not other.held(topics.OUTCOMES, "w0")
    other.close()


def test_an_end_that_the_directory_missed_is_found(bus: KafkaBus, address: KafkaAddress) -> None:
    """A writer that was killed between its end mark and the directory."""
    writer = bus.writer(topics.OUTCOMES, "w0", manifest())
    writer.write(coded(1))
    writer.write(codec.encode((End("run-1", "w0", 1, 0, 0),)))
    writer.close()
    with pytest.raises(BusError, match="whole already"):
        bus.writer(topics.OUTCOMES, "w0", manifest())
    reader = bus.reader(topics.OUTCOMES, "w0")
    assert numbers(reader) == [1] and reader.ended
    assert bus.reader(topics.OUTCOMES, "w0", reader.next_offset).ended


def test_a_stream_is_gone_on_with_only_by_its_owner(bus: KafkaBus) -> None:
    bus.writer(topics.OUTCOMES, "w0", manifest()).close()
    with pytest.raises(BusError, match="holds outcomes of run-1, not outcomes of run-2"):
        bus.writer(topics.OUTCOMES, "w0", Manifest(topics.OUTCOMES, "w0", "run-2", 5, "test"))
    assert not bus.held(topics.OUTCOMES, "w0")
    bus.writer(topics.OUTCOMES, "w0", manifest()).close()


def test_a_reader_that_is_not_read_keeps_little(bus: KafkaBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_reader, "_QUEUE_MESSAGES", 8)
    writer = bus.writer(topics.OUTCOMES, "w0", manifest())
    never, prompt = bus.reader(topics.OUTCOMES, "w0"), bus.reader(topics.OUTCOMES, "w0")
    for at in range(0, 200, 10):
        writer.write_many([coded(number) for number in range(at, at + 10)])
        assert numbers(prompt) == list(range(at, at + 10))
        assert len(never._queue) <= 8
    assert numbers(never) == list(range(200))
    writer.close()


def test_streams_lie_where_they_should(bus: KafkaBus) -> None:
    assert [layout.partition_of(f"a.{number}", 4) for number in range(8)] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert layout.partition_of("a.3.5", 8) == 5
    # Ours and no client's hash: these must never change, or a stream would begin anew elsewhere.
    assert [layout.partition_of(name, 8) for name in ("w0", "w1", "conductor", "stop-01JD")] == [3, 0, 4, 7]
    assert layout.kafka_topic("lf", topics.BEATS) == layout.kafka_topic("lf", topics.CONTROL) == "lf.control"
    assert bus.spread(topics.RAW) == 4 and bus.spread(topics.CONTROL) == bus.spread(topics.BEATS) == 1
    writer = bus.writer(topics.RAW, "a.3", manifest("a.3", topics.RAW))
    assert writer.at == TopicPartition(f"{bus.link.address.prefix}.raw", 3)
    writer.close()


def test_the_brokers_clock_is_measured(bus: KafkaBus) -> None:
    """Here it is this machine's own."""
    offset_ns, error_ns = bus.clock_offset()
    assert 0 < error_ns < 1_000_000_000
    assert abs(offset_ns) <= error_ns + 2_000_000


def test_topics_are_made_checked_and_missed(request: pytest.FixtureRequest) -> None:
    address = KafkaAddress((request.getfixturevalue("kafka_server").address,), f"test-{uuid.uuid4().hex[:8]}")
    missed = KafkaBus(address, "run-1")
    with pytest.raises(
        BusError, match=rf"there are no topics {address.prefix}\.outcomes, .*livefire topics create --bus kafka://"
    ):
        missed.writer(topics.OUTCOMES, "w0", manifest())
    with Topics(address) as made:
        assert {finding.problem for finding in made.check()} == {"missing"}
        found = made.create(Wanted(partitions=2, retention_ms=3_600_000))
        assert all(finding.made and not finding.problem for finding in found)
        assert {finding.topic.removeprefix(address.prefix + "."): finding.partitions for finding in found} == {
            "raw": 2, "clean": 2, "claims": 2, "outcomes": 2, "panes": 2, "dropped": 2, "dead": 2, "samples": 2,
            "exemplars": 2, "audit": 2, "control": 1, "streams": 1,
        }  # fmt: skip
        again = made.create(Wanted(partitions=5))
        assert not any(finding.made or finding.problem for finding in again)
        missed.writer(topics.OUTCOMES, "w0", manifest()).close()  # it need not be made anew
        made.delete()
    missed.close()


@pytest.mark.parametrize(
    ("topic", "partitions", "setting", "value", "problem"),
    [
        ("control", 3, "max.message.bytes", "8388608", "has 3 partitions, must have 1"),
        ("raw", 2, "max.message.bytes", "1000000", "max.message.bytes is 1000000"),
        ("raw", 2, "message.timestamp.type", "CreateTime", "must be LogAppendTime"),
        ("raw", 2, "cleanup.policy", "compact", "cleanup.policy is compact"),
        ("streams", 1, "cleanup.policy", "delete", "must have compact"),
    ],
)
def test_a_topic_that_would_break_something_is_found(
    request: pytest.FixtureRequest, topic: str, partitions: int, setting: str, value: str, problem: str
) -> None:
    address = KafkaAddress((request.getfixturevalue("kafka_server").address,), f"test-{uuid.uuid4().hex[:8]}")
    with Topics(address) as made:
        name = layout.kafka_topic(address.prefix, topic)
        configs = {"message.timestamp.type": "LogAppendTime", setting: value}
        made._admin.create_topics({name: {"num_partitions": partitions, "replication_factor": 1, "configs": configs}})
        made._admin.wait_for_topics([name])
        found = {finding.topic: finding.problem for finding in made.check()}
        assert problem in found.pop(name)
        assert set(found.values()) == {"missing"}
        made.delete()


def test_messages_of_others_are_read_as_they_are(address: KafkaAddress) -> None:
    link = Link(address, KafkaSecurity())
    topic = layout.kafka_topic(address.prefix, topics.DROPPED)  # any topic: here it stands for one of somebody else
    sent = [f"1 {number} 0 0\nGET /{number} HTTP/1.1\r\n\r\n".encode() for number in range(50)]
    for number, value in enumerate(sent):
        link.acknowledged(link.send(topic, number % 4, b"", value, []), time.monotonic() + 30)
    found = list(foreign_messages(address, topic))
    assert sorted(message.value for message in found) == sorted(sent)
    assert [message.offset for message in found if message.partition == 1] == list(range(len(sent) // 4 + 1))
    with pytest.raises(BusError, match="there is no topic nowhere"):
        list(foreign_messages(address, "nowhere"))
    link.close()


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("kafka://", "not host:port"),
        ("kafka://broker", "not host:port"),
        ("kafka://broker:99999", "not host:port"),
        ("kafka://a:1,b", "'b' is not host:port"),
        ("kafka://a:1/x y", "cannot begin a topic's name"),
        ("kafka://user:secret@a:1", "belong into the settings"),
        ("http://a:1", "a bus is a folder or kafka://"),
    ],
)
def test_a_bad_address_is_told(address: str, says: str) -> None:
    with pytest.raises(BusError, match=says) as told:
        open_bus(address, "run-1")
    assert "secret" not in str(told.value)


def test_an_address_has_servers_and_a_prefix() -> None:
    assert parse_kafka("kafka://a:9092,[::1]:9093/fleet-1") == KafkaAddress(("a:9092", "[::1]:9093"), "fleet-1")
    assert str(parse_kafka("kafka://a:9092")) == "kafka://a:9092/livefire"


def test_a_manifest_that_cannot_be_read_is_the_matter_of_its_own_stream(bus: KafkaBus) -> None:
    """All of a fetch is handed out together: who reads a stream beside it loses nothing by it."""
    bad, good = (bus.writer(topics.OUTCOMES, name, manifest(name)) for name in ("bad.1", "good.1"))
    damaged = codec.encode([manifest("bad.1")])[:-4]
    entry = bad.entry()
    bad.close()
    future = bus.link.send(bad.at.topic, bad.at.partition, bad.key, damaged, layout.header(entry.epoch, 2))
    offset = int(bus.link.acknowledged(future, time.monotonic() + 30).offset)
    moved = layout.Entry("released", entry.writer, entry.epoch, entry.partition, offset)
    bus.put(bad.key, moved)  # the stream begins with it
    for number in range(3):
        good.write(coded(number))
    other, reader = bus.reader(topics.OUTCOMES, "bad.1"), bus.reader(topics.OUTCOMES, "good.1")
    assert numbers(reader) == [0, 1, 2]
    with pytest.raises(BusError, match=r"bad\.1: its manifest cannot be read"):
        other.manifest  # noqa: B018
    assert reader.manifest is not None  # negative control
    good.close()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"%s/outcomes/\xff\xfe", layout.Entry("open", "x", 1, 0, 0)),
        (b"%s/outcomes/../../etc", layout.Entry("open", "x", 1, 0, 0)),
        (b"%s/outcomes", layout.Entry("open", "x", 1, 0, 0)),
        (b"%s/outcomes/w1", layout.Entry("burning", "x", 1, 0, 0)),
        (b"%s/outcomes/w1", layout.Entry("open", "x", 1, -1, 0)),
        (b"%s/outcomes/w1", layout.Entry("open", "x", -9, 0, 0)),
    ],
)
def test_what_strangers_write_into_the_directory_is_passed_over(bus: KafkaBus, key: bytes, value: layout.Entry) -> None:
    bus.writer(topics.OUTCOMES, "w0", manifest()).close()
    bus.put(key % bus.scope.encode(), value)
    assert bus.partitions(topics.OUTCOMES) == ["w0"]
    bus.put(b"%s/outcomes/w2" % bus.scope.encode(), layout.Entry("released", "x", 1, 0, 0))
    assert bus.partitions(topics.OUTCOMES) == ["w0", "w2"]  # negative control


def test_a_stream_that_should_lie_where_there_is_nothing_is_told(bus: KafkaBus) -> None:
    bus.put(b"%s/outcomes/w1" % bus.scope.encode(), layout.Entry("released", "x", 1, 4, 0))
    for use in (lambda: bus.reader(topics.OUTCOMES, "w1"), lambda: bus.writer(topics.OUTCOMES, "w1", manifest("w1"))):
        with pytest.raises(BusError, match=r"should lie in partition 4 of .*outcomes, which has 4"):
            use()


def test_a_stream_outlives_the_retention_of_its_beginning(bus: KafkaBus) -> None:
    """A worker that stands by beats for months; what it said first is gone by then."""
    writer = bus.writer(topics.BEATS, "w0", manifest("w0", topics.BEATS))
    at = [writer.write(coded(number)) for number in range(6)]
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=list(bus.link.address.servers))) as admin:
        admin.delete_records({writer.at: at[3]})
    with pytest.raises(BusError, match="retention of the topic is over"):
        bus.reader(topics.BEATS, "w0").read()  # negative control: nothing is passed over in silence
    assert numbers(bus.reader(topics.BEATS, "w0", at[4])) == [4, 5]
    since = bus.offset_at(topics.BEATS, "w0", 0)
    assert numbers(bus.reader(topics.BEATS, "w0", since)) == [3, 4, 5]
    writer.close()
    again = bus.writer(topics.BEATS, "w0", manifest("w0", topics.BEATS))  # after a restart
    again.write(coded(6))
    reader = bus.reader(topics.BEATS, "w0")
    assert reader.manifest is not None and numbers(reader) == [6]
    again.end(End("run-1", "w0", 1, 0, 0))
    assert reader.read() and reader.ended


def test_topics_are_made_and_checked_from_the_command_line(request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue("kafka_server").address
    prefix = f"test-{uuid.uuid4().hex[:8]}"
    at = ["--bus", f"kafka://{server}/{prefix}"]
    run = CliRunner().invoke
    missing = run(cli, ["topics", "check", *at])
    assert missing.exit_code == 2 and missing.stderr.count("\n") == 1 and "topics create" in missing.stderr
    try:
        made = run(cli, ["topics", "create", *at, "--partitions", "2", "--retention", "1h", "--json"])
        assert made.exit_code == 0, made.output
        found = [json.loads(line) for line in made.stdout.splitlines()]
        assert len(found) == 12 and all(topic["made"] and not topic["problem"] for topic in found)
        checked = run(cli, ["topics", "check", *at])
        assert checked.exit_code == 0 and checked.stdout.count("fine") == 12
    finally:
        with Topics(parse_kafka(at[1])) as topics_there:
            topics_there.delete()
    folder = run(cli, ["topics", "check", "--bus", "runs"])
    assert folder.exit_code == 2 and "a folder, and needs no topics" in folder.stderr
    many = run(cli, ["topics", "create", *at, "--min-insync", "2"])
    assert isinstance(many.exception, BusError) and "of 1 replicas" in str(many.exception)
    few = run(cli, ["topics", "create", *at, "--replication", "9"])
    assert isinstance(few.exception, BusError) and str(few.exception).endswith("at most as many as brokers)")
    assert len(str(few.exception)) < 200
    for wrong in ("http://127.0.0.1:9092", f"kafka:/{server}"):
        other = run(cli, ["topics", "check", "--bus", wrong])
        assert isinstance(other.exception, BusError) and "kafka://host:port" in str(other.exception), wrong
    process = [sys.executable, "-m", "livefire", "topics", "check", *at]
    assert subprocess.run(process, capture_output=True, check=False).returncode == 2
