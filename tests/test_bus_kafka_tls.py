"""A broker behind TLS and a password: what goes over it, and what is told of who comes with the wrong papers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_cleanse import NAME, Worker
from servers.fixtures import started
from servers.kafka import Kafka
from test_cleanse_app import exchange
from test_livefire_kibana import authority_of

from bus.address import KafkaSecurity, open_bus, parse_kafka
from bus.kafka_topics import Topics, Wanted
from bus.ports import Bus, BusAway, BusError
from replay.fetch import fetch
from replay.recording import Recording
from wire import codec, topics
from wire.records import End, Exchange, Manifest

PASSWORD = "seven-words"


class Safe:
    """A broker with a listener without TLS, and one that wants TLS and a password."""

    def __init__(self, server: Kafka, folder: Path) -> None:
        self.plain = f"kafka://{server.address}/safe"
        self.address = f"kafka://{server.addresses['SAFE']}/safe"
        self.ca, self.stranger = str(folder / "ours/authority.pem"), str(folder / "stranger/authority.pem")
        self.security = KafkaSecurity(ca=self.ca, mechanism="SCRAM-SHA-256", user="anna", password=PASSWORD)


@pytest.fixture(scope="module")
def safe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Safe]:
    folder = tmp_path_factory.mktemp("tls")
    for name in ("ours", "stranger"):
        (folder / name).mkdir()
        _, (certificate, key) = authority_of(folder / name)
    certificate, key = folder / "ours/certificate.pem", folder / "ours/key.pem"
    store = folder / "broker.pem"
    store.write_text(key.read_text() + certificate.read_text())
    props = {
        "listener.name.safe.ssl.keystore.type": "PEM",
        "listener.name.safe.ssl.keystore.location": store,
        "listener.name.safe.sasl.enabled.mechanisms": "SCRAM-SHA-256",
        "listener.name.safe.scram-sha-256.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
    }

    def make() -> Kafka:
        return Kafka(props, listeners={"SAFE": "SASL_SSL"}, scram={"anna": PASSWORD})

    with started(make) as server:  # type: ignore[arg-type]
        yield Safe(server, folder)  # type: ignore[arg-type]


def written(bus: Bus, exchanges: list[Exchange]) -> None:
    writer = bus.writer(topics.RAW, "a.0", Manifest(topics.RAW, "a.0", NAME, 5, "test", ("a",)))
    writer.write_records(exchanges)
    writer.end(End(NAME, "a.0", len(exchanges), 0, 0))


def test_an_exchange_goes_over_tls_and_through_a_cleanser(safe: Safe, tmp_path: Path) -> None:
    with Topics(parse_kafka(safe.address), safe.security) as made:
        assert not [finding for finding in made.create(Wanted(partitions=2)) if finding.problem]
    exchanges = [exchange(number) for number in range(20)]
    bus = open_bus(safe.address, NAME, safe.security)
    try:
        written(bus, exchanges)
        reader, read = bus.reader(topics.RAW, "a.0"), []
        while not reader.ended:
            read += [record for message in reader.read() for record in codec.decode(message.data).records]
        assert [record for record in read if isinstance(record, Exchange)] == exchanges
        (tmp_path / "password").write_text(f"{PASSWORD}\n")
        (tmp_path / "livefire.yaml").write_text(
            f"kafka_security: {{ca: {safe.ca}, mechanism: SCRAM-SHA-256, user: anna, password_file: password}}\n"
        )
        worker = Worker(tmp_path, safe.address, "c0").ready()
        try:
            fetched = fetch(bus, NAME, tmp_path / "fetched.lf", deadline_s=60)
            assert fetched is not None, worker.said()
            fired = {stamped.exchange_id for stamped in Recording(tmp_path / "fetched.lf").stamped()}
            assert fired == {one.exchange_id for one in exchanges}
            assert worker.end() == 0, worker.said()
        finally:
            worker.close()
    finally:
        bus.close()


def _in_one_line(address: str, security: KafkaSecurity, says: str) -> BusError:
    """What is told, as soon as it is `says`: a machine that is too busy for a first answer gives no verdict."""
    for _ in range(8):
        bus = open_bus(address, NAME, security)
        with pytest.raises(BusError) as error:
            bus.partitions(topics.RAW)
        bus.close()
        assert "\n" not in str(error.value) and PASSWORD not in str(error.value)
        if says in str(error.value):
            return error.value
        assert isinstance(error.value, BusAway), error.value
    raise AssertionError(f"{error.value}, not: {says}")


@pytest.mark.parametrize(
    ("plain", "change", "says"),
    [
        (False, "stranger", "the brokers' certificate is not trusted: unable to get local issuer certificate"),
        (False, "password", "the brokers refuse user or password"),
        (True, "", "this port does not speak TLS"),
    ],
)
def test_the_wrong_papers_are_one_line(safe: Safe, plain: bool, change: str, says: str) -> None:
    security = {
        "": safe.security,
        "stranger": KafkaSecurity(ca=safe.stranger, mechanism="SCRAM-SHA-256", user="anna", password=PASSWORD),
        "password": KafkaSecurity(ca=safe.ca, mechanism="SCRAM-SHA-256", user="anna", password="another"),
    }[change]
    error = _in_one_line(safe.plain if plain else safe.address, security, says)
    assert "kafka_security" in str(error) and not isinstance(error, BusAway)


def test_without_tls_at_a_port_that_wants_it(safe: Safe) -> None:
    """The brokers hang up and say nothing: that may be an end of theirs, so it stays a bus that is away."""
    assert isinstance(_in_one_line(safe.address, KafkaSecurity(), "does it want TLS"), BusAway)
