"""A recording is fetched when it is whole, and not before; what is missing or twice is told."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import msgspec
import pytest
from test_cleanse_app import exchange
from test_cleanse_stream import NAME, NOTHING, deal

from bus.logfile import FileBus, account_of
from bus.ports import BusAway, BusError
from cleanse import loop
from cleanse.learned import Learned
from cleanse.settings import CleanseSettings
from cleanse.stream import StreamPipeline
from replay.fetch import Progress, fetch
from replay.recording import Recording
from wire import codec, topics
from wire.account import Account, Increment, Ledger, kept_and_shed, kept_share
from wire.records import End, Flows, Manifest, Route, RouteTable
from wire.streams import CLEAN_WIDTH


def cleansed(tmp_path: Path, count: int = 40, width: int = 2) -> FileBus:
    bus = deal(tmp_path, [exchange(n) for n in range(count)], random.Random(5))
    loop.run(bus, NAME, StreamPipeline(CleanseSettings(), NOTHING, width))
    return bus


def test_the_file_can_be_replayed(tmp_path: Path) -> None:
    told: list[Progress] = []
    fetched = fetch(cleansed(tmp_path), NAME, tmp_path / "clean.lf", deadline_s=5, told=told.append)
    assert fetched is not None and told[-1].waiting_for == () and told[-1].streams == told[-1].ended == 12
    recording = Recording(tmp_path / "clean.lf")
    survey = recording.survey()
    assert (survey.exchanges, survey.recording_id, survey.doubts, survey.scale) == (40, NAME, (), 0.5)
    assert recording.manifest == fetched.manifest
    assert (recording.manifest.hosts, recording.manifest.servers) == (("agent-0", "agent-1"), ("10.1.0.1:8080",))
    assert account_of(tmp_path / "clean.lf").as_json() == fetched.account.as_json()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean.lf", NAME]


def test_it_waits_for_all_agents_and_all_ends(tmp_path: Path) -> None:
    bus = FileBus(tmp_path / NAME)
    hosts = ("a", "b")
    one = bus.writer(topics.RAW, "a.0", Manifest(topics.RAW, "a.0", NAME, 1, "test", hosts))
    one.write_records([exchange(1)])
    stopped, told = threading.Event(), []  # type: ignore[var-annotated]
    pipeline = StreamPipeline(CleanseSettings(), NOTHING, 2)
    worker = threading.Thread(target=loop.run, args=(bus, NAME, pipeline, stopped.is_set))
    worker.start()
    try:
        with pytest.raises(BusError, match=r"not whole after 0\.5 s: waits for agent b, the end of a\.0"):
            fetch(bus, NAME, tmp_path / "clean.lf", deadline_s=0.5)
        assert fetch(bus, NAME, tmp_path / "clean.lf", stop=lambda: True) is None
        assert sorted(p.name for p in tmp_path.iterdir()) == [NAME]

        def progress(now: Progress) -> None:
            """The recording goes on while it is fetched."""
            told.append(now.waiting_for)
            if now.exchanges == 1 and "agent b" in now.waiting_for:
                one.end(End(NAME, "a.0", 1, 0, 0))
                other = bus.writer(topics.RAW, "b.0", Manifest(topics.RAW, "b.0", NAME, 1, "test", hosts))
                other.write_records([exchange(2)])
                other.end(End(NAME, "b.0", 1, 0, 0))

        fetched = fetch(bus, NAME, tmp_path / "clean.lf", deadline_s=20, told=progress)
        assert fetched is not None and fetched.exchanges == 2 and ("the end of b.0",) in [*told, ("the end of b.0",)]
    finally:
        stopped.set()
        worker.join()


def test_a_bus_that_is_away_is_waited_for(tmp_path: Path) -> None:
    bus = cleansed(tmp_path)
    away = [3]

    class Away(FileBus):
        def partitions(self, topic: str) -> list[str]:
            if away[0] > 0:
                away[0] -= 1
                raise BusAway("away")
            return super().partitions(topic)

    told: list[Progress] = []
    assert fetch(Away(bus.root), NAME, tmp_path / "clean.lf", deadline_s=10, told=told.append) is not None
    assert told[0].waiting_for == ("the bus (away)",) and away == [0]


def test_what_stands_there_twice_counts_once(tmp_path: Path) -> None:
    """As two cleansers leave it, of which one was killed before it had said how far it was."""
    pipeline = StreamPipeline(CleanseSettings(), NOTHING, 2)
    raw = deal(tmp_path / "raw", [exchange(n) for n in range(60)], random.Random(5), 1, 1)
    reader = raw.reader(topics.RAW, "agent-0.0")
    messages = []
    while found := reader.read():
        messages += found
    clean = FileBus(tmp_path / "twice" / NAME)
    writers = {j: clean.writer(topics.CLEAN, m.partition, m) for j, m in enumerate(pipeline.heads(reader.manifest, "agent-0.0"))}  # type: ignore[arg-type] # fmt: skip
    order = [*messages[1:6], *messages[3:9], *messages[4:-1], *messages[-1:]]
    for message in order:
        for output in pipeline.apply(message):
            writers[output.partition].write(output.data)
    fetched = fetch(clean, NAME, tmp_path / "twice.lf", deadline_s=5)
    assert fetched is not None and fetched.repeats > 0 and fetched.account.balanced
    assert fetched.exchanges == 60 == fetched.account.ledger("messages").seen
    assert len({s.exchange_id for s in Recording(tmp_path / "twice.lf").stamped()}) == 60


@pytest.mark.parametrize("seed", range(4))
def test_a_request_that_two_agents_saw_is_fired_once(tmp_path: Path, seed: int) -> None:
    """Their clocks differ a little, so their copies stand apart; who repeats a request later is another one."""
    rng = random.Random(seed)
    made = [exchange(n) for n in range(200)]
    copies = [
        msgspec.structs.replace(one, request_start_ns=one.request_start_ns + rng.randrange(-50, 50) * 1_000_000)
        for one in rng.sample(made, 60)
    ]
    bus = deal(tmp_path, sorted((*made, *copies), key=lambda one: one.request_start_ns), rng)
    loop.run(bus, NAME, StreamPipeline(CleanseSettings(), NOTHING, 2))
    fetched = fetch(bus, NAME, tmp_path / "clean.lf", deadline_s=5, memory_bytes=100_000)
    assert fetched is not None and fetched.account.balanced
    ledger = fetched.account.ledger("messages")
    assert (fetched.exchanges, ledger.seen, ledger.drops) == (200, 260, {"other_agent": 60})
    fired = [stamped.exchange_id for stamped in Recording(tmp_path / "clean.lf").stamped()]
    assert sorted(fired) == sorted(one.exchange_id for one in made)


def test_what_no_cleanser_saw_is_missing_in_the_account(tmp_path: Path) -> None:
    """Control: a batch that got lost on the way is not passed over in silence."""
    bus = cleansed(tmp_path)
    stream = next(name for name in bus.partitions(topics.CLEAN) if name.startswith("agent-0.1."))
    lost = FileBus(tmp_path / "lost" / NAME)
    count = 0
    for name in bus.partitions(topics.CLEAN):
        reader = bus.reader(topics.CLEAN, name)
        kept = lost.writer(topics.CLEAN, name, reader.manifest)  # type: ignore[arg-type]
        for message in reader.read(1000)[1:]:
            header = codec.decode_header(message.data)
            if name == stream and header.increment.ledgers and not count:
                count = header.increment.ledgers["messages"].seen
                continue
            kept.write(message.data)
        kept.close()
    fetched = fetch(lost, NAME, tmp_path / "clean.lf", deadline_s=5)
    assert fetched is not None and count
    ledger = fetched.account.ledger("messages")
    # Those of the same batch that went into another partition are there, and count as such.
    assert ledger.drops.get("missing") == count and ledger.seen == 40 and fetched.exchanges < 40


def test_cleansers_that_were_given_different_lessons_are_found_out(tmp_path: Path) -> None:
    bus = deal(tmp_path, [exchange(n) for n in range(20)], random.Random(5), 1, 2)
    other = Learned(RouteTable(NAME, (Route("GET /x", "GET", ("x",)),)), Flows(NAME, ()))
    one, two = (StreamPipeline(CleanseSettings(), known, 1) for known in (NOTHING, other))
    for pipeline, stream in ((one, "agent-0.0"), (two, "agent-0.1")):
        reader = bus.reader(topics.RAW, stream)
        writer = None
        while messages := reader.read():
            for message in messages:
                for output in pipeline.apply(message):
                    if writer is None:
                        (manifest,) = codec.decode(output.data).records
                        writer = bus.writer(topics.CLEAN, output.stream, manifest)
                    else:
                        writer.write(output.data)
    with pytest.raises(BusError, match="different --learned files"):
        fetch(bus, NAME, tmp_path / "clean.lf", deadline_s=5)


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "clean.lf").write_bytes(b"mine")
    with pytest.raises(BusError, match="exists already"):
        fetch(FileBus(tmp_path / NAME), NAME, tmp_path / "clean.lf")
    assert (tmp_path / "clean.lf").read_bytes() == b"mine"


def test_marks_that_hold_nothing_are_counted_and_stop_nobody(tmp_path: Path) -> None:
    bus = cleansed(tmp_path)
    plain = fetch(bus, NAME, tmp_path / "plain.lf", deadline_s=5)
    strange = FileBus(tmp_path / "strange" / NAME)
    for name in bus.partitions(topics.CLEAN):
        reader = bus.reader(topics.CLEAN, name)
        writer = strange.writer(topics.CLEAN, name, reader.manifest)  # type: ignore[arg-type]
        writer.write(codec.encode((), codec.RecordType.MANIFEST))
        for message in reader.read(1000)[1:]:
            writer.write(message.data)
        writer.close()
    fetched = fetch(strange, NAME, tmp_path / "clean.lf", deadline_s=5)
    assert fetched is not None and plain is not None and fetched.exchanges == plain.exchanges
    assert fetched.account.notes["unreadable_batches"] == len(bus.partitions(topics.CLEAN))


@pytest.mark.parametrize("width", [0, -1, 10**12, "many", None])
def test_a_manifest_with_a_width_that_cannot_be_is_one_line(tmp_path: Path, width: object) -> None:
    bus = FileBus(tmp_path / NAME)
    manifest = Manifest(topics.CLEAN, "a.0.0", NAME, 1, "test", ("a",), settings={CLEAN_WIDTH: width})
    bus.writer(topics.CLEAN, "a.0.0", manifest).close()
    with pytest.raises(BusError, match=r"a\.0\.0 says that it has .* clean streams"):
        fetch(bus, NAME, tmp_path / "clean.lf", deadline_s=5)


def test_what_the_recorders_shed_is_part_of_the_scale(tmp_path: Path) -> None:
    """As of a file: told with exchanges, and in accounts alone. What was lost otherwise is not."""
    shed, names = {"shed": 3, "no_room": 2, "gap": 7}, ("a.0", "b.0")
    bus = FileBus(tmp_path / NAME)
    for number, name in enumerate(names):
        with bus.writer(topics.RAW, name, Manifest(topics.RAW, name, NAME, 1, "test", ("a", "b"), scale=0.5)) as one:
            grown = Increment({"messages": Ledger(seen=20 + 12 * number, emitted=20, drops=shed if number else {})})
            one.write_records([exchange(n + 10 * number) for n in range(10)], increment=grown)
            if number:
                alone = Increment({"messages": Ledger(seen=5, drops={"max_cpu": 5})})
                one.write_records((), codec.RecordType.ACCOUNT, increment=alone)
            one.end()
    loop.run(bus, NAME, StreamPipeline(CleanseSettings(), NOTHING, 3))
    fetched = fetch(bus, NAME, tmp_path / "clean.lf", deadline_s=5)
    assert fetched is not None and fetched.exchanges == 20
    assert fetched.manifest.scale == pytest.approx(0.5 * 40 / 50)
    assert not any(name.startswith("recorded.") for name in account_of(tmp_path / "clean.lf").notes)


def test_what_was_shed_unread_is_part_of_the_scale_as_in_a_file(tmp_path: Path) -> None:
    """Packets that were thrown away for want of processor time; bytes of connections that a proxy did not hand over."""
    grown = [
        Increment({"packets": Ledger(seen=60, emitted=60), "messages": Ledger(seen=20, emitted=20)}),
        Increment({"packets": Ledger(seen=20, drops={"max_cpu": 20})}),
        Increment({"bytes": Ledger(seen=400, emitted=100, drops={"shed": 300})}, {"shed_unread_bytes": 300}),
    ]
    bus = FileBus(tmp_path / NAME)
    with bus.writer(topics.RAW, "a.0", Manifest(topics.RAW, "a.0", NAME, 1, "test", ("a",), scale=0.5)) as one:
        one.write_records([exchange(n) for n in range(10)], increment=grown[0])
        for alone in grown[1:]:
            one.write_records((), codec.RecordType.ACCOUNT, increment=alone)
        one.end()
    loop.run(bus, NAME, StreamPipeline(CleanseSettings(), NOTHING, 3))
    fetched = fetch(bus, NAME, tmp_path / "clean.lf", deadline_s=5)
    whole = Account.total(grown)
    expected = 0.5 * 60 / 80 * 100 / 400
    assert fetched is not None and fetched.manifest.scale == pytest.approx(expected)
    assert kept_share(kept_and_shed(whole.ledgers, whole.notes)) == pytest.approx(expected / 0.5)
    of_memory = {
        "bytes": Ledger(seen=400, emitted=100, drops={"shed": 300}),
        "messages": Ledger(emitted=40, drops={"gap": 7}),
    }
    assert kept_share(kept_and_shed(of_memory, {})) == 1, "bytes of what was read: of messages that are counted as such"
