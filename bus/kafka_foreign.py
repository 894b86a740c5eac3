"""Messages of a Kafka topic that others write, as they are: GoReplay's, say."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from kafka import TopicPartition

from bus.address import KafkaAddress, KafkaSecurity
from bus.kafka_link import Link


class ForeignMessage(NamedTuple):
    partition: int
    offset: int
    at_ms: int  # the broker's or the producer's time, as the topic has it; -1 = none
    key: bytes | None
    value: bytes


def foreign_messages(
    address: KafkaAddress, topic: str, security: KafkaSecurity | None = None
) -> Iterator[ForeignMessage]:
    """Everything of a topic from its beginning to where it ends now, partition after partition.

    `topic` is its whole name; the prefix of the address does not count. Raises BusError, BusAway.
    """
    with contextlib.closing(Link(address, security or KafkaSecurity())) as link:
        places = [TopicPartition(topic, number) for number in range(link.count(topic))]
        with link.glance():
            ends = {place: link.end(place) for place in places}
        for place in places:
            position = link.beginning(place)
            while position < ends[place]:
                records, position = link.fetch(place, position)
                for record in records:
                    if record.value is not None and record.offset < ends[place]:
                        yield ForeignMessage(place.partition, record.offset, record.timestamp, record.key, record.value)
