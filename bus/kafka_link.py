"""The connections to a Kafka cluster: one producer, one consumer; nothing here waits longer than it says."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import KafkaAdminClient
from kafka.net.compat import KafkaNetClient

from bus import kafka_layout as layout
from bus.address import KafkaAddress, KafkaSecurity
from bus.kafka_security import security_options
from bus.kafka_words import Words
from bus.ports import BusAway, BusError

CONNECT_S: Final = 3.0  # for a first connection
ANSWER_S: Final = 1.0  # what a reader waits for one answer of the broker
_SPENT: Final = (
    kafka_errors.OutOfOrderSequenceNumberError,
    kafka_errors.UnknownProducerIdError,
    kafka_errors.InvalidProducerEpochError,
    kafka_errors.ProducerFencedError,
)
_FETCH_BYTES: Final = 2 << 20  # a partition; one message may be larger, and comes whole all the same
_Client = TypeVar("_Client")


class Gone(BusError):
    """What should be read is not there any more."""


def client_options(address: KafkaAddress, security: KafkaSecurity, words: Words) -> dict[str, Any]:
    """What producer, consumer and admin client share."""
    return {
        "client_id": words.client,
        "bootstrap_servers": list(address.servers),
        "bootstrap_timeout_ms": int(CONNECT_S * 1000),
        "reconnect_backoff_max_ms": 500,
        "request_timeout_ms": 5000,
        **security_options(security),
    }


def connected(make: Callable[..., _Client], **options: Any) -> _Client:
    """What `make` makes of the options. Raises the driver's errors.

    A first connection that fails leaves the driver's thread and its descriptors behind: an agent that asks again and
    again while no broker answers would gather them until its host has none left. So they are closed here.
    """
    begun: list[KafkaNetClient] = []

    def client(**config: Any) -> KafkaNetClient:
        begun.append(KafkaNetClient(**config))
        return begun[-1]

    try:
        return make(**options, kafka_client=client)
    except BaseException:
        for one in begun:
            one.close()
        raise


def told(address: KafkaAddress, error: Exception, words: Words, *, sasl: bool = False, met: bool = True) -> BusError:
    """The driver's error as one of ours. `sasl`: a password is used; `met`: these brokers have taken it before."""
    name = type(error).__name__.removesuffix("Error")
    if isinstance(error, kafka_errors.SaslAuthenticationFailedError):
        return BusError(f"{address}: the brokers refuse user or password (kafka_security)")
    if (verdict := words.verdict(address, sasl=sasl, met=met)) is not None:
        return verdict
    if isinstance(error, kafka_errors.AuthorizationError):
        return BusError(f"{address}: not allowed: {name} (what this user may do is set on the brokers)")
    if isinstance(error, kafka_errors.OffsetOutOfRangeError | kafka_errors.NoOffsetForPartitionError):
        return Gone(f"{address}: what should be read is there no more: retention of the topic is over ({error})")
    if isinstance(error, kafka_errors.UnknownTopicOrPartitionError):
        return BusError(f"{address}: a topic is gone (livefire topics check --bus {address})")
    if isinstance(error, kafka_errors.MessageSizeTooLargeError | kafka_errors.RecordListTooLargeError):
        return BusError(f"{address}: a message is larger than the topic takes (livefire topics check --bus {address})")
    if isinstance(error, kafka_errors.KafkaConfigurationError):
        return BusError(f"{address}: {error}")
    said = f" ({words.text[:160]})" if words.text else ""
    if not met and "disconnected" in words.text:
        said += "; if that is a broker, does it want TLS or a password (kafka_security)?"
    if isinstance(error, kafka_errors.KafkaTimeoutError) or getattr(error, "retriable", False):
        return BusAway(f"{address}: no broker answers{said}")
    return BusAway(f"{address}: {name}: {str(error).splitlines()[0][:160] if str(error) else 'no reason given'}")


def _hasten(client: Any) -> None:
    """What is asked of a topic that is new to a client waits 100 ms from the question before; the driver has an option
    for that, which it does not pass on. A stop asks four such questions."""
    cluster = getattr(client, "_cluster", None) or getattr(client, "_metadata", None)
    if cluster is not None:
        cluster.config["retry_backoff_ms"] = 10


class _Glances(threading.local):
    """The ends that a thread has asked for; None outside of a glance."""

    ends: dict[TopicPartition, int] | None = None


