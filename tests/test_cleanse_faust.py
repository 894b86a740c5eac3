"""Cleansing with Faust, on a real broker: several workers, kills, poison, and what is told when it cannot run."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import synthetic_trace
from fault_checks import until
from fault_cleanse import (
    NAME,
    PARTITIONS,
    Agents,
    Poisoner,
    Worker,
    cluster,
    kept_up,
    lag,
    learned_file,
    letter_problems,
    problems_of,
)
from http_target import Target
from servers.fixtures import started
from servers.kafka import Kafka
from test_cleanse_app import exchange, write
from test_cleanse_stream import NOTHING, run, same

from bus import kafka_layout as layout
from bus.address import open_bus, parse_kafka
from bus.kafka_topics import Topics, Wanted
from bus.logfile import FileBus
from bus.merge import LOOK_AHEAD_NS, Merge
from capture.dealer import Dealer
from cleanse.app import cleanse
from cleanse.relay import Relay
from cleanse.settings import CleanseSettings
from cleanse.signs import SignsOfLife
from cleanse.stream import StreamPipeline
from replay.book import records_of
from replay.fetch import fetch
from wire import codec, topics
from wire.codec import RecordType
from wire.records import Dead, End, Exchange, Manifest

GROUP = "cleanse"
IDLE = ("idle", "--recording", "tuesday")  # a worker that nothing comes to


def record(address: str, exchanges: list[Exchange], agents: tuple[str, ...] = ("a", "b")) -> None:
    """Each agent's exchanges in the order in which they were complete, dealt over its streams."""
    bus = open_bus(address, NAME)
    spread = bus.spread(topics.RAW)
    for number, agent in enumerate(agents):
        mine = sorted(exchanges[number :: len(agents)], key=lambda e: e.response_end_ns)
        writers = []
        for k in range(spread):
            manifest = Manifest(
                topics.RAW, f"{agent}.{k}", NAME, synthetic_trace.START_NS, "test", agents, scale=0.5, masked=False
            )
            writers.append(kept_up(lambda k=k, m=manifest: bus.writer(topics.RAW, f"{agent}.{k}", m)))  # noqa: B023
        counts = [0] * spread
        for turn, at in enumerate(range(0, len(mine), 6)):
            batch = mine[at : at + 6]
            kept_up(lambda w=writers[turn % spread], b=batch: w.write_records(b))
            counts[turn % spread] += len(mine[at : at + 6])
        for k, writer in enumerate(writers):
            kept_up(partial(writer.end, End(NAME, f"{agent}.{k}", counts[k], 0, 0)))
    bus.close()


AHEAD_NS = 200_000_000  # agent b's clock goes before


class Dealt(msgspec.Struct):
    """What two agents stamped, and what they made of it by the clocks that they measured."""

    stamped: list[Exchange] = []
    corrected: list[Exchange] = []
    errors_ns: list[int] = []  # of each of `corrected`, at most


def deal_out(address: str, folder: Path, exchanges: list[Exchange], between: Callable[[], None]) -> Dealt:
    """Agents as `livefire record` has them: each measures its clock against the bus's, says so in the manifests of its
    streams, and puts its times right by it. `between` is called before the last batches come."""
    agents, dealt, dealers, rest = ("a", "b"), Dealt(), [], []
    for number, agent in enumerate(agents):
        ahead = number * AHEAD_NS
        dealer = Dealer(
            open_bus(address, NAME),
            Manifest(topics.RAW, "0", NAME, synthetic_trace.START_NS, "test", agents, scale=0.5, masked=False),
            agent, folder / agent, 64 << 20, monotonic_ns=time.monotonic_ns, skew_ns=lambda ahead=ahead: -ahead,
        )  # fmt: skip
        dealers.append(dealer)
        assert dealer.clock is not None and not dealer.away
        offset, error = dealer.clock.offset_ns, dealer.clock.error_ns
        assert abs(offset + ahead) <= error, "measured"
        assert (dealer.manifest.clock_offset_ns, dealer.manifest.clock_error_ns) == (offset, error), "recorded"
        mine = []
        for one in exchanges[number :: len(agents)]:
            dealt.stamped.append(shifted(one, ahead))
            mine.append(shifted(one, ahead + offset))
            dealt.errors_ns.append(error)
        dealt.corrected += mine
        mine.sort(key=lambda e: e.response_end_ns)
        batches = [codec.encode(mine[at : at + 6]) for at in range(0, len(mine), 6)]
        for batch in batches[:-1]:
            dealer.write(batch)
        dealer.settle()
        rest.append(batches[-1])
    between()
    for dealer, batch in zip(dealers, rest, strict=True):
        dealer.write(batch)
        dealer.end()
        dealer.close()
    return dealt


