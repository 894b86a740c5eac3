"""Makes and checks the topics of a cluster. Nothing ever relies on topics that make themselves."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from bus import kafka_layout as layout
from bus.address import KafkaAddress, KafkaSecurity
from bus.kafka_link import client_options, connected, told
from bus.kafka_words import Words
from bus.ports import BusAway, BusError

_DAY_MS: Final = 86_400_000
_GONE_S: Final = 20


class Wanted(msgspec.Struct, frozen=True):
    """How topics should be."""

    partitions: int = 8
    replication: int = 1
    min_insync: int = 1
    retention_ms: int = 7 * _DAY_MS


class Finding(NamedTuple):
    """What one topic is like. `problem` is empty when it is as it should be."""

    topic: str
    made: bool
    partitions: int
    problem: str


def names(prefix: str, extra: Sequence[str] = ()) -> list[str]:
    """All Kafka topics of a prefix."""
    return [layout.kafka_topic(prefix, topic) for topic in (*layout.OWN, layout.STREAMS, *extra)]


def settings_of(topic: str, wanted: Wanted) -> dict[str, str]:
    """What is set on a topic, by its port name."""
    settings = {
        "max.message.bytes": str(layout.TOPIC_BYTES),
        "compression.type": "producer",  # batches are compressed already
        "message.timestamp.type": "LogAppendTime",  # one clock, the broker's: holds, clock offsets, start from a time
        "min.insync.replicas": str(wanted.min_insync),
        "retention.ms": str(wanted.retention_ms),
        "cleanup.policy": "delete",
    }
    if topic == layout.STREAMS:
        settings |= {
            # What holds are renewed with is gone soon; what an entry tells of is kept as long as the data.
            "cleanup.policy": "compact,delete",
            "segment.ms": "600000",
            "min.cleanable.dirty.ratio": "0.1",
        }
    return settings


class Topics:
    """The topics of an address. Raises BusError, BusAway as the bus does."""

    def __init__(self, address: KafkaAddress, security: KafkaSecurity | None = None) -> None:
        self.address = address
        self._words = Words()
        options = client_options(address, security or KafkaSecurity(), self._words)
        self._sasl = "sasl_mechanism" in options
        with self._talk():
            self._admin = connected(KafkaAdminClient, **options)

    @contextlib.contextmanager
    def _talk(self) -> Iterator[None]:
        try:
            yield
        except kafka_errors.InvalidReplicationFactorError:
            raise BusError(
                f"{self.address}: there are fewer brokers than copies (--replication: at most as many as brokers)"
            ) from None
        except kafka_errors.KafkaError as error:
            raise told(self.address, error, self._words, sasl=self._sasl, met=hasattr(self, "_admin")) from None

    def create(self, wanted: Wanted, extra: Sequence[str] = ()) -> list[Finding]:
        """Make what is missing; what is there is left as it is, and checked."""
        if not 1 <= wanted.min_insync <= wanted.replication:
            raise BusError(f"min.insync.replicas is {wanted.min_insync}, of {wanted.replication} replicas")
        there = self._there(extra)
        new = {
            layout.kafka_topic(self.address.prefix, topic): {
                "num_partitions": 1 if topic in layout.SINGLE else wanted.partitions,
                "replication_factor": wanted.replication,
                "configs": settings_of(topic, wanted),
            }
            for topic in (*layout.OWN, layout.STREAMS, *extra)
        }
        new = {name: topic for name, topic in new.items() if name not in there}
        made = set(new)
        if new:
            with self._talk():
                self._admin.create_topics(new, timeout_ms=20_000)
                self._admin.wait_for_topics(sorted(made), timeout_ms=20_000)
        return [finding._replace(made=finding.topic in made) for finding in self.check(extra)]

    def check(self, extra: Sequence[str] = ()) -> list[Finding]:
        """How each topic is. Partitions, retention and replicas are the user's choice; what breaks is a problem."""
        there = self._there(extra)
        with self._talk():
            configs = self._configs([name for name in names(self.address.prefix, extra) if name in there])
        found = []
        for topic in (*layout.OWN, layout.STREAMS, *extra):
            name = layout.kafka_topic(self.address.prefix, topic)
            if name not in there:
                found.append(Finding(name, False, 0, "missing"))
                continue
            problem = _problem(topic, there[name], configs.get(name, {}))
            found.append(Finding(name, False, there[name], problem))
        return found

    def delete(self, extra: Sequence[str] = ()) -> None:
        """Remove all topics of the prefix, with what is in them; they are gone when this returns. Raises BusAway."""
        there = self._there(extra)
        if not there:
            return
        with self._talk():
            self._admin.delete_topics(sorted(there))
        deadline = time.monotonic() + _GONE_S
        while left := self._there(extra):  # brokers say yes first, and forget a moment later
            if time.monotonic() > deadline:
                raise BusAway(f"{self.address}: still has {', '.join(sorted(left))} after {_GONE_S} s")
            time.sleep(0.02)

    def _there(self, extra: Sequence[str]) -> dict[str, int]:
        with self._talk():
            described = self._admin.describe_topics(names(self.address.prefix, extra))
        there = {}
        for topic in described:
            if not topic["error_code"]:
                there[topic["name"]] = len(topic["partitions"])
            elif topic["error_code"] != kafka_errors.UnknownTopicOrPartitionError.errno:
                raise told(self.address, kafka_errors.for_code(topic["error_code"])(), self._words)
        return there

    def _configs(self, topics_there: Sequence[str]) -> dict[str, dict[str, str]]:
        if not topics_there:
            return {}
        asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in topics_there]
        described: dict[str, dict[str, dict[str, Any]]] = self._admin.describe_configs(asked, config_filter="all")[
            "topic"
        ]
        return {name: {key: str(config["value"]) for key, config in all_.items()} for name, all_ in described.items()}

    def close(self) -> None:
        with contextlib.suppress(kafka_errors.KafkaError):
            self._admin.close()

    def __enter__(self) -> Topics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _problem(topic: str, partitions: int, is_: dict[str, str]) -> str:
    if topic in layout.SINGLE and partitions != 1:
        return f"has {partitions} partitions, must have 1: order across them would be lost"
    if int(is_.get("max.message.bytes", layout.TOPIC_BYTES)) < layout.TOPIC_BYTES:
        return f"max.message.bytes is {is_['max.message.bytes']}, must be {layout.TOPIC_BYTES} at least"
    if (clock := is_.get("message.timestamp.type", "")) != "LogAppendTime":
        return f"message.timestamp.type is {clock}, must be LogAppendTime: holds are timed by the broker's clock"
    policy = set(is_.get("cleanup.policy", "").replace(" ", "").split(","))
    if topic != layout.STREAMS:
        return "" if policy == {"delete"} else f"cleanup.policy is {','.join(sorted(policy))}, must be delete"
    return "" if "compact" in policy else f"cleanup.policy is {','.join(sorted(policy))}, must have compact"