class Link:
    """Connects at the first use, and again after it was lost. All calls are made under `lock`, but for `send`."""

    def __init__(self, address: KafkaAddress, security: KafkaSecurity) -> None:
        self.address = address
        self.lock = threading.RLock()
        self._words = Words()
        self._options = client_options(address, security, self._words)
        self._sasl, self._met = "sasl_mechanism" in self._options, False
        self._producer: KafkaProducer | None = None
        self._consumer: KafkaConsumer | None = None
        self._producing = threading.Lock()
        self._counts: dict[str, int] = {}
        self._positions: dict[TopicPartition, int] = {}
        self._active: TopicPartition | None = None
        self._glances = _Glances()
        self._answer_ms = int(CONNECT_S * 1000)  # until the consumer knows its way about
        self._closed = False

    @contextlib.contextmanager
    def _talk(self) -> Iterator[None]:
        try:
            yield
        except kafka_errors.KafkaError as error:
            raise told(self.address, error, self._words, sasl=self._sasl, met=self._met) from None
        except OSError as error:
            raise BusAway(f"{self.address}: {error}") from None

    # -- topics

    def count(self, topic: str, also: str = "") -> int:
        """How many partitions a Kafka topic has. Raises BusError when there is none, BusAway.

        `also`: another that will be asked for next; a question takes a connection of its own.
        """
        if topic not in self._counts:
            self._describe([name for name in (topic, also) if name and name not in self._counts])
        return self._counts[topic]

    def counted_anew(self, topic: str) -> int:
        """The same, asked of the brokers again: topics grow."""
        self._counts.pop(topic, None)
        return self.count(topic)

    def _describe(self, names: Sequence[str]) -> None:
        self._words.forget()
        with self._talk():
            admin = connected(KafkaAdminClient, **self._options)
            try:
                found = admin.describe_topics(list(names))
            finally:
                admin.close()
        self._met = True
        gone = []
        for topic in found:
            code = topic["error_code"]
            if code == kafka_errors.UnknownTopicOrPartitionError.errno:
                gone.append(topic["name"])
            elif code:
                raise told(self.address, kafka_errors.for_code(code)(), self._words)
            else:
                self._counts[topic["name"]] = len(topic["partitions"])
        if gone:
            raise layout.missing(str(self.address), sorted(gone))

    # -- producing

    def producer(self) -> KafkaProducer:
        with self._producing:
            if self._closed:
                raise BusError(f"{self.address}: is closed")
            if self._producer is not None and _is_spent(self._producer):
                spent, self._producer = self._producer, None
                _let_go(spent, 0)
            if self._producer is None:
                self._words.forget()
                with self._talk():
                    self._producer = connected(
                        KafkaProducer,
                        **self._options,
                        metrics_enabled=False,
                        allow_auto_create_topics=False,
                        enable_idempotence=True,
                        acks="all",
                        compression_type=None,  # batches are zstd already
                        linger_ms=0,  # while one request is under way the next batch fills by itself
                        batch_size=1 << 20,
                        max_request_size=layout.TOPIC_BYTES,
                        max_block_ms=1500,  # for what it must know of a topic before it can send
                        # A batch is not given up: it stays the driver's, in order, until a broker has it. Giving up
                        # would leave in doubt what was written.
                        delivery_timeout_ms=7 * 86_400_000,
                    )
                    _hasten(self._producer)
            return self._producer

    def send(self, topic: str, partition: int, key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> Any:
        """A future of (offset, timestamp); nothing is waited for. Raises BusError, BusAway."""
        producer = self.producer()
        with self._talk():
            return producer.send(topic, value=value, key=key, headers=headers, partition=partition)

    def acknowledged(self, future: Any, deadline: float) -> Any:
        """The record's metadata once it is written. Raises BusAway at the deadline (`time.monotonic`), BusError."""
        with self._talk():
            try:
                return future.get(timeout=max(deadline - time.monotonic(), 0.0))
            except _SPENT:
                self._renew_producer()
                raise

    def _renew_producer(self) -> None:
        """The brokers have forgotten this producer, or another uses its number: only a new one can write."""
        with self._producing:
            spent, self._producer = self._producer, None
        if spent is not None:
            _let_go(spent, 0)

    def broker_ms(self, deadline: float) -> int:
        """The broker's time: not later than now. Raises BusAway."""
        topic = layout.kafka_topic(self.address.prefix, layout.STREAMS)
        self.count(topic)
        future = self.send(topic, 0, b"clock", layout.MARK, [])
        return int(self.acknowledged(future, deadline).timestamp)

    # -- consuming

    def consumer(self) -> KafkaConsumer:
        if self._closed:
            raise BusError(f"{self.address}: is closed")
        if self._consumer is None:
            self._words.forget()
            with self._talk():
                self._consumer = connected(
                    KafkaConsumer,
                    **self._options,
                    metrics_enabled=False,
                    group_id=None,
                    enable_auto_commit=False,
                    auto_offset_reset="none",
                    allow_auto_create_topics=False,
                    # A broker serves one request of a connection at a time: a fetch that waits for data would make
                    # every question for the end wait too. Only what is known to be there is fetched.
                    fetch_max_wait_ms=0,
                    max_partition_fetch_bytes=_FETCH_BYTES,
                    fetch_max_bytes=16 << 20,
                    max_poll_records=2000,
                )
                _hasten(self._consumer)
                self._positions.clear()
                self._active = None
                self._answer_ms = int(CONNECT_S * 1000)
        return self._consumer

    @contextlib.contextmanager
    def glance(self) -> Iterator[None]:
        """Within it, ends are asked for once, for all partitions of interest; by this thread."""
        outer = self._glances.ends
        self._glances.ends = {} if outer is None else outer
        try:
            yield
        finally:
            self._glances.ends = outer

    def end(self, at: TopicPartition) -> int:
        """The offset behind the last message, as of now. Raises BusAway, BusError."""
        seen = self._glances.ends
        if seen is not None and at in seen:
            return seen[at]
        wanted: Iterable[TopicPartition] = (at,) if seen is None else {at, *self._positions}
        with self._talk():
            consumer, timeout_ms = self.consumer(), self._answer_ms
            try:
                ends: dict[TopicPartition, int] = consumer.end_offsets(list(wanted), timeout_ms=timeout_ms)
            except KeyError:  # of several the driver passes over one whose leader it does not know; alone it asks
                ends = {each: consumer.end_offsets([each], timeout_ms=timeout_ms)[each] for each in wanted}
        self._answer_ms = int(ANSWER_S * 1000)
        if seen is not None:
            seen.update(ends)
        return ends[at]

    def at_time(self, at: TopicPartition, since_ms: int) -> int:
        """The first offset that was written at that time or later; the end when there is none."""
        end = self.end(at)
        with self._talk():
            found = self.consumer().offsets_for_times({at: since_ms}, timeout_ms=self._answer_ms)[at]
        return int(found.offset) if found is not None and found.offset >= 0 else end

    def beginning(self, at: TopicPartition) -> int:
        """The first offset that retention has left."""
        with self._talk():
            return int(self.consumer().beginning_offsets([at], timeout_ms=self._answer_ms)[at])

    def fetch(self, at: TopicPartition, start: int) -> tuple[list[Any], int]:
        """Records from `start` on, which must be before the end, and where to go on. Raises BusAway, BusError."""
        consumer = self.consumer()
        turned, self._active = self._active, None  # known again when this has gone well
        with self._talk():
            self._turn_to(consumer, at, start, turned)
            deadline = time.monotonic() + ANSWER_S
            while True:
                records = consumer.poll(timeout_ms=int(max(deadline - time.monotonic(), 0.001) * 1000)).get(at, [])
                position = consumer.position(at, timeout_ms=0)
                if records or position > start:
                    self._positions[at], self._active = position, at
                    return records, position
                if time.monotonic() >= deadline:
                    raise BusAway(f"{self.address}: no broker hands out what it has of {at.topic} {at.partition}")

    def _turn_to(self, consumer: KafkaConsumer, at: TopicPartition, start: int, turned: TopicPartition | None) -> None:
        """Only the partition that is asked for is fetched. It is the only one assigned: the driver keeps what it holds
        of a partition that is paused, and may neither hand it out when it is resumed nor fetch it again."""
        if turned != at:
            consumer.assign([at])
            consumer.seek(at, start)
        elif self._positions.get(at) != start:
            consumer.seek(at, start)
        self._positions[at] = start

    def close(self) -> None:
        with self.lock, self._producing:
            self._closed = True
            if self._producer is not None:
                _let_go(self._producer, 1)
            with contextlib.suppress(kafka_errors.KafkaError, OSError):
                if self._consumer is not None:
                    self._consumer.close(autocommit=False, timeout_ms=500)
            self._producer = self._consumer = None


def _is_spent(producer: KafkaProducer) -> bool:
    """After one message that brokers refuse for good, the driver refuses all that follow with that message's error."""
    manager = producer._transaction_manager
    return manager is not None and bool(manager.has_fatal_error())


def _let_go(producer: KafkaProducer, timeout_s: float) -> None:
    try:
        producer.close(timeout=timeout_s)
    except (kafka_errors.KafkaError, OSError):
        # The driver leaves its thread to go on when something is still under way, for as long as a delivery may take.
        producer._sender.force_close()
        producer._closed = True
