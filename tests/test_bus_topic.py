"""A topic's reader loses nothing: not what appears late, not what its user left in the middle."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bus.address import open_bus
from bus.logfile import FileBus, LogWriter
from bus.ports import BusError
from bus.scopes import open_scopes
from bus.topic import TopicReader
from wire import codec
from wire.records import Action, Control, Drop, Manifest


def writer(bus: FileBus, partition: str) -> LogWriter:
    return bus.writer("control", partition, Manifest("control", partition, "run-1", 1, "test"))


def drops(topic: TopicReader) -> list[int]:
    return [record.count for _, batch in topic.batches() for record in batch.records if isinstance(record, Drop)]


def test_new_partitions_appear_while_reading(tmp_path: Path) -> None:
    bus = FileBus(tmp_path / "run")
    topic = TopicReader(bus, "control")
    assert list(topic.batches()) == []  # the folder is not there yet
    with writer(bus, "conductor") as conductor:
        conductor.write_records([Drop("a", "b", False, 1)])
        assert drops(topic) == [1]
        conductor.write_records([Drop("a", "b", False, 2)])
        with writer(bus, "stop-01JD") as stop:  # between two polls, and read from its beginning
            stop.write_records([Control("run-1", 1, Action.STOP, 0)])
        found = [record for _, batch in topic.batches() for record in batch.records]
    assert [record.action for record in found if isinstance(record, Control)] == [Action.STOP]
    assert [record.count for record in found if isinstance(record, Drop)] == [2]
    assert set(topic.readers) == {"conductor", "stop-01JD"}
    topic.close()


def test_partitions_that_appear_inside_a_pass_are_part_of_it(tmp_path: Path) -> None:
    bus = FileBus(tmp_path)
    topic = TopicReader(bus, "control")
    with writer(bus, "a") as first:
        first.write_records([Drop("a", "b", False, 1)])
    found = []
    for _, batch in topic.batches():
        if batch.header.type == codec.RecordType.DROP:
            found.append(batch.records[0].count)
            if found == [1]:
                with writer(bus, "b") as second:
                    second.write_records([Drop("a", "b", False, 2)])
    assert found == [1, 2]
    topic.close()


def test_a_pass_left_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    bus = FileBus(tmp_path)
    with writer(bus, "a") as one:
        for number in range(10):
            one.write_records([Drop("a", "b", False, number)])
        one.end()
    topic = TopicReader(bus, "control")
    found: list[int] = []
    while not topic.ended:
        for _, batch in topic.batches():
            found.extend(record.count for record in batch.records if isinstance(record, Drop))
            break
    assert found == list(range(10))
    topic.close()


def test_messages_that_are_no_batch_are_counted_and_passed_over(tmp_path: Path) -> None:
    bus = FileBus(tmp_path)
    with writer(bus, "a") as one:
        one.write(b"not a batch")
        one.write_records([Drop("a", "b", False, 5)])
    topic = TopicReader(bus, "control")
    assert drops(topic) == [5]
    assert topic.unreadable == 1
    topic.close()


@pytest.mark.parametrize("since_ns", [0, 1])
def test_what_is_discarded_between_its_listing_and_its_opening_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, since_ns: int
) -> None:
    bus = FileBus(tmp_path)
    for name in ("a", "b"):
        with writer(bus, name) as one:
            one.write_records([Drop(name, "b", False, 5)], first_ns=5, last_ns=5)
    listed = bus.partitions("control")
    bus.discard("control", "a")
    monkeypatch.setattr(bus, "partitions", lambda topic: listed)
    topic = TopicReader(bus, "control", since_ns=since_ns)
    assert drops(topic) == [5] and set(topic.readers) == {"b"}
    topic.close()


def test_a_partition_that_cannot_be_read_is_named_and_the_others_lose_nothing(tmp_path: Path) -> None:
    bus = FileBus(tmp_path)
    with writer(bus, "a") as one:
        one.write_records([Drop("a", "b", False, 5)])
    topic = TopicReader(bus, "control")
    (tmp_path / "control-b.lf").write_bytes(b"something else altogether")
    with pytest.raises(BusError, match=r"control-b\.lf: not a Livefire file"):
        topic.poll()
    (tmp_path / "control-b.lf").unlink()
    assert drops(topic) == [5]
    topic.close()


def test_an_address_that_is_no_folder_is_not_taken_for_one() -> None:
    for way in (lambda: open_scopes("http://kafka:9092"), lambda: open_bus("http://kafka:9092", "monday")):
        with pytest.raises(BusError, match="http://kafka:9092: a bus is a folder or kafka://host:port"):
            way()


def test_a_folder_is_looked_into_until_it_has_the_topic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who follows new runs asks once a second: it must not cost more with each run that is kept."""
    looked: list[str] = []

    class Looking(FileBus):
        def partitions(self, topic: str) -> list[str]:
            looked.append(self.root.name)
            return super().partitions(topic)

    monkeypatch.setattr("bus.scopes.FileBus", Looking)
    scopes = open_scopes(str(tmp_path))
    assert scopes.of("control") == []
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    (tmp_path / "control-file.lf").write_bytes(b"")  # no folder
    writer(FileBus(tmp_path / "one"), "a").close()
    assert scopes.of("control") == ["one"] and sorted(looked) == ["one", "three", "two"]
    writer(FileBus(tmp_path / "two"), "a").close()
    looked.clear()
    assert scopes.of("control") == ["one", "two"] and sorted(looked) == ["three", "two"]
    assert scopes.of("raw") == []
    shutil.rmtree(tmp_path / "one")
    looked.clear()
    assert scopes.of("control") == ["two"] and looked == ["three"]


def test_who_listens_for_months_keeps_nothing_of_what_was_discarded(tmp_path: Path) -> None:
    bus = FileBus(tmp_path)
    topic = TopicReader(bus, "control")
    one = writer(bus, "a")
    one.write_records([Drop("n", "late", False, 1)])
    assert drops(topic) == [1]
    one.write_records([Drop("n", "late", False, 2)])
    one.close()
    bus.discard("control", "a")
    assert drops(topic) == [2] and not topic.readers
    with writer(bus, "a") as again:
        again.write_records([Drop("n", "late", False, 3)])
        assert drops(topic) == [3]
    topic.close()


def test_a_folder_that_may_not_be_read_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As lost+found, where the bus is a disk of its own. Not by permissions: root reads all."""
    real = os.listdir

    def listdir(path: object) -> list[str]:
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied")
        return real(path)  # type: ignore[arg-type,return-value]

    monkeypatch.setattr("os.listdir", listdir)
    writer(FileBus(tmp_path / "one"), "a").close()
    (tmp_path / "lost+found").mkdir()
    assert open_scopes(str(tmp_path)).of("control") == ["one"]
    with pytest.raises(BusError, match=r"lost\+found: cannot be used: permission denied"):
        FileBus(tmp_path / "lost+found").partitions("control")


def test_the_home_of_nobody_is_no_bus() -> None:
    for way in (lambda: open_scopes("~nobody-of-that-name/x"), lambda: open_bus("~nobody-of-that-name/x", "monday")):
        with pytest.raises(BusError, match="~nobody-of-that-name/x: there is no user of that name"):
            way()
