"""The checks of `fault_bus.py` see what they look for; and a call that is repeated after BusAway writes nothing twice."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import fault_bus
import pytest

from bus.address import KafkaAddress
from bus.kafka import KafkaBus
from bus.kafka_topics import Topics, Wanted
from bus.ports import BusAway


@pytest.mark.parametrize(
    ("read", "says"),
    [
        ([0, 1, 2, 3], ""),
        ([0, 1, 3], "1 of 4 acknowledged are lost: [2]"),
        ([0, 1, 1, 2, 3], "1 came twice: [1]"),
        ([0, 1, 2, 3, 4], "never acknowledged: [4]"),
        ([1, 0, 2, 3], "in another order"),
    ],
)
def test_what_is_lost_or_comes_twice_is_told(read: list[int], says: str) -> None:
    found = " ".join(fault_bus.stream_problems("w0", 4, read))
    assert says in found and bool(says) == bool(found)


@pytest.fixture
def bus(request: pytest.FixtureRequest) -> Iterator[KafkaBus]:
    address = KafkaAddress((request.getfixturevalue("kafka_server").address,), f"test-{uuid.uuid4().hex[:8]}")
    with Topics(address) as topics:
        topics.create(Wanted(partitions=1))
        bus = KafkaBus(address, fault_bus.SCOPE)
        yield bus
        bus.close()
        topics.delete()


def numbers(bus: KafkaBus) -> list[int]:
    found: list[int] = []
    with bus.reader(fault_bus.TOPIC, "w0") as reader:
        while messages := reader.read():
            found += [fault_bus.number_of(m.data) for m in messages if m.data[3] == fault_bus.codec.RecordType.DROP]
    return found


class Gaps:
    """Raises BusAway instead of every call from the `after`th on, `times` times."""

    def __init__(self, call: Any, after: int, times: int = 1, late: bool = False) -> None:
        self._call, self._after, self._left, self._late = call, after, times, late

    def __call__(self, *args: Any) -> Any:
        self._after -= 1
        if self._after >= 0 or not self._left:
            return self._call(*args)
        self._left -= 1
        if self._late:
            self._call(*args)
        raise BusAway("planted")


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_list_that_was_cut_short_and_is_written_again_comes_once(
    bus: KafkaBus, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    writer = bus.writer(fault_bus.TOPIC, "w0", fault_bus.manifest("w0"))
    batches = [fault_bus.batch(number) for number in range(5)]
    gaps = Gaps(bus.link.acknowledged, after)
    monkeypatch.setattr(bus.link, "acknowledged", gaps)
    with pytest.raises(BusAway, match="planted"):
        writer.write_many(batches)
    offsets = writer.write_many(batches)
    assert len(offsets) == 5 and offsets == sorted(set(offsets))
    assert numbers(bus) == [0, 1, 2, 3, 4]
    writer.write(batches[4])  # the control: what is no repeat is written
    assert numbers(bus) == [0, 1, 2, 3, 4, 4]


def test_what_was_written_while_the_hold_was_not_sure_comes_once(
    bus: KafkaBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = bus.writer(fault_bus.TOPIC, "w0", fault_bus.manifest("w0"))
    monkeypatch.setattr(bus, "reclaimed", Gaps(bus.reclaimed, 0))
    writer._held_until = time.monotonic() - 1
    with pytest.raises(BusAway, match="planted"):
        writer.write(fault_bus.batch(0))
    assert numbers(bus) == [0]
    writer.write(fault_bus.batch(0))
    assert numbers(bus) == [0]
    writer.write(fault_bus.batch(1))
    assert numbers(bus) == [0, 1]


def test_a_caller_that_goes_on_with_something_else_keeps_the_order(
    bus: KafkaBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = bus.writer(fault_bus.TOPIC, "w0", fault_bus.manifest("w0"))
    monkeypatch.setattr(bus.link, "acknowledged", Gaps(bus.link.acknowledged, 2))
    with pytest.raises(BusAway, match="planted"):
        writer.write_many([fault_bus.batch(number) for number in range(4)])
    assert len(writer.write_many([fault_bus.batch(7), fault_bus.batch(8)])) == 2
    assert numbers(bus) == [0, 1, 2, 3, 7, 8]
