"""What was learned of a recording, as a file of its own: routes and flows. Reviewed, kept, used again.

A clean recording holds the same records before its first exchange, so it can be given in the place of one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from bus.logfile import LogReader, LogWriter
from bus.ports import BusError
from wire import codec, topics
from wire.codec import RecordType
from wire.records import Flows, Manifest, RouteTable

TOPIC: Final = "learned"
WRITER: Final = "livefire learn"


class Learned(msgspec.Struct, frozen=True):
    routes: RouteTable
    flows: Flows


def load(path: Path) -> Learned:
    """Of a file that `livefire learn` wrote, or of a clean recording. Raises BusError."""
    routes: RouteTable | None = None
    flows: Flows | None = None
    with LogReader(path) as reader:
        while messages := reader.read(1):
            try:
                header = codec.decode_header(messages[0].data)
                if header.type is RecordType.STAMPED or header.type is RecordType.EXCHANGE:
                    break
                if header.type is RecordType.ROUTE_TABLE:
                    (routes,) = codec.decode(messages[0].data, header).records
                elif header.type is RecordType.FLOWS:
                    (flows,) = codec.decode(messages[0].data, header).records
            except (codec.CodecError, ValueError) as error:
                raise BusError(f"{path}: what it holds of routes and flows cannot be read: {error}") from None
        manifest = reader.manifest
    if routes is None or flows is None:
        raw = manifest is not None and manifest.topic == topics.RAW
        hint = f"; learn it from this recording: livefire learn {path} --to learned.lf" if raw else ""
        raise BusError(f"{path}: holds no routes and flows that were learned{hint}")
    return Learned(routes, flows)


def save(path: Path, learned: Learned, manifest: Manifest) -> None:
    """Write it; `manifest` says where it is from. Raises BusError, also where there is a file already."""
    if path.exists():
        raise BusError(f"{path}: exists already; remove it, or write to another file")
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with LogWriter(part, msgspec.structs.replace(manifest, topic=TOPIC, partition="0", sorted=True)) as writer:
        writer.write_records((learned.routes,))
        writer.write_records((learned.flows,))
        writer.end(sorted=True)
    os.replace(part, path)
