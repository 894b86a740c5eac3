"""Cleansing batch by batch, over any number of agents, partitions and kills, gives what cleansing the file gives."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import synthetic_trace
from fault_checks import ROOT, environment
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cleanse_app import DROPS, SETTINGS, exchange, read, write

from bus.logfile import FileBus, LogReader, account_of
from bus.ports import BusError, Message
from cleanse import learned, loop
from cleanse.app import cleanse
from cleanse.learned import Learned
from cleanse.settings import CleanseSettings
from cleanse.stream import MAX_DEAD_BYTES, StreamPipeline, partition_of
from replay.fetch import fetch
from replay.recording import Recording
from wire import codec, topics
from wire.codec import RecordType
from wire.records import Dead, End, Exchange, Flows, Manifest, RouteTable, SourceRange

NAME = "monday"
NOTHING = Learned(RouteTable(NAME, ()), Flows(NAME, ()))


def deal(
    root: Path, exchanges: Sequence[Exchange], rng: random.Random, agents: int = 2, partitions: int = 3
) -> FileBus:
    """Raw streams of several agents, whole batches dealt over their partitions, as recorders do."""
    bus = FileBus(root / NAME)
    hosts = tuple(f"agent-{n}" for n in range(agents))
    by_agent: list[list[Exchange]] = [[] for _ in hosts]
    for one in exchanges:
        rng.choice(by_agent).append(one)
    for host, own in zip(hosts, by_agent, strict=True):
        writers = {}
        counts = dict.fromkeys(range(partitions), 0)
        for k in range(partitions):
            manifest = Manifest(
                topics.RAW, f"{host}.{k}", NAME, synthetic_trace.START_NS, "test", hosts, scale=0.5, masked=False
            )
            writers[k] = bus.writer(topics.RAW, f"{host}.{k}", manifest)
        at = 0
        while at < len(own):
            k, size = rng.randrange(partitions), rng.randint(1, 9)
            writers[k].write_records(own[at : at + size])
            counts[k] += len(own[at : at + size])
            if rng.random() < 0.2:
                writers[k].write_records((), RecordType.ACCOUNT)
            at += size
        for k, writer in writers.items():
            writer.end(End(NAME, f"{host}.{k}", counts[k], 0, 0))
    return bus


def run(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command line."""
    return subprocess.run(
        [sys.executable, "-m", "livefire", *words],
        capture_output=True, text=True, cwd=folder, timeout=100, env=environment(), check=False,
    )  # fmt: skip


