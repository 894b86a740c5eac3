"""Owners in the directory of a cluster (`bus.kafka_streams`)."""

from __future__ import annotations

from bus.address import KafkaAddress, KafkaSecurity
from bus.kafka_link import Link
from bus.kafka_streams import Streams


class KafkaScopes:
    def __init__(self, address: KafkaAddress, security: KafkaSecurity) -> None:
        self._link = Link(address, security)
        self._streams = Streams(self._link)

    def of(self, topic: str) -> list[str]:
        with self._link.lock:
            self._streams.refresh()
            return sorted(self._streams.scopes(topic))

    def close(self) -> None:
        self._link.close()
