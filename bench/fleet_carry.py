"""Exchanges onto Kafka, and through a Faust worker: CPU us an exchange, beside carrying the same bytes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from servers.jars import fetched

from bench.cleanse import START_NS, make
from bench.fleet_bed import ROOT, Cost, Place, Row, cost_of, cpu_s, opened, rss_mb, show, slow, topics_of_its_own
from bus import kafka_layout as layout
from bus.address import KafkaAddress, open_bus
from bus.ports import Bus
from capture.dealer import Dealer
from capture.settings import BUS_BATCH_BYTES
from capture.writer import QueuedWriter
from cleanse import learned
from cleanse.settings import CleanseSettings
from mask.masker import Masker
from wire import codec, topics
from wire.account import Account, Increment
from wire.codec import RecordType
from wire.records import End, Exchange, Manifest, Request, Response

KEY = b"a masking key of 32 bytes, yes.."
_GROUP = 16  # batches that are written at once


# ---------------------------------------------------------------------------- floors


def producer(address: KafkaAddress) -> KafkaProducer:
    """As a program would have it that only carries bytes."""
    return KafkaProducer(
        bootstrap_servers=list(address.servers), acks="all", enable_idempotence=True, linger_ms=5, batch_size=1 << 20,
        max_request_size=layout.TOPIC_BYTES, metrics_enabled=False,
    )  # fmt: skip


def produce(sender: KafkaProducer, topic: str, messages: Sequence[bytes]) -> None:
    sent = [sender.send(topic, value=data, partition=n % 8) for n, data in enumerate(messages)]
    for future in sent:
        future.get(60)


def consume(address: KafkaAddress, topic: str) -> list[bytes]:
    """All of a topic, by a plain consumer."""
    consumer = KafkaConsumer(
        bootstrap_servers=list(address.servers), group_id=None, enable_auto_commit=False,
        auto_offset_reset="earliest", max_partition_fetch_bytes=2 << 20, metrics_enabled=False,
    )  # fmt: skip
    try:
        parts = [TopicPartition(topic, part) for part in consumer.partitions_for_topic(topic) or ()]
        consumer.assign(parts)
        ends = consumer.end_offsets(parts)
        found: list[bytes] = []
        while any(consumer.position(part) < ends[part] for part in parts):
            for records in consumer.poll(timeout_ms=500).values():
                found += [record.value for record in records if record.value]
        return found
    finally:
        consumer.close()


# ---------------------------------------------------------------------------- ready exchanges -> Kafka


def small(count: int) -> list[Exchange]:
    """GETs with heads of some 300 bytes and answers without a body."""
    fields = b"Accept: */*\r\nUser-Agent: bench/1.0 (small requests)\r\nX-Request-Id: %032x\r\nCookie: sid=%016x\r\n"
    answer = b"HTTP/1.1 204 No Content\r\nServer: shop\r\nDate: Fri, 20 Nov 2026 12:00:00 GMT\r\n\r\n"
    made = []
    for n in range(count):
        start = START_NS + n * 10_000
        mixed = n * 0x9E3779B97F4A7C15F39CC0605CEDC835 & ((1 << 128) - 1)
        head = b"GET /items/%d?page=%d HTTP/1.1\r\nHost: shop.test:8080\r\n%b\r\n" % (
            n,
            n % 7,
            fields % (mixed, mixed >> 64),
        )
        made.append(
            Exchange(
                mixed.to_bytes(16, "big"), (n % 500).to_bytes(16, "big"), b"c" * 16, "10.0.0.1:5000", "10.0.0.2:8080",
                Request(head), Response(204, answer), start, start + 1, start + 900_000, start + 900_000,
            )
        )  # fmt: skip
    return made


def ready(place: Place, rounds: int, count: int) -> None:
    """`count` exchanges in batches of 1000, which is one batch in 10 ms at the target."""
    exchanges = small(20_000)
    batches = [exchanges[at : at + 1000] for at in range(0, len(exchanges), 1000)] * max(1, count // 20_000)
    count = sum(map(len, batches))
    encoded = [codec.encode(batch) for batch in batches[:20]] * (len(batches) // 20)
    costs: dict[str, list[Cost]] = {name: [] for name in ("encode", "produce", "many", "recorder", "consume")}
    slowness = []
    with tempfile.TemporaryDirectory(prefix="bench-fleet-") as folder:
        for number in range(rounds):
            with topics_of_its_own(place.address) as address:
                slowness.append(slow())
                costs["encode"].append(cost_of(lambda: [codec.encode(batch) for batch in batches], count))
                sender, topic = producer(address), layout.kafka_topic(address.prefix, topics.EXEMPLARS)
                produce(sender, topic, encoded[:8])  # it connects
                costs["produce"].append(cost_of(lambda s=sender, t=topic: produce(s, t, encoded), count, place.pid))
                sender.close()
                costs["consume"].append(
                    cost_of(lambda a=address, t=topic: [codec.decode(m) for m in consume(a, t)], count)
                )
                costs["many"].append(opened(address, "many", lambda bus: _write_many(bus, batches, count, place)))
                spool = Path(folder) / str(number)
                costs["recorder"].append(_recorder(address, spool, batches, count, place))
    floor = [encode.us + carry.us for encode, carry in zip(costs["encode"], costs["produce"], strict=True)]
    size = sum(map(len, encoded)) / count
    show(
        f"ready exchanges -> Kafka: {count:,} of {len(exchanges[0].request.head) + 80} bytes of heads, "
        f"{size:.0f} on the wire, batches of 1000",
        [
            Row("floor: encode and compress", costs["encode"]),
            Row("floor: kafka-python, the same bytes", costs["produce"]),
            Row("(consume and decode the same bytes)", costs["consume"]),
            Row("encode + write_many", costs["many"], floor, 100_000),
            Row("queue + dealer + spool, as livefire record", costs["recorder"], floor, 100_000),
        ],
        slowness,
    )
    if not any("tools-4" in jar.name for jar in Path(fetched("kafka")).glob("*.jar")):
        print("  ProducerPerformance is not in the jars that tests fetch: no Java producer beside it")


def _manifest(name: str, topic: str, stream: str, hosts: tuple[str, ...] = ("a",)) -> Manifest:
    return Manifest(topic, stream, name, START_NS, "bench", hosts=hosts)


def _write_many(bus: Bus, batches: Sequence[Sequence[Exchange]], count: int, place: Place) -> Cost:
    writers = [bus.writer(topics.RAW, f"a.{k}", _manifest("many", topics.RAW, f"a.{k}")) for k in range(8)]

    def work() -> None:
        for turn, at in enumerate(range(0, len(batches), _GROUP)):
            writers[turn % 8].write_many([codec.encode(batch) for batch in batches[at : at + _GROUP]])

    try:
        return cost_of(work, count, place.pid)
    finally:
        for writer in writers:
            writer.close()


def _recorder(
    address: KafkaAddress, spool: Path, batches: Sequence[Sequence[Exchange]], count: int, place: Place
) -> Cost:
    """What stands behind the record loop: a queue to the writer's thread, streams in turn, the account cut up."""
    dealer = Dealer(
        open_bus(str(address), "recorder"), _manifest("recorder", topics.RAW, "a.0"), "a", spool, 64 << 20,
        monotonic_ns=time.monotonic_ns, skew_ns=lambda: 0,
    )  # fmt: skip
    queue = QueuedWriter(dealer, buffer_ns=60_000_000_000, monotonic_ns=time.monotonic_ns, tick=dealer.tick)
    account = Account()

    def work() -> None:
        for batch in batches:
            ledger = account.ledger("exchanges")
            ledger.seen += len(batch)
            ledger.emitted += len(batch)
            queue.write_records(batch, increment=account.take())
        while queue.waiting_bytes:
            time.sleep(0.002)

    try:
        return cost_of(work, count, place.pid)
    finally:
        queue.end()
        queue.close()