def same(one: Path, other: Path) -> None:
    """Two clean files hold the same, but for when and by whom they were made, and where from."""
    mine, theirs = read(one), read(other)
    assert mine[0] == theirs[0]
    ours, its = (batches[1] for batches in (mine, theirs))
    assert [b.header.type for b in ours] == [b.header.type for b in its]
    assert [(b.header.first_ns, b.header.last_ns) for b in ours[1:]] == [
        (b.header.first_ns, b.header.last_ns) for b in its[1:]
    ]
    assert ours[1].records[0].routes == its[1].records[0].routes
    assert ours[2].records[0].flows == its[2].records[0].flows
    assert account_of(one).as_json() == account_of(other).as_json()
    where = {"created_ns": 0, "hosts": (), "inputs": (), "owner_id": "", "clock_offset_ns": 0, "clock_error_ns": 0}
    assert msgspec.structs.replace(ours[0].records[0], **where) == msgspec.structs.replace(its[0].records[0], **where)
    assert Recording(one).survey() == msgspec.structs.replace(
        Recording(other).survey(), recording_id=Recording(one).survey().recording_id
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 30), agents=st.integers(1, 3), partitions=st.integers(1, 4), width=st.integers(1, 5))
def test_any_recording_dealt_in_any_way_gives_what_its_file_gives(
    seed: int, agents: int, partitions: int, width: int
) -> None:
    rng = random.Random(seed)
    exchanges = synthetic_trace.make(seed).exchanges
    exchanges += [exchange(900 + n, **changes) for n, (_, _, changes) in enumerate(DROPS) if rng.random() < 0.5]
    exchanges = [msgspec.structs.replace(e, server=rng.choice((e.server, "10.1.0.1:8080"))) for e in exchanges]
    rng.shuffle(exchanges)
    rules = SETTINGS if seed % 2 else CleanseSettings(drop=SETTINGS.drop)
    until_ns = synthetic_trace.START_NS + rng.randrange(10**12)
    from_ns = synthetic_trace.START_NS + rng.randrange(10**6)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cleanse(write(root / "raw.lf", exchanges), root / "file.lf", rules, until_ns, from_ns)
        known = learned.load(root / "file.lf")
        bus = deal(root, exchanges, rng, agents, partitions)
        pipeline = StreamPipeline(rules, known, width, from_ns=from_ns, until_ns=until_ns)
        result = loop.run(bus, NAME, pipeline)
        assert result.whole and not result.dead
        fetched = fetch(bus, NAME, root / "fetched.lf", deadline_s=10)
        assert fetched is not None and fetched.account.balanced
        if fetched.exchanges:
            same(root / "fetched.lf", root / "file.lf")
        # Every worker gets the same bytes, also one with little memory.
        fetch(bus, NAME, root / "again.lf", deadline_s=10, memory_bytes=20_000)
        assert (root / "again.lf").read_bytes() == (root / "fetched.lf").read_bytes()
        # A session's exchanges are in one partition.
        for name in bus.partitions(topics.CLEAN):
            for stamped in read(bus.path(topics.CLEAN, name))[0]:
                assert partition_of(stamped.session_id, width) == int(name.rpartition(".")[2])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_stopped_at_any_message_it_goes_on_without_loss_or_repetition(seed: int) -> None:
    """As after a kill: some of the outputs of the last message are written, others are not."""
    rng = random.Random(seed)
    exchanges = synthetic_trace.make(seed).exchanges
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cleanse(write(root / "raw.lf", exchanges), root / "file.lf")
        bus = deal(root, exchanges, rng)
        pipeline = StreamPipeline(CleanseSettings(), learned.load(root / "file.lf"), 3)
        kills = 0
        while kills < 50:
            left = [rng.randrange(1, 12)]

            class Killed(FileBus):
                def writer(self, topic: str, partition: str, manifest: Manifest):  # type: ignore[no-untyped-def]
                    made = super().writer(topic, partition, manifest)
                    write_now = made.write

                    def write(data: bytes) -> int:
                        left[0] -= 1  # noqa: B023
                        if left[0] < 0:  # noqa: B023
                            raise KeyboardInterrupt
                        return write_now(data)

                    made.write = write
                    return made

            try:
                assert loop.run(Killed(bus.root), NAME, pipeline).whole
                break
            except KeyboardInterrupt:
                kills += 1
        assert 0 < kills < 50
        fetched = fetch(bus, NAME, root / "fetched.lf", deadline_s=10)
        assert fetched is not None and fetched.repeats == 0
        same(root / "fetched.lf", root / "file.lf")


def message(data: bytes, offset: int = 7) -> Message:
    return Message(topics.RAW, "a.3", offset, offset + 1, data)


def test_a_batch_is_counted_once_wherever_it_goes() -> None:
    pipeline = StreamPipeline(SETTINGS, NOTHING, 4)
    batch = [exchange(n) for n in range(40)] + [exchange(50 + n, **changes) for n, (_, _, changes) in enumerate(DROPS)]
    outputs = pipeline.apply(message(codec.encode(batch)))
    headers = [codec.decode_header(output.data) for output in outputs]
    assert {output.stream for output in outputs} <= {f"a.3.{j}" for j in range(4)} and len(outputs) > 1
    assert [output.partition for output in outputs] == sorted({output.partition for output in outputs})
    assert all(header.sources == (SourceRange(topics.RAW, "a.3", 7, 8),) for header in headers)
    (increment,) = [header.increment for header in headers if header.increment.ledgers]
    ledger = increment.ledgers["messages"]
    assert (ledger.seen, ledger.emitted, ledger.difference) == (len(batch), sum(h.count for h in headers), 0)
    # Pure: the same again gives the same bytes.
    assert pipeline.apply(message(codec.encode(batch))) == outputs


def test_what_is_left_out_whole_is_counted_all_the_same() -> None:
    pipeline = StreamPipeline(SETTINGS, NOTHING, 4)
    gone = [exchange(n, server="10.9.9.9:1") for n in range(5)]
    (output,) = pipeline.apply(message(codec.encode(gone)))
    header = codec.decode_header(output.data)
    assert header.type is RecordType.ACCOUNT and header.sources
    assert header.increment.ledgers["messages"].intentional == {"other_server": 5}


def test_manifest_and_end_go_to_every_partition() -> None:
    pipeline = StreamPipeline(CleanseSettings(), NOTHING, 3)
    raw = Manifest(topics.RAW, "a.3", NAME, 5, "recorder", ("a", "b"), scale=0.25)
    outputs = pipeline.apply(message(codec.encode((raw,))))
    assert [(o.stream, o.type.name) for o in outputs] == [
        (f"a.3.{j}", kind) for j in range(3) for kind in ("MANIFEST", "ROUTE_TABLE", "FLOWS")
    ]
    (manifest,) = codec.decode(outputs[3].data).records
    assert (manifest.topic, manifest.partition, manifest.owner_id) == (topics.CLEAN, "a.3.1", NAME)
    assert (manifest.hosts, manifest.scale, manifest.created_ns) == (("a", "b"), 0.25, 5)
    ends = pipeline.apply(message(codec.encode((End(NAME, "a.3", 12, 0, 0),))))
    assert [(o.stream, codec.decode(o.data).records[0].count) for o in ends] == [(f"a.3.{j}", 12) for j in range(3)]
    assert pipeline.apply(message(codec.encode((), RecordType.ACCOUNT))) == []


