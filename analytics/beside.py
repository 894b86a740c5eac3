"""Production beside a run: what of a live recording began and was answered while the run went on, under the run's id.

How far a run has come is told by its signs of life, and a message of the recording is taken in when they are past all
that it holds. So what counts does not depend on who reads when: a store that reads along and one that catches up hours
later hold the same.
"""

from __future__ import annotations

from typing import Final

import msgspec

from analytics.app import Aggregator
from analytics.production import ProductionReader, done_ns
from analytics.store_port import PaneWriter
from bus.ports import Bus, Message, Reader
from wire import codec, topics
from wire.codec import RecordType
from wire.records import RouteTable
from wire.routes import RouteMatcher

_EARLY_NS: Final = 60_000_000_000  # clocks may differ: how long before the run the bus is read from


class Recording(msgspec.Struct, frozen=True):
    """Production: its exchanges become outcomes. `servers` as `ProductionReader` takes them."""

    name: str
    routes: RouteTable
    servers: tuple[str, ...] = ()


class Beside(Aggregator):
    """One recording for one run. `bus` is the recording's, `store` the run's; it begins where the store stands."""

    def __init__(self, bus: Bus, store: PaneWriter, run_id: str, recording: Recording, since_ns: int) -> None:
        self._within = ProductionReader(run_id, RouteMatcher(recording.routes), recording.servers, since_ns)
        super().__init__(
            bus, store, topic=topics.RAW, production=self._within, since_ns=max(since_ns - _EARLY_NS, 1)
        )  # fmt: skip
        self._name = recording.name
        self._reached_ns = 0
        self._waiting: dict[str, list[tuple[Message, int]]] = {}  # and when the last of it was done
        self._read_ns: dict[str, int] = {}  # partition -> up to when it was taken in

    def reached(self, at_ns: int, *, ended: bool) -> None:
        """The run was there at that time (ns since 1970). `ended`: and not afterwards."""
        self._reached_ns = max(self._reached_ns, at_ns)
        self._within.until_ns = self._reached_ns if ended else None

    @property
    def complete(self) -> bool:
        """Of a run that has ended: each partition that is known is read to its own end, or past the run's."""
        if self._kept is not None or any(self._waiting.values()):
            return False
        past = (partition for partition, at_ns in self._read_ns.items() if at_ns > self._reached_ns)
        return self._readers.keys() <= {*past, *(name for name, reader in self._readers.items() if reader.ended)}

    def _read(self, partition: str, reader: Reader) -> list[Message]:
        waiting = self._waiting.setdefault(partition, [])
        if not waiting:
            waiting += [(message, _done_ns(message)) for message in reader.read(self._settings.batches)]
        bound = self._reached_ns if self._within.until_ns is None else 1 << 62  # past the end nothing counts
        count = next((at for at, (_, done) in enumerate(waiting) if done > bound), len(waiting))
        taken, waiting[:] = waiting[:count], waiting[count:]
        for _, done in taken:
            self._read_ns[partition] = max(self._read_ns.get(partition, 0), done)
        return [message for message, _ in taken]

    def _where(self, topic: str, partition: str) -> tuple[str, str]:
        """Agents of two recordings may have one name."""
        return topic, f"{self._name}/{partition}"


def _done_ns(message: Message) -> int:
    """When the last exchange of a message was done; 0 = there is none."""
    try:
        header = codec.decode_header(message.data)
        if header.type is not RecordType.EXCHANGE:
            return 0
        return max((done_ns(exchange) for exchange in codec.decode(message.data, header).records), default=0)
    except codec.CodecError:
        return 0