# ---------------------------------------------------------------------------- Kafka -> Faust -> Kafka


def cleansed(place: Place, rounds: int, count: int) -> None:
    """`count` exchanges stand in the raw topic before the worker starts; its start-up is left out."""
    masker = Masker(KEY)
    kinds = [masker.exchange(exchange) for exchange in make(min(count, 16_000), True)]
    batches = _as_recorded(kinds)
    batches *= max(1, round(count / len(kinds)))
    count = sum(map(len, batches))
    costs: dict[str, list[Cost]] = {"floor": [], "pipeline": [], "faust": []}
    slowness, memory = [], []
    with tempfile.TemporaryDirectory(prefix="bench-fleet-") as folder:
        known = Path(folder) / "learned.lf"
        _learn(kinds, known)
        for _ in range(rounds):
            with topics_of_its_own(place.address) as address:
                slowness.append(slow())
                opened(address, "monday", lambda bus: _fill(bus, batches))
                costs["floor"].append(_floor(address, count, place))
                costs["pipeline"].append(_pipeline(known, batches, count))
                cost, rss = _worker(address, known, count, place)
                costs["faust"].append(cost)
                memory.append(rss)
    floor = [cost.us for cost in costs["floor"]]
    mean = count / len(batches)
    show(
        f"Kafka -> livefire cleanse (Faust, default rules) -> Kafka: {count:,} exchanges, bodies of 500 bytes, "
        f"{mean:.0f} a batch, 8 partitions",
        [
            Row("floor: consume, decode, encode, produce", costs["floor"]),
            Row("(the pipeline alone, no Kafka)", costs["pipeline"], floor),
            Row("the worker's process", costs["faust"], floor, 40_000),
        ],
        slowness,
    )
    print(f"  RSS of the worker at the end: {max(memory):.0f} MB")


def _as_recorded(exchanges: Sequence[Exchange]) -> list[list[Exchange]]:
    """Batches as a recorder on a bus makes them where there is much to do."""
    limit = BUS_BATCH_BYTES
    batches: list[list[Exchange]] = [[]]
    size = 0
    for exchange in exchanges:
        answer = exchange.response
        size += len(exchange.request.head) + len(exchange.request.body) + 400
        size += len(answer.head) + len(answer.body) if answer is not None else 0
        batches[-1].append(exchange)
        if size >= limit:
            batches.append([])
            size = 0
    return [batch for batch in batches if batch]