def shifted(one: Exchange, by_ns: int) -> Exchange:
    times = ("request_start_ns", "request_end_ns", "response_start_ns", "response_end_ns")
    return msgspec.structs.replace(one, **{name: getattr(one, name) + by_ns for name in times})


def out_of_order(found: list[Exchange], true_ns: dict[bytes, int], error_ns: int) -> int:
    """How many stand behind one that really began later, by more than clocks can be wrong."""
    latest, wrong = 0, 0
    for one in found:
        began = true_ns[one.exchange_id]
        wrong += began < latest - error_ns
        latest = max(latest, began)
    return wrong


def test_two_workers_over_kafka_give_what_the_file_gives(tmp_path: Path, kafka_server: Any) -> None:
    """Two agents whose clocks differ by 200 ms, eight partitions, one exchange that takes 30 s; learned over the bus as
    well; two cleansers, and two workers that fire what they give."""
    exchanges = synthetic_trace.make(21).exchanges
    slow = exchanges[len(exchanges) // 6]
    exchanges[len(exchanges) // 6] = msgspec.structs.replace(slow, response_end_ns=slow.request_start_ns + 30 * 10**9)
    exchanges = [msgspec.structs.replace(e, server="10.1.0.1:8080") for e in exchanges]
    true_ns = {one.exchange_id: one.request_start_ns for one in exchanges}
    with cluster(kafka_server.address) as address:
        bus = open_bus(address, NAME)
        merges = [
            Merge(bus, topics.RAW, RecordType.EXCHANGE, lambda e: e.request_start_ns, look_ahead_ns=ahead, agents="ab")
            for ahead in (LOOK_AHEAD_NS, 0)
        ]
        merged: list[list[Exchange]] = [[], []]

        def follow() -> None:
            for merge, into in zip(merges, merged, strict=True):
                while released := merge.poll():
                    into += released

        dealt = deal_out(address, tmp_path / "spool", exchanges, follow)

        def follow_on() -> bool:
            follow()
            return all(merge.whole for merge in merges)

        until(follow_on, 40, "the raw streams are not whole")
        error = 2 * max(dealt.errors_ns)
        assert error < AHEAD_NS, "a clock that is known no better tells nothing here"
        found, hasty = merged
        assert sorted(e.exchange_id for e in found) == sorted(true_ns) and merges[0].late == 0
        assert merges[1].late == len(exchanges) - len(hasty) > 0  # control: a look-ahead that is too short
        assert slow.exchange_id not in {e.exchange_id for e in hasty}
        assert all(abs(e.request_start_ns - true_ns[e.exchange_id]) <= error for e in found), "corrected"
        assert out_of_order(found, true_ns, error) == 0
        # Control: clocks that are not put right.
        assert out_of_order(sorted(dealt.stamped, key=lambda e: e.request_start_ns), true_ns, error) > 0

        cleanse(write(tmp_path / "raw.lf", dealt.corrected), tmp_path / "file.lf")
        where = ("--bus", address, "--recording", NAME)
        done = run("learn", *where, "--to", str(tmp_path / "learned.lf"), "--wait", "30s")
        assert done.returncode == 0, done.stderr
        os.replace(tmp_path / "learned.lf", tmp_path / "clean.lf")  # what workers are given
        workers = [Worker(tmp_path, address, name) for name in ("c0", "c1")]
        try:
            fetched = fetch(bus, NAME, tmp_path / "fetched.lf", deadline_s=60)
            assert fetched is not None
            same(tmp_path / "fetched.lf", tmp_path / "file.lf")
            assert fetched.manifest.clock_error_ns == max(dealt.errors_ns), "recorded where it is fired from, too"
            fetch(bus, NAME, tmp_path / "again.lf", deadline_s=60)
            bus.close()
            assert (tmp_path / "again.lf").read_bytes() == (tmp_path / "fetched.lf").read_bytes()
            # What is written is committed: who comes later has nothing to do.
            group = f"{parse_kafka(address).prefix}.{GROUP}"
            until(lambda: lag(address, group) == 0, 40, "not committed", workers[0].said)
            assert [worker.ready().end(term=bool(n)) for n, worker in enumerate(workers)] == [0, 0]
        finally:
            for worker in workers:
                worker.close()
    target = Target(tmp_path)
    try:
        fired = run(
            "--runs", str(tmp_path / "runs"), "--keys", str(tmp_path / "keys.json"), "replay",
            str(tmp_path / "fetched.lf"), "--target", target.url, "--disposable-target", "--workers", "2", "--json",
        )  # fmt: skip
        assert fired.returncode == 0, fired.stderr
        summed = json.loads(fired.stdout)
        # Half of production was recorded. This target hands out nothing, so what wants a value of an answer is not sent;
        # all of it is in the books.
        assert summed["planned"] == 2 * fetched.exchanges and summed["balanced"] and not summed["unknown"]
        assert summed["sent"] == len(target.requests()) > 0
        books = FileBus(tmp_path / "runs" / summed["run_id"])
        kept = {
            name: list(records_of(books.reader(topics.OUTCOMES, name), RecordType.OUTCOME)) for name in ("w0", "w1")
        }
        assert all(kept.values()) and sorted(o.exchange_id for n in kept for o in kept[n]) == sorted([*true_ns] * 2)
    finally:
        target.kill()


def test_poison_is_a_dead_letter_once_and_stalls_nothing(tmp_path: Path, kafka_server: Any) -> None:
    with cluster(kafka_server.address) as address:
        poison = Poisoner(address)
        worker = Worker(tmp_path, address, "c0").ready()
        try:
            with Agents(address, pause_s=0.05) as agents:
                for kind in ("corrupt", "truncated", "future", "large"):
                    poison.write(kind)
                    written = agents.batches
                    until(lambda: agents.batches > written + 16, 20, "nothing is written")  # noqa: B023
            bus = open_bus(address, NAME)
            fetched = fetch(bus, NAME, tmp_path / "fetched.lf", deadline_s=60)
            bus.close()
            assert fetched is not None
            assert problems_of(agents.written, fetched, tmp_path / "fetched.lf", 4) == []
            assert letter_problems(address, poison.written) == []
            assert letter_problems(address, poison.written[1:]) != []  # control
            told = run("dead", "list", "--bus", address, "--recording", NAME)
            assert "format version 99" in told.stdout and "ends inside" not in told.stdout
            assert run("dead", "drop", "--bus", address, "--recording", NAME, "--all").returncode == 0
            assert "no dead letters" in run("dead", "list", "--bus", address, "--recording", NAME).stdout
            assert worker.end() == 0 and "4 dead letters" in worker.said()
        finally:
            poison.close()
            worker.close()


def test_the_check_of_lost_and_repeated_exchanges_sees_them(tmp_path: Path) -> None:
    """Controls: each thing that the fault test looks for is found when it is there."""
    from test_cleanse_stream import deal

    from cleanse import loop

    exchanges = [exchange(n) for n in range(40)]
    bus = deal(tmp_path, exchanges, random.Random(1))
    loop.run(bus, NAME, StreamPipeline(CleanseSettings(), NOTHING, 2))
    fetched = fetch(bus, NAME, tmp_path / "clean.lf", deadline_s=5)
    assert fetched is not None
    written = {one.exchange_id: one for one in exchanges}
    assert problems_of(written, fetched, tmp_path / "clean.lf") == []
    more = {**written, b"x" * 16: exchanges[0]}
    assert any("lost" in text for text in problems_of(more, fetched, tmp_path / "clean.lf"))
    less = dict(list(written.items())[1:])
    assert any("never written" in text for text in problems_of(less, fetched, tmp_path / "clean.lf"))
    fetched.account.ledger("messages").emitted -= 1
    assert any("balance" in text for text in problems_of(written, fetched, tmp_path / "clean.lf"))


def test_missing_topics_are_one_line_and_no_idle_worker(tmp_path: Path, kafka_server: Any) -> None:
    address = f"kafka://{kafka_server.address}/nowhere-{os.getpid()}"
    done = run("cleanse", "--bus", address, "--learned", str(learned_file(tmp_path)))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "livefire topics create --bus" in done.stderr


def test_a_worker_begins_when_its_broker_answers_late(tmp_path: Path, kafka_server: Any) -> None:
    """Workers and brokers are often started together, and brokers are slower."""
    with cluster(kafka_server.address) as address:
        kafka_server.freeze()
        try:
            late = Worker(tmp_path, address, "late")
            until(lambda: "no broker answers; asks again" in late.said(), 30, "it does not wait", late.said)
        finally:
            kafka_server.thaw()
        try:
            assert late.ready().end() == 0, late.said()
            assert late.said().count("no broker answers") == 1, "told once"
        finally:
            late.close()


def test_a_worker_that_waits_for_its_broker_ends_when_it_is_told_to(tmp_path: Path) -> None:
    waits = Worker(tmp_path, "kafka://127.0.0.1:1/x", "early")
    try:
        until(lambda: "asks again" in waits.said(), 30, "it does not wait", waits.said)
        assert waits.end(term=True) == 2 and "connection refused" in waits.said().splitlines()[-1], waits.said()
    finally:
        waits.close()


def test_a_recording_of_its_own_is_cleansed_from_its_beginning(tmp_path: Path, kafka_server: Any) -> None:
    """A worker for one recording leaves the others alone, and what the common group has done does not matter."""
    with cluster(kafka_server.address) as address:
        record(address, synthetic_trace.make(3).exchanges)
        everything = Worker(tmp_path, address, "c0").ready()
        alone = Worker(tmp_path, address, "c1", "--recording", "tuesday").ready()
        try:
            bus = open_bus(address, NAME)
            assert fetch(bus, NAME, tmp_path / "one.lf", deadline_s=60) is not None
            bus.close()
            assert alone.end() == 0 and "cleansed" in alone.said()
            assert everything.end() == 0
            again = Worker(tmp_path, address, "c2", "--recording", NAME).ready()
            group = f"{parse_kafka(address).prefix}.cleanse.{NAME}"
            until(lambda: again.process.poll() is not None or _done(address, group), 40, "it does nothing", again.said)
            bus = open_bus(address, NAME)
            fetched = fetch(bus, NAME, tmp_path / "two.lf", deadline_s=60)
            bus.close()
            assert fetched is not None
            assert (tmp_path / "one.lf").read_bytes() == (tmp_path / "two.lf").read_bytes()
            assert again.end() == 0
        finally:
            for worker in (everything, alone):
                worker.close()


def _done(address: str, group: str) -> bool:
    try:
        return lag(address, group) == 0
    except Exception:
        return False


def test_a_frozen_worker_that_wakes_up_repeats_nothing(tmp_path: Path, kafka_server: Any) -> None:
    """A worker that stands still is taken for dead; its partitions go to others; then it goes on where it stood."""
    with cluster(kafka_server.address) as address:
        workers = [Worker(tmp_path, address, name).ready() for name in ("c0", "c1")]
        try:
            with Agents(address) as agents:
                until(lambda: agents.batches > 50, 20, "nothing is written")
                os.kill(workers[0].process.pid, signal.SIGSTOP)
                written = agents.batches
                until(lambda: agents.batches > written + 600, 60, "nothing is written")
                os.kill(workers[0].process.pid, signal.SIGCONT)
                written = agents.batches
                until(lambda: agents.batches > written + 50, 20, "nothing is written")
            bus = open_bus(address, NAME)
            fetched = fetch(bus, NAME, tmp_path / "fetched.lf", deadline_s=90)
            bus.close()
            assert fetched is not None
            assert problems_of(agents.written, fetched, tmp_path / "fetched.lf") == []
        finally:
            for worker in workers:
                worker.close()


def test_a_cleanser_says_how_far_it_is_while_something_comes() -> None:
    said: list[str] = []
    now = 100.0
    signs = SignsOfLife(said.append, lambda: now)
    signs.look(3, 0)
    assert said == []
    now += 10
    signs.look(1234, 0)
    now += 30
    signs.look(1234, 0)  # nothing came
    signs.look(1240, 2)
    signs.look(1241, 2)
    assert said == ["1,234 batches cleansed so far", "1,240 batches cleansed so far, 2 dead letters"]


# ---------------------------------------------------------------------------- the relay, without a broker


def relay(recording: str = "", width: int = 4) -> Relay:
    return Relay(StreamPipeline(CleanseSettings(), NOTHING, width), "p", PARTITIONS, recording)


KEY = b"monday/raw/a.3"


def test_outputs_carry_the_place_of_their_input_in_its_stream() -> None:
    data = codec.encode([exchange(n) for n in range(20)])
    sendings = relay().relay(KEY, data, layout.header(2, 7), 40, 3)
    assert len(sendings) > 1
    for sending in sendings:
        assert layout.sequence_in(sending.headers) == (2, 28)
        assert sending.key == b"monday/clean/a.3.%d" % sending.partition
        assert (sending.topic, sending.partition) == ("p.clean", layout.partition_of(sending.key.decode(), 4))
    # What an agent repeats is the same message to readers, wherever it lies.
    again = relay().relay(KEY, data, layout.header(2, 7), 99, 3)
    assert [s.headers for s in again] == [s.headers for s in sendings]
    head = relay().relay(KEY, codec.encode((Manifest("raw", "a.3", NAME, 1, "t"),)), layout.header(1, 1), 0, 3)
    assert [layout.sequence_in(s.headers) for s in head] == [(1, 4), (1, 5), (1, 6)] * 4


def test_the_mark_of_a_new_epoch_is_passed_on_to_every_partition() -> None:
    sendings = relay().relay(KEY, b"", layout.header(2, 0), 40, 3)
    assert [(s.partition, s.value, layout.sequence_in(s.headers)) for s in sendings] == [
        (j, b"", (2, 0)) for j in range(4)
    ]


def test_other_recordings_are_passed_over_and_strangers_become_dead_letters() -> None:
    data = codec.encode([exchange(1)])
    assert relay("tuesday").relay(KEY, data, (), 1, 3) == []
    assert relay("monday").relay(KEY, data, (), 1, 3) != []
    for key in (None, b"x", b"\xff\xfe", b"monday/clean/a.3"):
        strangers = relay()
        (letter,) = strangers.relay(key, data, (), 5, 3)
        assert (letter.topic, letter.key) == ("p.dead", b"fleet/dead/unnamed.3") and strangers.dead == 1
        assert relay("monday").relay(key, data, (), 5, 3) == []


def test_whatever_a_message_does_it_becomes_a_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a rule that fails")

    monkeypatch.setattr("cleanse.stream.plain_row", broken)
    letter, account = relay().relay(KEY, codec.encode([exchange(1)] * 3), layout.header(1, 5), 9, 3)
    (dead,) = codec.decode(letter.value).records
    assert isinstance(dead, Dead) and dead.error == "RuntimeError: a rule that fails"
    assert codec.decode_header(account.value).increment.ledgers["messages"].drops == {"unreadable": 3}


def test_topics_that_take_less_than_a_message_needs(tmp_path: Path, kafka_server: Any) -> None:
    """What the brokers refuse is a dead letter, too: it must not come again and again."""
    address = f"kafka://{kafka_server.address}/small{os.getpid()}"
    made = Topics(parse_kafka(address))
    made.create(Wanted(partitions=2))
    try:
        made._admin.alter_configs(  # smaller than its documentation asks
            [_small(layout.kafka_topic(parse_kafka(address).prefix, topics.CLEAN), 20_000)]
        )
        big = exchange(1)
        assert big.response is not None
        body = random.Random(1).randbytes(60_000)
        big = msgspec.structs.replace(big, response=msgspec.structs.replace(big.response, body=body, body_bytes=60_000))
        record(address, [big, *(exchange(n) for n in range(2, 30))])
        worker = Worker(tmp_path, address, "c0")
        try:
            bus = open_bus(address, NAME)
            fetched = fetch(bus, NAME, tmp_path / "fetched.lf", deadline_s=60)
            bus.close()
            assert fetched is not None and 0 < fetched.exchanges < 29
            found = run("dead", "list", "--bus", address, "--recording", NAME).stdout
            assert "the brokers refuse what it becomes" in found, found
            assert worker.ready().end() == 0
        finally:
            worker.close()
    finally:
        made.delete()
        made.close()


def _small(topic: str, size: int) -> Any:
    from kafka.admin import ConfigResource, ConfigResourceType

    return ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": str(size)})


def test_a_worker_is_stopped_while_the_broker_is_gone(tmp_path: Path) -> None:
    """Faust waits for ever for what only a broker can tell it: with nothing under way, and in the middle of work. What
    had not come to its end by then does with the next worker."""
    with started(Kafka) as broker, cluster(broker.address) as address:
        written = synthetic_trace.make(9).exchanges
        record(address, written, ("a",))
        workers = [Worker(tmp_path, address, *IDLE).ready(), Worker(tmp_path, address, "c0").ready()]
        try:
            bus = open_bus(address, NAME)
            until(lambda: bus.partitions(topics.CLEAN), 40, "nothing is cleansed", workers[1].said)
            broker.kill()
            bus.close()
            for worker in workers:
                worker.process.terminate()
            for worker in workers:
                assert worker.process.wait(30) == 0
                begins, ready, *signs, last = worker.said().splitlines()  # of life, where it took its time
                assert all("cleansed so far" in sign for sign in signs), signs
                assert begins.startswith(f"livefire: {address}: cleanses ") and begins.endswith(f" as {worker.name}")
                assert (ready, last[:18]) == ("livefire: ready", "livefire: cleansed")
            broker.start()
            workers.append(Worker(tmp_path, address, "c0"))
            bus = open_bus(address, NAME)
            fetched = fetch(bus, NAME, tmp_path / "one.lf", deadline_s=60)
            bus.close()
            assert fetched is not None and fetched.exchanges == len(written) and fetched.account.balanced
            assert workers[-1].ready().end() == 0
        finally:
            for worker in workers:
                worker.close()
            if not broker.running:
                broker.start()


def test_a_name_is_one_workers_and_free_again_soon_after_it_was_killed(tmp_path: Path, kafka_server: Any) -> None:
    with cluster(kafka_server.address) as address:
        first = Worker(tmp_path, address, "c0").ready()
        try:
            second = Worker(tmp_path, address, "c0")
            assert second.process.wait(40) == 2 and first.process.poll() is None
            (line,) = second.said().splitlines()
            assert "another cleanser of the name c0 runs" in line and line.endswith("--worker another")
            second.close()
            first.kill()
            again = Worker(tmp_path, address, "c0").ready()
            assert again.end() == 0
        finally:
            first.close()


def test_a_broker_that_dies_and_comes_back_is_waited_for(tmp_path: Path) -> None:
    with started(Kafka) as broker, cluster(broker.address) as address:
        worker = Worker(tmp_path, address, "c0").ready()
        try:
            exchanges = synthetic_trace.make(9).exchanges
            half = len(exchanges) // 2
            record(address, exchanges[:half], ("a",))
            bus = open_bus(address, NAME)
            assert fetch(bus, NAME, tmp_path / "one.lf", deadline_s=60) is not None
            broker.kill()
            broker.start()
            back = time.monotonic()
            record(address, exchanges[half:], ("b",))
            fetched = fetch(bus, NAME, tmp_path / "two.lf", deadline_s=60)
            print(f"whole {time.monotonic() - back:.1f} s after the broker was back")
            assert fetched is not None and fetched.exchanges == len(exchanges) and fetched.account.balanced
            bus.close()
            group = f"{parse_kafka(address).prefix}.{GROUP}"
            until(lambda: lag(address, group) == 0, 15, "nothing is committed", worker.said)
            assert worker.end() == 0
        finally:
            worker.close()


SCRAM = {
    "listener.name.safe.sasl.enabled.mechanisms": "SCRAM-SHA-256",
    "listener.name.safe.scram-sha-256.sasl.jaas.config": (
        "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    ),
}


def test_workers_say_who_they_are_as_the_bus_does(tmp_path: Path) -> None:
    """The same settings for both drivers; a wrong password is one line."""
    with (
        started(lambda: Kafka(SCRAM, listeners={"SAFE": "SASL_PLAINTEXT"}, scram={"anna": "right"})) as broker,
        cluster(broker.address) as address,
    ):
        record(address, [exchange(n) for n in range(30)], ("a",))
        safe = address.replace(broker.address, broker.addresses["SAFE"])
        for word in ("right", "wrong"):
            (tmp_path / f"{word}.txt").write_text(f"{word}\n")
            (tmp_path / "livefire.yaml").write_text(
                f"kafka_security: {{mechanism: SCRAM-SHA-256, user: anna, password_file: {word}.txt}}\n"
            )
            if word == "wrong":
                done = run("cleanse", "--bus", safe, "--learned", str(learned_file(tmp_path)), folder=tmp_path)
                assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
                assert "refuse user or password" in done.stderr
                continue
            worker = Worker(tmp_path, safe, "c0").ready()
            try:
                bus = open_bus(address, NAME)
                fetched = fetch(bus, NAME, tmp_path / "fetched.lf", deadline_s=60)
                bus.close()
                assert fetched is not None and fetched.exchanges == 30
                assert worker.end() == 0
                said = worker.said().splitlines()
                assert "cleanses all recordings" in said[0] and said[1] == "livefire: ready" and len(said) == 3
            finally:
                worker.close()
