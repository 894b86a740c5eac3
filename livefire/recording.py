"""A recording as the front door reads it: its manifest, its account, its records in time order."""

from __future__ import annotations

import heapq
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bus.doubts import doubts_of
from bus.logfile import LogReader
from bus.parts import parts_of
from bus.ports import BusError
from livefire.tables import counted
from wire import codec
from wire.account import Account
from wire.codec import RecordType
from wire.records import End, Exchange, Manifest, Stamped

_KEPT_BYTES = 16 << 20  # of batches that are decoded; one is kept however large it is
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
    """Where one batch is; sorts by the earliest time in it, then by the order in which it was written."""

    at_ns: int
    part: int
    offset: int


class Recording:
    """Opens a raw or clean file, or a folder of the raw files of one recording. Raises BusError for anything else."""

    def __init__(self, path: Path) -> None:
        self.path = Path("stdin") if str(path) == "-" else path
        self.account = Account()
        self.end: End | None = None
        self.stopped_ns = 0  # until when its recorders looked; 0 = not known: cut off, or no live recording
        self.unreadable: list[str] = []  # messages that are whole and yet no batch of this version
        self._places: list[Place] = []
        self._cache: OrderedDict[tuple[int, int], tuple[codec.Batch, int]] = OrderedDict()
        self._cached_bytes = 0
        self.count = 0  # records
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
                        self.count += len(batch.records)
                        if batch.records:
                            first = min(map(_time_of, batch.records))
                            self._places.append(Place(first, part, message.offset))
                        if self._streamed is not None:
                            self._streamed[message.offset] = message.data
                except codec.CodecError as error:
                    self.unreadable.append(f"{reader.path}: at byte {message.offset}: {error.detail}")
        self.account.merge(account)
        return manifest

    @property
    def warnings(self) -> list[str]:
        """One line for each thing that is wrong with the file."""
        return self.unreadable + doubts_of(self._readers)

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
        """All in the order of time. Of a batch whose time has come its order is held, 100 bytes a record, and not more:
        the records themselves are decoded again when they had to make room."""
        waiting = iter(self._places)
        coming = next(waiting, None)
        heap: list[tuple[int, int, int, int, Iterator[tuple[int, int]]]] = []
        while heap or coming is not None:
            while coming is not None and (not heap or coming.at_ns <= heap[0][0]):
                records = self._batch(coming.part, coming.offset).records
                order = iter(sorted((_time_of(record), index) for index, record in enumerate(records)))
                at_ns, index = next(order)
                heapq.heappush(heap, (at_ns, coming.part, coming.offset, index, order))
                coming = next(waiting, None)
            _, part, offset, index, order = heap[0]
            yield self._batch(part, offset).records[index]
            if (following := next(order, None)) is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (following[0], part, offset, following[1], order))

    def _batch(self, part: int, offset: int) -> codec.Batch:
        found = self._cache.get((part, offset))
        if found is not None:
            self._cache.move_to_end((part, offset))
            return found[0]
        if self._streamed is not None:
            data = self._streamed[offset]
        else:
            self._readers[part].seek(offset)
            data = self._readers[part].read(1)[0].data
        batch = codec.decode(data)
        weight = sum(map(_weight, batch.records))
        self._cache[part, offset] = batch, weight
        self._cached_bytes += weight
        while self._cached_bytes > _KEPT_BYTES and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1][1]
        return batch


def masked_line(account: Account) -> str:
    """'masked before writing: 130 headers, 21 JSON bodies'; "" when nothing was."""
    found = {name.partition(".")[2]: n for name, n in account.notes.items() if name.startswith("masked.")}
    order = {name: at for at, name in enumerate(_MASKED)}
    names = sorted(found, key=lambda name: (order.get(name, len(order)), name))
    parts = [counted(found[name], *_MASKED.get(name, (name, name))) for name in names if found[name]]
    return f"masked before writing: secrets in {', '.join(parts)}" if parts else ""


def _weight(record: Exchange | Stamped) -> int:
    """About how many bytes it takes in memory."""
    request = record.request
    answer = record.baseline if isinstance(record, Stamped) else record.response
    return 1000 + len(request.head) + len(request.body) + (len(answer.head) + len(answer.body) if answer else 0)


def _time_of(record: Exchange | Stamped) -> int:
    if isinstance(record, Stamped):
        return record.offset_ns
    return record.request_start_ns or record.response_start_ns
