"""A Kafka broker of one node on loopback: broker and controller in one Java machine."""

from __future__ import annotations

import base64
import shutil
import socket
import struct
import subprocess
import uuid
from collections.abc import Mapping

from servers.jars import fetched
from servers.java import java_home
from servers.process import Command, Died, Server, free_port

#: One node, quick to start, small; what a message may weigh is what the bus asks of its topics.
_BASE: dict[str, object] = {
    "process.roles": "broker,controller",
    "node.id": 1,
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "offsets.topic.replication.factor": 1,
    "offsets.topic.num.partitions": 1,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
    "transaction.state.log.num.partitions": 1,
    "share.coordinator.state.topic.replication.factor": 1,
    "share.coordinator.state.topic.min.isr": 1,
    "group.initial.rebalance.delay.ms": 0,
    "group.min.session.timeout.ms": 1000,
    "auto.create.topics.enable": "false",
    "num.network.threads": 2,
    "num.io.threads": 2,
    "background.threads": 2,
    "log.cleaner.dedupe.buffer.size": 8 << 20,
    "message.max.bytes": 8 << 20,
    "replica.fetch.max.bytes": 8 << 20,
    "broker.heartbeat.interval.ms": 500,
    "broker.session.timeout.ms": 3000,
}
_LOG = """status=warn
appender.f.type=File
appender.f.name=f
appender.f.fileName=%s
appender.f.layout.type=PatternLayout
appender.f.layout.pattern=[%%d] %%p %%c{1} %%m%%n
rootLogger.level=info
rootLogger.appenderRef.f.ref=f
"""
# Serial collector and first compiler only: starts sooner, and smaller.
_JVM = ("-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError")


def answers(port: int, timeout_s: float = 1.0) -> bool:
    """Whether a Metadata reply (version 1) lists a broker: an open port alone is too early."""
    body = struct.pack(">hhih", 3, 1, 1, 5) + b"ready" + struct.pack(">i", 0)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout_s) as sock, sock.makefile("rb") as reply:
            sock.sendall(struct.pack(">i", len(body)) + body)
            size = struct.unpack(">i", reply.read(4))[0]
            head = reply.read(size)[:8]  # correlation, count of brokers
            return bool(struct.unpack(">ii", head)[1] >= 1)
    except (OSError, struct.error):
        return False


class Kafka(Server):
    """`props`: broker properties on top of ours. `listeners`: further listeners, {name: security protocol}, as
    {"SAFE": "SASL_PLAINTEXT"}, each on a port of its own in `addresses`; what it needs (JAAS, key stores) are `props`
    under `listener.name.safe.`. `scram`: users and their passwords for SCRAM-SHA-256, kept by the broker itself.

    `address` is "127.0.0.1:port", without TLS and without a password. Raises Missing.
    """

    name = "kafka"

    def __init__(
        self,
        props: Mapping[str, object] | None = None,
        *,
        listeners: Mapping[str, str] | None = None,
        scram: Mapping[str, str] | None = None,
        heap: str = "512m",
    ) -> None:
        self._java = java_home(17, "Kafka 4", "KAFKA_JAVA_HOME") / "bin/java"
        self._jars = fetched("kafka")
        super().__init__()
        protocols = {"PLAINTEXT": "PLAINTEXT", **(listeners or {})}
        self._port, self._controller = free_port(), free_port()
        ports = {name: self._port if name == "PLAINTEXT" else free_port() for name in protocols}
        self.addresses = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        self.address = self.addresses["PLAINTEXT"]
        told = ",".join(f"{name}://{address}" for name, address in self.addresses.items())
        self._scram, self._heap = dict(scram or {}), heap
        self._props = {
            **_BASE,
            "listeners": f"{told},CONTROLLER://127.0.0.1:{self._controller}",
            "advertised.listeners": told,
            "listener.security.protocol.map": ",".join(f"{n}:{p}" for n, p in protocols.items())
            + ",CONTROLLER:PLAINTEXT",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller}",
            "log.dirs": self.folder / "data",
            **(props or {}),
        }

    def _main(self, name: str, *args: object) -> list[str]:
        options = (*_JVM, f"-Xmx{self._heap}", "-Djava.awt.headless=true", "-Djava.net.preferIPv4Stack=true")
        log = f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}"
        return [str(self._java), *options, log, "-cp", f"{self._jars}/*", name, *map(str, args)]

    def _command(self) -> Command:
        config = self.folder / "server.properties"
        config.write_text("".join(f"{key}={value}\n" for key, value in self._props.items()))
        (self.folder / "log4j2.properties").write_text(_LOG % (self.folder / "server.log"))
        if not (self.folder / "data/meta.properties").exists():
            self._format(config)
        return Command(self._main("kafka.Kafka", config))

    def _format(self, config: object) -> None:
        cluster = "c" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]  # a first "-" would be an option
        users = [f"SCRAM-SHA-256=[name={user},password={word}]" for user, word in self._scram.items()]
        flags = [arg for user in users for arg in ("--add-scram", user)]
        done = subprocess.run(
            self._main("kafka.tools.StorageTool", "format", "-t", cluster, "-c", config, *flags),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Died(f"kafka's storage could not be formatted: {(done.stdout + done.stderr)[-2000:]}")

    def _ready(self) -> bool:
        return answers(self._port)

    def wipe(self) -> None:
        """Forgets all data; for a broker that is not running."""
        assert not self.running
        shutil.rmtree(self.folder / "data", ignore_errors=True)
