"""Whose data a bus holds: the runs or recordings that have partitions of a topic."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Protocol

from bus.address import KafkaSecurity, folder_of, is_kafka, not_a_bus, parse_kafka
from bus.logfile import FileBus
from bus.ports import BusError


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
    return FileScopes(folder_of(address))


class FileScopes:
    """The folders of a folder. Who asks once a second looks into each only until it has the topic: it is not lost."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._having: dict[str, set[tuple[str, int]]] = {}  # topic -> names and inodes of folders

    def of(self, topic: str) -> list[str]:
        try:
            entries = list(os.scandir(self._root)) if self._root.is_dir() else []
        except OSError as error:
            raise BusError(f"{self._root}: cannot be used: {os.strerror(error.errno or 0).lower()}") from None
        known, found = self._having.get(topic, set()), set()
        for entry in entries:
            with contextlib.suppress(BusError):  # lost+found, where the folder is a disk's own
                one = entry.name, entry.inode()
                if one in known or (entry.is_dir() and FileBus(entry.path).partitions(topic)):
                    found.add(one)
        self._having[topic] = found
        return sorted(name for name, _ in found)

    def close(self) -> None:
        pass
