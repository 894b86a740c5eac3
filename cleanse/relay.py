"""From a message of the raw topic to the messages that are to be written for it, as they lie in Kafka. Knows no driver.

Each output carries its input's place in the raw stream's order: the epoch of the agent that wrote it, and the number
of the message, so that readers drop what is written twice, be it that the agent repeated it or that a cleanser was
killed before it could say how far it was. Nothing here is remembered from one message to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from bus import kafka_layout as layout
from bus.ports import Message
from cleanse.stream import Output, StreamPipeline
from wire import codec, topics
from wire.codec import RecordType
from wire.streams import clean_stream

#: Of messages that belong to nobody, the dead letters are the fleet's.
NOBODY: Final = "fleet"
_PARTS: Final = 4  # at most so many outputs of one message go to one stream: manifest, routes, flows


class Sending(NamedTuple):
    """One message to be produced."""

    topic: str  # of Kafka
    partition: int
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]
    ends: bool  # the stream is whole with this


class Relay:
    def __init__(self, pipeline: StreamPipeline, prefix: str, dead_partitions: int, recording: str = "") -> None:
        """`recording`: the only one to cleanse; "" = all."""
        self.dead = 0  # messages that could not be cleansed
        self._pipeline = pipeline
        self._prefix = prefix
        self._dead_partitions = dead_partitions
        self._recording = recording

    def relay(
        self,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
        offset: int,
        partition: int,
    ) -> list[Sending]:
        """What is to be written for the message at `offset` of a partition of the raw topic. Never raises for input."""
        scope, stream = _raw_stream_of(key)
        if self._recording and scope != self._recording:
            return []
        if not value:
            return self._mark(scope, stream, headers) if scope else []
        message = Message(topics.RAW, stream or f"unnamed.{partition}", offset, offset + 1, value)
        if not scope:
            self.dead += 1
            outputs = self._pipeline.poison(message, "no key of a raw stream: written by somebody else")[:1]
            return self._sendings(NOBODY, outputs, ())
        try:
            outputs = self._pipeline.apply(message)
        except Exception as error:  # whatever a message does here, it must not stop those behind it
            self.dead += 1
            said = str(error) if isinstance(error, codec.CodecError) else f"{type(error).__name__}: {error}"
            outputs = self._pipeline.poison(message, said)
        return self._sendings(scope, outputs, headers)

    def refused(
        self, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes | None]], offset: int, reason: str
    ) -> list[Sending]:
        """What is written in the place of outputs that the brokers do not take. What they took of them stays."""
        scope, stream = _raw_stream_of(key)
        self.dead += 1
        outputs = self._pipeline.poison(Message(topics.RAW, stream, offset, offset + 1, value), reason)
        return self._sendings(scope, outputs, headers)

    def _sendings(
        self, scope: str, outputs: list[Output], headers: Sequence[tuple[str, bytes | None]]
    ) -> list[Sending]:
        said = layout.sequence_in(headers)
        parts: dict[str, int] = {}
        sendings = []
        for output in outputs:
            dead = output.topic == topics.DEAD
            part = parts[output.topic + output.stream] = parts.get(output.topic + output.stream, -1) + 1
            sendings.append(
                Sending(
                    layout.kafka_topic(self._prefix, output.topic),
                    layout.partition_of(output.stream, self._dead_partitions) if dead else output.partition,
                    layout.key_of(scope, output.topic, output.stream),
                    output.data,
                    layout.header(said[0], said[1] * _PARTS + part) if said is not None else [],
                    ends=output.type is RecordType.END,
                )
            )
        return sendings

    def _mark(self, scope: str, stream: str, headers: Sequence[tuple[str, bytes | None]]) -> list[Sending]:
        """An agent that came back begins a new epoch of its streams; so do the streams that are made of them."""
        said = layout.sequence_in(headers)
        if said is None:
            return []
        return [
            Sending(
                layout.kafka_topic(self._prefix, topics.CLEAN),
                j,
                layout.key_of(scope, topics.CLEAN, clean_stream(stream, j)),
                layout.MARK,
                layout.header(said[0], said[1] * _PARTS),
                ends=False,
            )
            for j in range(self._pipeline.width)
        ]


def _raw_stream_of(key: bytes | None) -> tuple[str, str]:
    """(scope, stream) of a message's key; empty for what is no key of a raw stream."""
    scope, topic, stream = layout.stream_of(key or b"") or ("", "", "")
    return (scope, stream) if topic == topics.RAW else ("", "")
