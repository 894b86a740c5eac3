"""Whose data a bus holds: the runs or recordings that have partitions of a topic."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from bus.address import KafkaSecurity, is_kafka, not_a_bus, parse_kafka
from bus.logfile import FileBus


class Scopes(Protocol):
    def of(self, topic: str) -> list[str]:
        """Owners with at least one partition of the topic, now, sorted. Raises BusAway, BusError."""

    def close(self) -> None: ...


def open_scopes(address: str, security: KafkaSecurity | None = None) -> Scopes:
    """Of a bus by its address. Raises BusError for a bad one."""
    if is_kafka(address):
        from bus.kafka_scopes import KafkaScopes

        return KafkaScopes(parse_kafka(address), security or KafkaSecurity())
    if "://" in address:
        raise not_a_bus(address)
    return FileScopes(Path(address).expanduser())


class FileScopes:
    """The folders of a folder. Who asks once a second looks into each only until it has the topic: it is not lost."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._having: dict[str, set[tuple[str, int]]] = {}  # topic -> names and inodes of folders

    def of(self, topic: str) -> list[str]:
        if not self._root.is_dir():
            return []
        known, found = self._having.get(topic, set()), set()
        with os.scandir(self._root) as entries:
            for entry in entries:
                one = entry.name, entry.inode()
                if one in known or (entry.is_dir() and FileBus(entry.path).partitions(topic)):
                    found.add(one)
        self._having[topic] = found
        return sorted(name for name, _ in found)

    def close(self) -> None:
        pass