def _fill(bus: Bus, batches: Sequence[Sequence[Exchange]]) -> None:
    encoded: list[list[bytes]] = [[] for _ in range(8)]
    for turn, batch in enumerate(batches):
        ledger = Account()
        ledger.ledger("exchanges").seen += len(batch)
        ledger.ledger("exchanges").emitted += len(batch)
        times = [exchange.request_start_ns for exchange in batch]
        encoded[turn % 8].append(codec.encode(batch, first_ns=times[0], last_ns=times[-1], increment=ledger.take()))
    for k, messages in enumerate(encoded):
        stream = f"a.{k}"
        with contextlib.closing(bus.writer(topics.RAW, stream, _manifest("monday", topics.RAW, stream))) as writer:
            writer.write_many(messages)
            writer.end(End("monday", stream, sum(map(len, batches[k::8])), 0, 0))


def _learn(exchanges: Sequence[Exchange], to: Path) -> None:
    from bus.logfile import LogWriter

    raw = to.with_name("raw.lf")
    with LogWriter(raw, Manifest(topics.RAW, "0", "monday", START_NS, "bench")) as writer:
        for at in range(0, 4000, 250):
            writer.write_records(exchanges[at : at + 250])
        writer.end()
    subprocess.run(
        (sys.executable, "-m", "livefire", "learn", str(raw), "--to", str(to)), cwd=ROOT, check=True,
        capture_output=True,
    )  # fmt: skip


def _floor(address: KafkaAddress, count: int, place: Place) -> Cost:
    sender = producer(address)
    raw, to = (layout.kafka_topic(address.prefix, name) for name in (topics.RAW, topics.EXEMPLARS))
    produce(sender, to, [b"x"])

    def work() -> None:
        out = []
        for message in consume(address, raw):
            batch = codec.decode(message)
            if batch.header.type is RecordType.EXCHANGE:
                out.append(codec.encode(batch.records))
        produce(sender, to, out)

    try:
        return cost_of(work, count, place.pid)
    finally:
        sender.close()


def _pipeline(known: Path, batches: Sequence[Sequence[Exchange]], count: int) -> Cost:
    from bus.ports import Message
    from cleanse.stream import StreamPipeline

    pipeline = StreamPipeline(CleanseSettings(), learned.load(known), 8)
    messages = [
        Message(topics.RAW, f"a.{turn % 8}", turn, turn + 1, codec.encode(batch, increment=Increment()))
        for turn, batch in enumerate(batches)
    ]

    def work() -> None:
        for message in messages:
            pipeline.apply(message)

    return cost_of(work, count)


def _worker(address: KafkaAddress, known: Path, count: int, place: Place) -> tuple[Cost, float]:
    """CPU of the worker's process between the first message that it wrote and the last, by the exchanges between."""
    argv = (sys.executable, "-m", "livefire", "cleanse", "--bus", str(address), "--learned", str(known),
            "--worker", "w0", "--stdin-guard")  # fmt: skip
    consumer = KafkaConsumer(bootstrap_servers=list(address.servers), group_id=None, metrics_enabled=False)
    topic = layout.kafka_topic(address.prefix, topics.CLEAN)
    parts = [TopicPartition(topic, n) for n in range(8)]
    looks: list[tuple[int, float, float]] = []  # messages in clean; CPU s of the worker, of the broker
    rss = 0.0
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=said, stderr=said)
        try:
            deadline = time.monotonic() + 60 + count / 2000
            still, last = 0.0, -1
            while time.monotonic() < deadline and child.poll() is None:
                before = cpu_s(child.pid)
                done = sum(consumer.end_offsets(parts).values())
                if done:
                    looks.append((done, (before + cpu_s(child.pid)) / 2, cpu_s(place.pid)))
                if done != last:
                    still, last = time.monotonic(), done
                elif done and time.monotonic() - still > 1.5:
                    break
                rss = max(rss, rss_mb(child.pid))
                time.sleep(0.02)
        finally:
            assert child.stdin is not None
            child.stdin.close()
            try:
                child.wait(60)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            consumer.close()
    got = _exchanges(address)
    if got != count:
        raise SystemExit(f"the cleanser kept {got} of {count} exchanges: nothing was measured")
    whole = looks[-1][0]
    first = next(look for look in looks if look[0] > whole * 0.05)
    end = next(look for look in looks if look[0] == whole)
    share = (end[0] - first[0]) / whole * count
    return Cost((end[1] - first[1]) / share * 1e6, (end[2] - first[2]) / share * 1e6), rss


def _exchanges(address: KafkaAddress) -> int:
    found: Any = (
        codec.decode_header(data) for data in consume(address, layout.kafka_topic(address.prefix, topics.CLEAN))
    )
    return sum(header.count for header in found if header.type is RecordType.STAMPED)
