"""A recording as the front door reads it: its manifest, its account, its records in time order."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bus.logfile import LogReader
from bus.parts import parts_of
from bus.ports import BusError
from livefire.tables import counted
from wire import codec
from wire.account import Account
from wire.codec import RecordType
from wire.records import End, Exchange, Manifest, Stamped

_KEPT_BATCHES = 64
_MASKED = {
    "header": ("header", "headers"),
    "cookie": ("cookie", "cookies"),
    "target": ("URL", "URLs"),
    "json": ("JSON body", "JSON bodies"),
    "form": ("form", "forms"),
    "multipart": ("multipart body", "multipart bodies"),
    "text": ("text", "texts"),
    "malformed_line": ("malformed line", "malformed lines"),
    "opaque": ("opaque body", "opaque bodies"),
    "undecodable": ("body that could not be decoded", "bodies that could not be decoded"),
    "gap": ("body with gaps", "bodies with gaps"),
}


class Place(msgspec.Struct, frozen=True, order=True, array_like=True):
    """Where one record is; sorts by time, then by the order in which it was written."""

    at_ns: int
    part: int
    offset: int
    index: int


class Recording:
    """Opens a raw or clean file, or a folder of the raw files of one recording. Raises BusError for anything else."""

    def __init__(self, path: Path) -> None:
        self.path = Path("stdin") if str(path) == "-" else path
        self.account = Account()
        self.end: End | None = None
        self.stopped_ns = 0  # until when its recorders looked; 0 = not known: cut off, or no live recording
        self.unreadable: list[str] = []  # messages that are whole and yet no batch of this version
        self._places: list[Place] = []
        self._cache: OrderedDict[tuple[int, int], codec.Batch] = OrderedDict()
        self._unfinished: list[str] = []
        if str(path) == "-":
            self._readers = [LogReader("stdin", stream=sys.stdin.buffer)]
        else:
            self._readers = [LogReader(part) for part in parts_of(path)]
        self._streamed: dict[int, bytes] | None = {} if str(path) == "-" else None
        manifests = [manifest for manifest in map(self._scan, range(len(self._readers))) if manifest is not None]
        if not manifests:
            empty = not any(reader.next_offset or reader.waiting_bytes for reader in self._readers)
            none = "is empty: no recording was begun in it" if empty else "holds no manifest: nothing whole is in it"
            raise BusError(f"{self.path}: {self.unreadable[0] if self.unreadable else none}")
        self.manifest = manifests[0]
        self.began_ns = min(manifest.created_ns for manifest in manifests)
        #: Of a ring of time: what had gone of it when its last segment began (segments, exchanges, bytes).
        self.removed: dict[str, int] = {}
        for manifest in {m.partition.partition(".")[0]: m for m in manifests}.values():
            for name, count in manifest.settings.get("removed", {}).items():
                self.removed[name] = self.removed.get(name, 0) + count
        self._places.sort()

    def _scan(self, part: int) -> Manifest | None:
        reader, account = self._readers[part], Account()
        manifest: Manifest | None = None
        self.end = None
        while messages := reader.read():
            for message in messages:
                try:
                    header = codec.decode_header(message.data)
                    account.add(header.increment)
                    if header.type is RecordType.MANIFEST:
                        manifest = manifest or codec.decode(message.data, header).records[0]
                    elif header.type is RecordType.END:
                        self.end = codec.decode(message.data, header).records[0]
                        self.stopped_ns = max(self.stopped_ns, self.end.stopped_ns)
                    elif header.type in (RecordType.EXCHANGE, RecordType.STAMPED):
                        batch = codec.decode(message.data, header)
                        self._places += [
                            Place(_time_of(record), part, message.offset, index)
                            for index, record in enumerate(batch.records)
                        ]
                        if self._streamed is not None:
                            self._streamed[message.offset] = message.data
                except codec.CodecError as error:
                    self.unreadable.append(f"{reader.path}: at byte {message.offset}: {error.detail}")
        self.account.merge(account)
        if self.end is None:
            self._unfinished.append(f"{reader.path}: has no end mark: still being written, or its writer was killed")
        return manifest

    @property
    def warnings(self) -> list[str]:
        """One line for each thing that is wrong with the file."""
        found = list(self.unreadable)
        for reader in self._readers:
            if reader.corrupt_frames:
                found.append(
                    f"{reader.path}: {reader.corrupt_frames} damaged places, "
                    f"{reader.corrupt_bytes} bytes skipped; all else was read"
                )
            if reader.waiting_bytes:
                found.append(
                    f"{reader.path}: the last {reader.waiting_bytes} bytes are no whole frame "
                    "(cut off, or still being written)"
                )
        return found + self._unfinished

    @property
    def count(self) -> int:
        return len(self._places)

    def exchanges(self) -> Iterator[Exchange]:
        """Exchanges of a raw recording, ordered by the first byte of the request."""
        for record in self._records():
            if isinstance(record, Exchange):
                yield record

    def stamped(self) -> Iterator[Stamped]:
        """Exchanges of a clean recording, in order."""
        for record in self._records():
            if isinstance(record, Stamped):
                yield record

    def _records(self) -> Iterator[Exchange | Stamped]:
        for place in self._places:
            yield self._batch(place.part, place.offset).records[place.index]

    def _batch(self, part: int, offset: int) -> codec.Batch:
        found = self._cache.get((part, offset))
        if found is not None:
            self._cache.move_to_end((part, offset))
            return found
        if self._streamed is not None:
            data = self._streamed[offset]
        else:
            self._readers[part].seek(offset)
            data = self._readers[part].read(1)[0].data
        batch = self._cache[part, offset] = codec.decode(data)
        if len(self._cache) > _KEPT_BATCHES:
            self._cache.popitem(last=False)
        return batch


def masked_line(account: Account) -> str:
    """'masked before writing: 130 headers, 21 JSON bodies'; "" when nothing was."""
    found = {name.partition(".")[2]: n for name, n in account.notes.items() if name.startswith("masked.")}
    order = {name: at for at, name in enumerate(_MASKED)}
    names = sorted(found, key=lambda name: (order.get(name, len(order)), name))
    parts = [counted(found[name], *_MASKED.get(name, (name, name))) for name in names if found[name]]
    return f"masked before writing: secrets in {', '.join(parts)}" if parts else ""


def _time_of(record: Exchange | Stamped) -> int:
    if isinstance(record, Stamped):
        return record.offset_ns
    return record.request_start_ns or record.response_start_ns
