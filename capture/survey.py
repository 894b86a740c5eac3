"""What is in a segment that a recorder finds in its folder."""

from __future__ import annotations

from pathlib import Path

import msgspec

from bus.logfile import LogReader
from bus.ports import BusError
from wire import codec
from wire.records import End, Manifest


class Survey(msgspec.Struct, frozen=True):
    path: Path
    bytes: int
    touched_ns: int
    manifest: Manifest | None = None  # None: nothing whole is in it, or its first frame is damaged
    end: End | None = None
    exchanges: int = 0
    last_ns: int = 0
    empty: bool = True  # not a byte of it is anything


def survey(path: Path) -> Survey:
    """Raises BusError for a file that is none of this program's, or of a later version of it."""
    end: End | None = None
    count = last_ns = 0
    empty = True
    with LogReader(path) as reader:
        manifest = reader.manifest
        while messages := reader.read():
            empty = False
            for message in messages:
                try:
                    header = codec.decode_header(message.data)
                    last_ns = max(last_ns, header.last_ns)
                    if header.type is codec.RecordType.EXCHANGE:
                        count += header.count
                    elif header.type is codec.RecordType.END:
                        end = codec.decode(message.data, header).records[0]
                except codec.CodecError as error:
                    if error.reason == "future_version":
                        raise BusError(
                            f"{path}: at byte {message.offset}: {error.detail}: upgrade livefire, or write elsewhere"
                        ) from None
        stat = path.stat()
        return Survey(
            path, stat.st_size, stat.st_mtime_ns, manifest, end, count, last_ns, empty and not reader.corrupt_bytes
        )
