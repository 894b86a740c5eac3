"""Brings a run's books home: copies them from its bus into the run's folder, message by message, as they come.

So whatever reads a run (windows, outcomes, report, account) reads files, also when the bus has forgotten it or is
away. The bus stays what counts: what is `unknown` is settled there, and comes home like all else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bus.logfile import FileBus, LogReader, LogWriter
from bus.ports import Bus, Reader
from wire import codec, topics
from wire.codec import RecordType

BOOKS: Final = (topics.CLAIMS, topics.OUTCOMES, topics.BEATS)


class Home:
    """Raises BusHeld when another process brings the same run home, BusAway while the bus is not there."""

    def __init__(self, bus: Bus, folder: Path) -> None:
        self._bus, self._files = bus, FileBus(folder)
        self._readers: dict[tuple[str, str], Reader] = {}
        self._writers: dict[tuple[str, str], LogWriter] = {}
        self._had: dict[tuple[str, str], int] = {}  # messages that are home already, and come once more
        self._whole: set[tuple[str, str]] = set()

    def poll(self) -> int:
        """Copy what is there now; how many messages it was."""
        count = 0
        for topic in BOOKS:
            for partition in self._bus.partitions(topic):
                where = (topic, partition)
                if where in self._whole:
                    continue
                if where not in self._readers:
                    self._readers[where] = self._bus.reader(topic, partition)
                count += self._copy(where)
        return count

    def _copy(self, where: tuple[str, str]) -> int:
        count = 0
        reader = self._readers[where]
        while messages := reader.read():
            if where not in self._writers and not self._open(where):
                return count
            for message in messages:
                if _is_manifest(message.data):
                    continue  # the file has one already
                if self._had[where]:
                    self._had[where] -= 1
                    continue
                self._writers[where].write(message.data)
                count += 1
        if reader.ended and where in self._writers:
            self._writers.pop(where).close()
            self._done(where)
        return count

    def _open(self, where: tuple[str, str]) -> bool:
        """Open the file at its end. False when it is whole."""
        path = self._files.path(*where)
        if path.exists():
            with LogReader(path) as mine:
                while mine.read():
                    pass
                if mine.ended:
                    self._done(where)
                    return False
        manifest = self._readers[where].manifest
        if manifest is None:
            return False
        writer = self._files.writer(*where, manifest)
        assert isinstance(writer, LogWriter)
        self._writers[where] = writer
        with LogReader(path) as mine:
            self._had[where] = -1  # its manifest
            while messages := mine.read():
                self._had[where] += len(messages)
        return True

    def _done(self, where: tuple[str, str]) -> None:
        self._whole.add(where)
        self._readers[where].close()

    @property
    def whole(self) -> bool:
        """Whether all that is known of the run is home, with its end marks."""
        return bool(self._readers) and len(self._whole) == len(self._readers)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        for reader in self._readers.values():
            reader.close()
        self._writers.clear()


def _is_manifest(data: bytes) -> bool:
    try:
        return codec.decode_header(data).type is RecordType.MANIFEST
    except codec.CodecError:
        return False
