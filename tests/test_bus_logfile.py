"""A folder of log files as a bus: accounts, headers, and resuming from the output."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bus.logfile import FileBus, LogReader, LogWriter, account_of, headers, resume_offsets
from bus.ports import BusError
from wire import codec
from wire.account import Account
from wire.codec import RecordType
from wire.records import Drop, Manifest, SourceRange


def manifest(topic: str = "clean", partition: str = "0") -> Manifest:
    return Manifest(topic, partition, "rec-1", 5, "test")


def write_account(path: Path, batches: int) -> Account:
    account = Account()
    with LogWriter(path, manifest()) as writer:
        for number in range(batches):
            ledger = account.ledger("messages")
            ledger.seen += 3
            ledger.emitted += 2
            ledger.drop("late", intentional=number % 2 == 0)
            writer.write_records([Drop("a", "b", False, number)], increment=account.take())
    return account


def test_a_file_carries_its_account(tmp_path: Path) -> None:
    account = write_account(tmp_path / "a.lf", 5)
    found = account_of(tmp_path / "a.lf")
    assert found.as_json() == account.as_json() and found.balanced


def test_an_account_of_a_damaged_file_says_that_something_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    account = write_account(path, 5)
    with LogReader(path) as reader:
        third = reader.read()[3]
    data = bytearray(path.read_bytes())
    data[third.offset + 20] ^= 1
    path.write_bytes(data)
    with LogWriter(path, manifest()) as writer:
        writer.write(b"no batch")
    found = account_of(path)
    assert found.notes == {"damaged_frames": 1, "unreadable_batches": 1}
    assert found.ledger("messages").seen == account.ledger("messages").seen - 3


def test_batches_of_a_later_version_are_not_silently_missing_from_an_account(tmp_path: Path) -> None:
    path = tmp_path / "a.lf"
    write_account(path, 2)
    later = bytearray(codec.encode([Drop("a", "b", False, 1)]))
    later[2] = codec.VERSION + 1
    with LogWriter(path, manifest()) as writer:
        offset = writer.write(bytes(later))
    line = f"{path}: at {offset}: format version 2, this program reads up to 1: upgrade livefire"
    with pytest.raises(BusError) as caught:
        account_of(path)
    assert str(caught.value) == line
    with LogReader(path) as reader, pytest.raises(BusError, match="upgrade"):
        list(headers(reader))


def test_headers_tell_what_is_in_a_file_without_its_records(tmp_path: Path) -> None:
    write_account(tmp_path / "a.lf", 2)
    with LogReader(tmp_path / "a.lf") as reader:
        assert [header.type for header in headers(reader)] == [RecordType.MANIFEST, RecordType.DROP, RecordType.DROP]


def stage(bus: FileBus, batches: int) -> None:
    """Copies raw to clean, at most so many batches, from where its own output says that it stood."""
    account = Account()
    with bus.writer("clean", "0", manifest()) as writer:
        with bus.reader("clean", "0") as output:
            offset = resume_offsets(output).get(("raw", "0"), 0)
        with bus.reader("raw", "0", offset) as reader:
            for _ in range(batches):
                found = reader.read(1)
                if not found:
                    return
                batch = codec.decode(found[0].data)
                if batch.header.type != RecordType.DROP:
                    continue
                account.ledger("messages").seen += 1
                account.ledger("messages").emitted += 1
                source = SourceRange("raw", "0", found[0].offset, found[0].next_offset)
                writer.write_records(batch.records, sources=(source,), increment=account.take())


def test_a_stage_goes_on_from_the_offsets_in_its_own_output(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    choose = random.Random(seed)
    bus = FileBus(tmp_path)
    with bus.writer("raw", "0", manifest("raw")) as writer:
        for number in range(60):
            writer.write_records([Drop("a", "b", False, number)])
    for _ in range(60):
        stage(bus, choose.randrange(1, 6))
        # Killed in the middle of a frame: what is torn was not acknowledged, and is done again.
        path = bus.path("clean", "0")
        with LogReader(path) as reader:
            messages = reader.read(10_000)
        if len(messages) > 1 and choose.random() < 0.5:
            path.write_bytes(path.read_bytes()[: -choose.randrange(1, messages[-1].next_offset - messages[-1].offset)])
    stage(bus, 1000)
    with bus.reader("clean", "0") as reader:
        batches = [codec.decode(message.data) for message in reader.read(1000)]
    assert [record.count for batch in batches[1:] for record in batch.records] == list(range(60))
    account = account_of(bus.path("clean", "0"))
    assert account.ledger("messages").seen == 60 and account.balanced


def test_resuming_takes_each_input_s_furthest_offset(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "a.lf", manifest()) as writer:
        for sources in ([("raw", "a", 0, 50), ("raw", "b", 16, 40)], [("raw", "a", 50, 70)], [("raw", "b", 16, 30)]):
            writer.write_records([Drop("a", "b", False, 1)], sources=tuple(SourceRange(*source) for source in sources))
    with LogReader(tmp_path / "a.lf") as reader:
        assert resume_offsets(reader) == {("raw", "a"): 70, ("raw", "b"): 40}


def test_a_bus_folder_is_private_and_says_when_it_cannot_be_made(tmp_path: Path) -> None:
    bus = FileBus(tmp_path / "runs" / "r1")
    bus.writer("clean", "0", manifest()).close()
    assert (tmp_path / "runs" / "r1").stat().st_mode & 0o077 == 0
    (tmp_path / "file").write_text("x")
    with pytest.raises(BusError, match="cannot be made: not a directory"):
        FileBus(tmp_path / "file" / "r1").writer("clean", "0", manifest())
    assert FileBus(tmp_path / "file").partitions("clean") == []