@pytest.mark.parametrize(
    ("data", "count", "reason"),
    [
        (b"no batch at all", 0, "truncated"),
        (codec.encode([exchange(1)] * 3, compress=False)[:-40] + b"\xff" * 40, 3, "corrupt"),
        (codec.encode([exchange(1)] * 3)[:60], 3, "corrupt"),
        (codec.encode([exchange(1)])[:2] + b"\x09" + codec.encode([exchange(1)])[3:], 0, "future_version"),
    ],
)
def test_poison_is_a_dead_letter_and_counted(data: bytes, count: int, reason: str) -> None:
    pipeline = StreamPipeline(CleanseSettings(), NOTHING, 4)
    with pytest.raises(codec.CodecError) as told:
        pipeline.apply(message(data))
    assert told.value.reason == reason
    dead, account = pipeline.poison(message(data), str(told.value))
    (letter,) = codec.decode(dead.data).records
    assert letter == Dead(topics.RAW, "a.3", 7, data, str(told.value), "cleanse") and dead.topic == topics.DEAD
    increment = codec.decode_header(account.data).increment
    assert increment.notes == {"unreadable_batches": 1}
    assert (increment.ledgers["messages"].seen, increment.ledgers["messages"].dropped) == (count, count)
    assert account.stream.startswith("a.3.")


def test_a_letter_that_is_too_large_for_a_message_leaves_its_bytes_where_they_are() -> None:
    pipeline = StreamPipeline(CleanseSettings(), NOTHING, 4)
    huge = random.Random(1).randbytes(MAX_DEAD_BYTES + 1)
    dead, _ = pipeline.poison(message(huge), "why")
    (letter,) = codec.decode(dead.data).records
    assert letter.data == b"" and letter.error == f"why; its {len(huge)} bytes are left where they are"
    small = StreamPipeline(CleanseSettings(), NOTHING, 1, max_bytes=100)
    with pytest.raises(codec.CodecError, match="becomes a message of"):
        small.apply(message(codec.encode([exchange(1)])))


def test_on_files_poison_stalls_nothing_and_is_in_the_account(tmp_path: Path) -> None:
    bus = FileBus(tmp_path / NAME)
    writer = bus.writer(topics.RAW, "a.0", Manifest(topics.RAW, "a.0", NAME, 1, "test", ("a",)))
    writer.write_records([exchange(1)])
    writer.write(codec.encode([exchange(2), exchange(3)], compress=False)[:-40] + b"\xff" * 40)
    writer.write(b"no batch at all")
    writer.write_records([exchange(4)])
    writer.end(End(NAME, "a.0", 4, 0, 0))
    for _ in range(2):  # doing it again changes nothing
        result = loop.run(bus, NAME, StreamPipeline(CleanseSettings(), NOTHING, 2))
    assert result.whole
    letters = [b for b in read(bus.path(topics.DEAD, "a.0"))[1] if b.header.type is RecordType.DEAD]
    assert len(letters) == 2
    fetched = fetch(bus, NAME, tmp_path / "clean.lf", deadline_s=5)
    assert fetched is not None and fetched.exchanges == 2
    ledger = fetched.account.ledger("messages")
    assert (ledger.seen, ledger.emitted, ledger.drops) == (4, 2, {"unreadable": 2}) and fetched.account.balanced


def test_what_was_learned_is_kept_in_a_file(tmp_path: Path) -> None:
    trace = synthetic_trace.make(5)
    raw = write(tmp_path / "raw.lf", trace.exchanges)
    result = cleanse(raw, tmp_path / "clean.lf")
    from_clean = learned.load(tmp_path / "clean.lf")
    assert from_clean == Learned(result.routes, result.flows)
    with LogReader(raw) as reader:
        assert reader.manifest is not None
        learned.save(tmp_path / "learned.lf", from_clean, reader.manifest)
    assert learned.load(tmp_path / "learned.lf") == from_clean
    with pytest.raises(BusError, match="exists already"):
        learned.save(tmp_path / "learned.lf", from_clean, Manifest("raw", "0", "x", 1, "t"))
    with pytest.raises(BusError, match="livefire learn"):
        learned.load(raw)
