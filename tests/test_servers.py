"""The servers that tests start: what a kill leaves, what a freeze holds up, and that none outlives who started it."""

from __future__ import annotations

import datetime
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_checks import alive, until
from servers import chdb_child, jars, java, process
from servers.chdb_child import Chdb, ChdbError
from servers.clickhouse import ClickHouse
from servers.elasticsearch import Elasticsearch
from servers.fixtures import started
from servers.kafka import Kafka, answers
from servers.process import Command, Died, Missing, Server

TESTS = Path(__file__).resolve().parent
LINUX = sys.platform == "linux"


class Sleeper(Server):
    """The least that can be kept: needs nothing installed."""

    name = "sleeper"

    def _command(self) -> Command:
        return Command(["sleep", "600"])

    def _ready(self) -> bool:
        return True


# ---------------------------------------------------------------------------- life and death

ASKER = """
import subprocess, sys, time
sys.path.insert(0, {tests!r})
from test_servers import *
server = {make}
if isinstance(server, Server):
    server.start()
    print(server.pid, server._keeper.pid, server.folder, flush=True)
else:
    print(server.pid, 0, "-", flush=True)
time.sleep(600)
"""


class Asker:
    """A process that has started a server, as a pytest does. `make`: what it starts."""

    def __init__(self, make: str) -> None:
        program = ASKER.format(tests=str(TESTS), make=make)
        self.process = subprocess.Popen((sys.executable, "-c", program), stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        pid, keeper, folder = self.process.stdout.readline().split()
        self.server, self.keeper, self.folder = int(pid), int(keeper), Path(folder)

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        if alive(self.server):
            os.kill(self.server, signal.SIGKILL)


REAL = {"ClickHouse()": ClickHouse, "Chdb()": Chdb}


@pytest.mark.parametrize("make", ["Sleeper()", *REAL])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_ends_with_the_process_that_started_it_and_leaves_nothing(make: str, how: signal.Signals) -> None:
    if make in REAL:
        started(REAL[make]).close()
    with Asker(make) as asker:
        assert alive(asker.server) and asker.folder.is_dir()
        asker.process.send_signal(how)
        until(lambda: not alive(asker.server), 30, "the server lives on")
        until(lambda: not asker.folder.exists(), 30, "its data are left")


def test_a_frozen_server_ends_with_the_process_that_started_it() -> None:
    with Asker("Sleeper()") as asker:
        assert alive(asker.server)
        os.kill(asker.server, signal.SIGSTOP)
        asker.process.kill()
        until(lambda: not alive(asker.server), 30, "the server lives on")


def test_without_a_keeper_a_server_would_live_on() -> None:
    with Asker('subprocess.Popen(("sleep", "600"), stdout=subprocess.DEVNULL)') as asker:
        asker.process.kill()
        asker.process.wait()
        end = time.monotonic() + 1.0  # a keeper needs a few milliseconds
        while time.monotonic() < end:
            assert alive(asker.server)
            time.sleep(0.05)


@pytest.mark.skipif(not LINUX, reason="that a process dies with its parent's thread is Linux's")
def test_a_server_ends_when_its_keeper_is_killed() -> None:
    with Asker("Sleeper()") as asker:
        assert alive(asker.server)
        os.kill(asker.keeper, signal.SIGKILL)
        until(lambda: not alive(asker.server), 30, "the server lives on")
        shutil.rmtree(asker.folder)  # nobody else will


def test_a_server_outlives_the_thread_that_started_it() -> None:
    with Sleeper() as kept:
        kept.kill()
        thread = threading.Thread(target=kept.start)
        thread.start()
        thread.join()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            assert kept.running and alive(kept.pid)
            time.sleep(0.05)


def test_a_server_that_ends_by_itself_says_what_it_wrote() -> None:
    class Broken(Sleeper):
        def _command(self) -> Command:
            return Command(["sh", "-c", "echo no such disk; exit 3"])

        def _ready(self) -> bool:
            return False

    broken = Broken()
    with pytest.raises(Died, match=r"sleeper did not start: stdout\.log: no such disk"):
        broken.start()
    assert not broken.running
    broken.close()
    assert not broken.folder.exists()


def test_stop_and_kill_leave_the_data_and_close_does_not() -> None:
    with Sleeper() as kept:
        (kept.folder / "data").write_text("x")
        kept.stop()
        assert (kept.folder / "data").read_text() == "x" and not kept.running
        with pytest.raises(Died, match="not running"):
            _ = kept.pid
        kept.start()
        assert kept.rss_mb() > 0
        kept.kill()
        assert (kept.folder / "data").read_text() == "x"
    assert not kept.folder.exists()


# ---------------------------------------------------------------------------- Kafka


@pytest.fixture(scope="module")
def broker() -> Iterator[Kafka]:
    scram = {"listener.name.safe.sasl.enabled.mechanisms": "SCRAM-SHA-256"}
    jaas = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    props = {**scram, "listener.name.safe.scram-sha-256.sasl.jaas.config": jaas}
    broker = started(lambda: Kafka(props, listeners={"SAFE": "SASL_PLAINTEXT"}, scram={"anna": "right"}))
    with broker:
        yield broker


def client(broker: Kafka, **more: object) -> dict[str, object]:
    return {"bootstrap_servers": broker.address, "request_timeout_ms": 3000, **more}


def made_topic(broker: Kafka, name: str) -> str:
    from kafka.admin import KafkaAdminClient, NewTopic

    admin = KafkaAdminClient(**client(broker))
    admin.create_topics([NewTopic(name, 1, 1)])
    admin.close()
    return name


def values(broker: Kafka, topic: str) -> list[bytes]:
    """All that is in the topic's one partition."""
    from kafka import KafkaConsumer, TopicPartition

    reader = KafkaConsumer(**client(broker), enable_auto_commit=False)
    try:
        place = TopicPartition(topic, 0)
        reader.assign([place])
        reader.seek_to_beginning()
        end = reader.end_offsets([place])[place]
        found: list[bytes] = []
        while reader.position(place) < end:
            for records in reader.poll(timeout_ms=500).values():
                found += [record.value for record in records]
        return found
    finally:
        reader.close()


def test_a_killed_broker_has_all_that_it_acknowledged(broker: Kafka) -> None:
    from kafka import KafkaProducer

    topic = made_topic(broker, "killed")
    producer = KafkaProducer(**client(broker))
    sent = [b"%d" % number for number in range(500)]
    for value in sent:
        producer.send(topic, value)
    producer.flush(10)
    before = broker.pid
    broker.kill()
    assert not broker.running and not answers(int(broker.address.rpartition(":")[2]))
    producer.close(timeout=0)
    broker.start()
    assert broker.pid != before and values(broker, topic) == sent
    assert 50 < broker.rss_mb() < 2000


def test_a_stopped_broker_whose_data_are_wiped_has_nothing() -> None:
    """The control: that data outlive a kill is the data folder's doing."""
    with started(Kafka) as broker:
        made_topic(broker, "wiped")
        broker.stop()
        broker.wipe()
        broker.start()
        from kafka.admin import KafkaAdminClient

        admin = KafkaAdminClient(**client(broker))
        assert "wiped" not in admin.list_topics()
        admin.close()


def test_a_frozen_broker_answers_nobody_until_it_is_thawed(broker: Kafka) -> None:
    port = int(broker.address.rpartition(":")[2])
    assert answers(port)
    broker.freeze()
    try:
        assert not answers(port, 0.5)
    finally:
        broker.thaw()
    until(lambda: answers(port), 30, "it does not answer")


def test_a_listener_with_a_password_lets_only_that_in(broker: Kafka) -> None:
    from kafka import KafkaConsumer
    from kafka.errors import KafkaError

    def topics(word: str) -> set[str]:
        sasl = {"sasl_mechanism": "SCRAM-SHA-256", "sasl_plain_username": "anna", "sasl_plain_password": word}
        settings = client(broker, bootstrap_servers=broker.addresses["SAFE"], security_protocol="SASL_PLAINTEXT")
        reader = KafkaConsumer(**{**settings, **sasl}, bootstrap_timeout_ms=3000)
        try:
            return set(reader.topics())
        finally:
            reader.close()

    assert topics("right") >= set()
    with pytest.raises(KafkaError):
        topics("wrong")


# ---------------------------------------------------------------------------- the stores


def documents(server: Elasticsearch, path: str, body: str | None = None) -> str:
    request = urllib.request.Request(
        server.address + path,
        data=None if body is None else body.encode(),
        headers={"Content-Type": "application/json"},
        method="GET" if body is None else "PUT",
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return str(reply.read().decode())


def test_a_killed_elasticsearch_has_its_documents_and_a_frozen_one_is_silent() -> None:
    with started(Elasticsearch) as server:
        assert '"created"' in documents(server, "/some/_doc/1?refresh=true", '{"x": 7}')
        group = os.getpgid(server.pid)
        server.kill()
        with pytest.raises(ProcessLookupError):  # the launcher and the server
            os.killpg(group, 0)
        with pytest.raises(urllib.error.URLError):
            documents(server, "/some/_doc/1")
        server.start()
        assert '"x":7' in documents(server, "/some/_doc/1").replace(" ", "")
        server.freeze()
        with pytest.raises(OSError):
            documents(server, "/some/_doc/1")
        server.thaw()
        assert '"x":7' in documents(server, "/some/_doc/1").replace(" ", "")
        server.stop()
        assert not alive(group)


def test_a_killed_clickhouse_has_its_rows() -> None:
    from clickhouse_driver import Client

    with started(ClickHouse) as server:
        host, port = server.address.split(":")

        def execute(sql: str, rows: list[tuple[int]] | None = None) -> object:
            with Client(host, int(port), connect_timeout=20) as asking:
                return asking.execute(sql, rows)

        execute("CREATE TABLE numbers (n UInt64) ENGINE = MergeTree ORDER BY n")
        execute("INSERT INTO numbers VALUES", [(n,) for n in range(100)])
        server.kill()
        with pytest.raises(Exception, match="refused"):
            execute("SELECT 1")
        server.start()
        assert execute("SELECT count(), sum(n) FROM numbers") == [(100, 4950)]
        assert execute("SELECT timezone()") == [("Etc/UTC",)]


def test_chdb_answers_what_the_driver_would_answer() -> None:
    with started(Chdb) as base:
        base.execute(
            "CREATE TABLE t (a UInt64, k Array(UInt16), t DateTime, s String, f Float64, n Nullable(Int32)) "
            "ENGINE = MergeTree ORDER BY a"
        )
        noon = datetime.datetime(2020, 1, 1, 12)
        rows = [(1, [], noon, "", 2.0, 4), (2**64 - 1, [1, 2], noon, 'x\n"é\\', 1.5, None)]
        assert base.execute("INSERT INTO t (a, k, t, s, f, n) VALUES", rows) == []
        base.execute("INSERT INTO t (a, s) VALUES", [{"a": 2, "s": "b"}])
        assert base.execute("INSERT INTO t (a) VALUES", []) == []
        assert base.execute("SELECT * FROM t WHERE a != 2 ORDER BY a") == rows
        assert base.execute("SELECT sumMap(k, k), (1, 'a'), toDate('2020-01-02'), 'NaN' FROM t") == [
            (([1, 2], [1, 2]), (1, "a"), datetime.date(2020, 1, 2), "NaN")
        ]
        assert repr(base.execute("SELECT nan, inf, 1 WHERE 1")) == "[(nan, inf, 1)]"
        assert base.execute("SELECT 1 WHERE 0") == []
        with pytest.raises(ChdbError, match="Syntax error") as caught:
            base.execute("SELEC 1")
        assert caught.value.code == 62
        base.kill()
        with pytest.raises(Died, match="not running"):
            base.execute("SELECT 1")
        base.start()
        os.kill(base.pid, signal.SIGKILL)
        with pytest.raises(Died, match="chdb ended over 'SELECT 1'"):
            base.execute("SELECT 1")
        base.kill()
        base.start()
        assert base.execute("SELECT count() FROM t") == [(3,)]


@pytest.mark.parametrize(
    ("kind", "inside"),
    [
        ("Array(UInt8)", ["UInt8"]),
        ("Tuple(Array(Int8), Map(String, Int8), String)", ["Array(Int8)", "Map(String, Int8)", "String"]),
    ],
)
def test_types_are_taken_apart(kind: str, inside: list[str]) -> None:
    assert chdb_child._inside(kind) == inside


# ---------------------------------------------------------------------------- what is missing


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def jdk(folder: Path, version: str) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/java").touch()
    (folder / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\n')
    return folder


def test_missing_jars_are_told_in_one_line(nothing: Path) -> None:
    with pytest.raises(Missing) as caught:
        jars.fetched("kafka")
    assert str(caught.value) == f"Kafka is not in {nothing}/livefire: make servers"


def test_a_half_fetched_folder_is_not_there(nothing: Path) -> None:
    folder = jars._place("kafka")
    folder.mkdir(parents=True)
    with pytest.raises(Missing):
        jars.fetched("kafka")
    (folder / ".whole").write_text(jars._pom("kafka").read_text())
    assert jars.fetched("kafka") == folder and jars.fetch("kafka") == f"{folder} is there"
    (folder / ".whole").write_text("<project/>")  # another version's
    with pytest.raises(Missing):
        jars.fetched("kafka")


def test_without_maven_it_says_how_to_get_it(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(nothing))
    with pytest.raises(Missing, match="fetched with Maven: sudo apt-get install -y maven"):
        jars.fetch("elasticsearch")


def test_a_java_that_is_too_old_is_told_and_a_newer_one_found(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = jdk(nothing / "jvm/old", "17.0.15")
    monkeypatch.setattr(java, "_INSTALLED", (str(nothing / "jvm"),))
    monkeypatch.setenv("PATH", str(nothing))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.delenv("ES_JAVA_HOME", raising=False)
    with pytest.raises(Missing) as caught:
        java.java_home(21, "Elasticsearch 9", "ES_JAVA_HOME")
    assert str(caught.value) == (
        f"Elasticsearch 9 needs Java 21 or newer (found: 17 in {old}): install one, and name its folder in ES_JAVA_HOME"
    )
    assert java.java_home(17, "Kafka 4", "KAFKA_JAVA_HOME") == old
    new = jdk(nothing / "jvm/very-new", "25")
    assert java.java_home(21, "Elasticsearch 9", "ES_JAVA_HOME") == new
    named = jdk(nothing / "elsewhere", "21.0.1")
    monkeypatch.setenv("ES_JAVA_HOME", str(named))
    assert java.java_home(21, "Elasticsearch 9", "ES_JAVA_HOME") == named
    assert java._version(jdk(nothing / "eight", "1.8.0_402")) == 8


NEEDS = """
def test_needs(kafka_server):
    assert kafka_server.address == "127.0.0.1:1"
"""


def pytest_of(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A test that needs Kafka, run as this project's tests are."""
    shutil.copy(TESTS / "conftest.py", folder)
    (folder / "test_needs.py").write_text(NEEDS)
    kept = {k: v for k, v in os.environ.items() if k not in ("LIVEFIRE_REQUIRE", "LIVEFIRE_KAFKA")}
    env = {**kept, "XDG_CACHE_HOME": str(folder), "PYTHONPATH": str(TESTS), **environment}
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder, folder)
    return subprocess.run(tuple(map(str, command)), env=env, capture_output=True, text=True, check=False)


def test_a_missing_server_skips_and_says_how_to_get_it(tmp_path: Path) -> None:
    done = pytest_of(tmp_path)
    assert done.returncode == 0 and "1 skipped" in done.stdout
    assert "skipped, and how to get it" in done.stdout and "make servers" in done.stdout


def test_in_ci_a_missing_server_is_a_failure(tmp_path: Path) -> None:
    done = pytest_of(tmp_path, LIVEFIRE_REQUIRE="all")
    assert done.returncode == 1 and "LIVEFIRE_REQUIRE=all" in done.stdout and "make servers" in done.stdout


def test_a_running_server_is_used(tmp_path: Path) -> None:
    done = pytest_of(tmp_path, LIVEFIRE_KAFKA="127.0.0.1:1")
    assert done.returncode == 0 and "1 passed" in done.stdout


def test_ports_are_free_and_below_the_ephemeral_range() -> None:
    ports = {process.free_port() for _ in range(20)}
    assert len(ports) > 10 and all(10000 <= port < 32768 for port in ports)
