"""Which bus an address names: a folder, or a Kafka cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from bus.logfile import FileBus
from bus.ports import Bus, BusError, is_partition

DEFAULT_PREFIX: Final = "livefire"
_SCHEME: Final = "kafka://"
_SERVER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})")


class KafkaSecurity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a client is known to the brokers, and they to it. Nothing given: plain text, nobody asks who it is."""

    tls: bool = False  # also on when `ca` or `cert` is given
    ca: str = ""  # PEM file of who signed the brokers' certificates; "" = the system's
    cert: str = ""  # PEM file of the client's certificate
    key: str = ""  # PEM file of its key
    mechanism: str = ""  # PLAIN, SCRAM-SHA-256, SCRAM-SHA-512; "" = no SASL
    user: str = ""
    password_file: str = ""
    password: str = ""  # from the environment; never from a command line, and better not from a file of settings


class KafkaAddress(NamedTuple):
    """`kafka://host:port[,host:port...][/prefix]`."""

    servers: tuple[str, ...]
    prefix: str

    def __str__(self) -> str:
        return f"{_SCHEME}{','.join(self.servers)}/{self.prefix}"


def is_kafka(address: str) -> bool:
    """Whether the address means a Kafka cluster rather than a folder, if perhaps not well-formed."""
    return address.startswith("kafka:")


def parse_kafka(address: str) -> KafkaAddress:
    """The parts of a Kafka address. Raises BusError with what is wrong in it."""
    if not address.startswith(_SCHEME):
        raise BusError(f"{address}: not a Kafka address (kafka://host:port[,host:port...][/prefix])")
    if "@" in address:
        raise BusError("kafka://...@...: user and password belong into the settings (kafka_security), not the address")
    servers, _, prefix = address[len(_SCHEME) :].partition("/")
    named = tuple(server.strip() for server in servers.split(","))
    for server in named:
        match = _SERVER.fullmatch(server)
        if match is None or not 0 < int(match[2]) < 65536:
            raise BusError(f"{address}: {server!r} is not host:port (kafka://host:port[,host:port...][/prefix])")
    prefix = prefix.rstrip("/") or DEFAULT_PREFIX
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", prefix):
        raise BusError(f"{address}: {prefix!r} cannot begin a topic's name: letters, digits and _ . -")
    return KafkaAddress(named, prefix)


def not_a_bus(address: str) -> BusError:
    return BusError(f"{address}: a bus is a folder or kafka://host:port[,host:port...][/prefix]")


def folder_of(address: str) -> Path:
    """Raises BusError for the home of nobody."""
    try:
        return Path(address).expanduser()
    except RuntimeError:
        raise BusError(f"{address}: there is no user of that name") from None


def open_bus(address: str, scope: str, security: KafkaSecurity | None = None) -> Bus:
    """The bus of one owner's data: a run's id, a recording's name, `fleet`. Raises BusError for a bad address.

    On files that is a folder of the address. Whether a cluster answers is known at the first use (BusAway).
    """
    if not is_partition(scope):
        raise BusError(f"{scope!r} is no name of a run or recording: letters, digits and _ . : -")
    if is_kafka(address):
        try:
            from bus.kafka import KafkaBus
        except ImportError as error:
            raise BusError(f"{address}: {error.name} is not installed: pip install 'livefire[kafka]'") from None
        return KafkaBus(parse_kafka(address), scope, security or KafkaSecurity())
    if "://" in address:
        raise not_a_bus(address)
    return FileBus(folder_of(address) / scope)
