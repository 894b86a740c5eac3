"""`livefire learn`, `livefire cleanse --bus` and `livefire dead` as they are typed, over a folder."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import synthetic_trace
from fault_checks import told
from test_cleanse_app import exchange, write
from test_cleanse_stream import NAME, deal, run, same

from bus.logfile import FileBus, LogReader
from cleanse import learned
from cleanse.app import cleanse
from replay.fetch import fetch
from wire import codec, topics
from wire.records import End, Manifest


def damaged(exchanges: list) -> bytes:  # type: ignore[type-arg]
    """A batch whose header can be told, and whose records cannot."""
    return codec.encode(exchanges, compress=False)[:-40] + b"\xff" * 40


def test_from_a_bus_the_same_is_learned_as_from_the_file(tmp_path: Path) -> None:
    trace = synthetic_trace.make(11)
    exchanges = trace.exchanges.copy()
    random.Random(3).shuffle(exchanges)
    raw = write(tmp_path / "raw.lf", exchanges)
    deal(tmp_path / "bus", exchanges, random.Random(4))
    of_file = run("learn", str(raw), "--to", str(tmp_path / "one.lf"), "--json")
    of_bus = run(
        "learn", "--bus", str(tmp_path / "bus"), "--recording", NAME, "--to", str(tmp_path / "two.lf"), "--json"
    )
    assert (of_file.returncode, of_bus.returncode) == (0, 0), of_file.stderr + of_bus.stderr
    assert json.loads(of_file.stdout) == json.loads(of_bus.stdout) and json.loads(of_file.stdout)["flows"]
    cleanse(raw, tmp_path / "clean.lf")
    for name in ("one.lf", "two.lf"):
        known = learned.load(tmp_path / name)
        assert known.routes.routes == learned.load(tmp_path / "clean.lf").routes.routes
        assert known.flows.flows == learned.load(tmp_path / "clean.lf").flows.flows
    assert learned.load(tmp_path / "two.lf").flows.recording_id == NAME
    with LogReader(tmp_path / "two.lf") as reader:
        assert reader.manifest is not None and reader.manifest.hosts == ("agent-0", "agent-1")
    shown = run("show", str(tmp_path / "one.lf"))
    assert shown.returncode == 0 and "POST /enter" in shown.stdout and "->" in shown.stdout
    first = run("learn", str(raw), "--to", str(tmp_path / "few.lf"), "--first", "10")
    assert "of 10 exchanges" in first.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "bus", "clean.lf", "few.lf", "one.lf", "raw.lf", "two.lf",
    ]  # fmt: skip


def test_what_is_waited_for_is_told(tmp_path: Path) -> None:
    at = ["--bus", str(tmp_path / "bus"), "--recording", "nosuch", "--to", str(tmp_path / "x.lf"), "--wait", "3s"]
    done = run("learn", *at)
    assert done.returncode == 2 and done.stderr.splitlines() == [
        "recording nosuch: waits for somebody to begin with it",
        "livefire: recording nosuch: not whole after 3 s: waits for somebody to begin with it",
    ]


def test_cleansed_over_a_folder(tmp_path: Path) -> None:
    exchanges = synthetic_trace.make(12).exchanges
    raw = write(tmp_path / "raw.lf", exchanges)
    cleanse(raw, tmp_path / "clean.lf")
    bus = deal(tmp_path / "bus", exchanges, random.Random(4))
    result = run(
        "cleanse", "--bus", str(tmp_path / "bus"), "--recording", NAME, "--learned", str(tmp_path / "clean.lf")
    )
    assert result.returncode == 0 and "livefire: cleansed" in result.stderr, result.stderr
    fetch(bus, NAME, tmp_path / "fetched.lf", deadline_s=5)
    same(tmp_path / "fetched.lf", tmp_path / "clean.lf")


def poisoned(tmp_path: Path) -> FileBus:
    bus = FileBus(tmp_path / "bus" / NAME)
    writer = bus.writer(topics.RAW, "a.0", Manifest(topics.RAW, "a.0", NAME, 1, "test", ("a",)))
    writer.write_records([exchange(1)])
    writer.write(damaged([exchange(2), exchange(3)]))
    writer.write(b"no batch at all, only noise, and long enough for a header")
    writer.end(End(NAME, "a.0", 3, 0, 0))
    cleanse(write(tmp_path / "raw.lf", [exchange(1)]), tmp_path / "clean.lf")
    done = run("cleanse", "--bus", str(tmp_path / "bus"), "--recording", NAME, "--learned", str(tmp_path / "clean.lf"))
    assert "2 dead letters, see: livefire dead list" in done.stderr, done.stderr
    return bus


def dead(tmp_path: Path, *words: str) -> list[dict]:  # type: ignore[type-arg]
    lines, _ = told(tmp_path, "dead", "list", "--bus", tmp_path / "bus", "--recording", NAME, "--json", *words)
    return lines


def test_dead_letters_are_listed_dropped_and_audited(tmp_path: Path) -> None:
    bus = poisoned(tmp_path)
    one, two = dead(tmp_path)
    assert one["reason"].startswith("corrupt") and two["reason"].startswith("foreign")
    assert (one["topic"], one["partition"], one["stage"], two["bytes"]) == ("raw", "a.0", "cleanse", 57)
    where = ["--bus", str(tmp_path / "bus"), "--recording", NAME]
    shown = run("dead", "list", *where)
    assert one["letter"] in shown.stdout and "corrupt" in shown.stdout
    wrong = run("dead", "drop", *where, "a.0@1")
    assert wrong.returncode == 2 and "has no dead letter 'a.0@1'" in wrong.stderr
    assert run("dead", "drop", *where).returncode == 2
    assert run("dead", "drop", *where, two["letter"]).stdout == "dropped 1 dead letter\n"
    assert dead(tmp_path) == [one]
    reader = bus.reader(topics.AUDIT, "dead")
    (audit,) = codec.decode(reader.read()[1].data).records
    assert (audit.action, audit.detail["offset"]) == ("dead.dropped", two["offset"]) and audit.who and audit.at_ns
    assert run("dead", "drop", *where, "--all").stdout == "dropped 1 dead letter\n"
    assert run("dead", "list", *where).stdout == f"recording {NAME}: no dead letters\n"
    wrong = run("dead", "list", *where[:2], "--recording", "mondai")
    assert wrong.returncode == 2
    assert wrong.stderr == f"livefire: {tmp_path}/bus: holds no recording mondai (did you mean {NAME!r}?)\n"


def test_what_can_be_read_by_now_comes_back_and_the_count_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = poisoned(tmp_path)
    where = ["--bus", str(tmp_path / "bus"), "--recording", NAME, "--learned", str(tmp_path / "clean.lf")]
    still = run("dead", "retry", *where, "--all")
    assert still.returncode == 2 and still.stdout == "cleansed 0 dead letters\n"
    assert len(still.stderr.splitlines()) == 2 and len(dead(tmp_path)) == 2
    # As after an upgrade: the letter holds bytes that this program reads.
    from cleanse import dead as letters
    from cleanse.settings import CleanseSettings
    from cleanse.stream import StreamPipeline

    found = letters.letters(bus)[0]
    readable = letters.Letter(
        type(found.dead)(
            found.dead.topic, found.dead.partition, found.dead.offset, codec.encode([exchange(2), exchange(3)]), "old"
        ),
        0,
    )
    pipeline = StreamPipeline(CleanseSettings(), learned.load(tmp_path / "clean.lf"), 1)
    for _ in range(2):  # killed behind the writing and before saying so: once more changes nothing
        went, stayed = letters.retry(bus, NAME, [readable], pipeline, "me", 5)
        assert went and not stayed
    fetched = fetch(bus, NAME, tmp_path / "fetched.lf", deadline_s=5)
    assert fetched is not None and fetched.exchanges == 3
    ledger = fetched.account.ledger("messages")
    assert (ledger.seen, ledger.emitted, ledger.drops, fetched.account.balanced) == (3, 3, {}, True)
    assert fetched.account.notes == {"unreadable_batches": 1}
    assert len(dead(tmp_path)) == 1


@pytest.mark.parametrize(
    ("words", "told_of"),
    [
        (("cleanse",), "what should be cleansed"),
        (("cleanse", "raw.lf"), "--to FILE is missing"),
        (("cleanse", "raw.lf", "--to", "x.lf", "--bus", "b"), "without a bus"),
        (("cleanse", "--bus", "b"), "--learned FILE is missing"),
        (("cleanse", "--bus", "b", "--learned", "raw.lf"), "livefire learn"),
        (("cleanse", "--bus", "b", "--learned", "clean.lf"), "--recording NAME is missing"),
        (("cleanse", "--bus", "b", "--learned", "clean.lf", "--recording", "x"), "holds no recording x"),
        (("cleanse", "--bus", "b", "--learned", "clean.lf", "--to", "x.lf"), "--to is for a file"),
        (("cleanse", "raw.lf", "--to", "x.lf", "--from", "noon"), "--from 'noon' is not a time"),
        (("learn", "--to", "x.lf"), "what to learn from"),
        (("learn", "--bus", "b", "--to", "x.lf"), "--recording NAME is missing"),
        (("learn", "clean.lf", "--to", "x.lf"), "not a raw recording"),
        (("learn", "--bus", "b", "--recording", "x", "--wait", "200ms", "--to", "x.lf"), "not whole after 0.2 s"),
        (("dead", "list", "--recording", "x"), "--bus ADDRESS is missing"),
    ],
)
def test_what_is_missing_or_wrong_is_one_line(tmp_path: Path, words: tuple[str, ...], told_of: str) -> None:
    cleanse(write(tmp_path / "raw.lf", [exchange(1)]), tmp_path / "clean.lf")
    result = run(*words, folder=tmp_path)
    assert result.returncode == 2, result.stderr
    assert told_of in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
    assert not (tmp_path / "x.lf").exists()


def test_a_cluster_that_does_not_answer_is_asked_for_a_while(tmp_path: Path) -> None:
    cleanse(write(tmp_path / "raw.lf", [exchange(1)]), tmp_path / "clean.lf")
    result = run("cleanse", "--bus", "kafka://127.0.0.1:1/x", "--learned", "clean.lf", folder=tmp_path)
    waits, ends = result.stderr.splitlines()
    assert result.returncode == 2 and waits == f"{ends}; asks again for 15 s", result.stderr
    assert ends == "livefire: kafka://127.0.0.1:1/x: no broker answers (connection refused)"
