"""What a drill reads of files beside its own outcomes: the stop that somebody asked for, the recording's routes."""

from __future__ import annotations

from pathlib import Path

from bus.logfile import FileBus, LogReader
from bus.topic import TopicReader
from wire import codec, topics
from wire.codec import RecordType
from wire.records import Action, RouteTable


class StopAsked:
    """Hears `livefire stop` (another writer of the control topic); the reason, "" while there is none."""

    def __init__(self, bus: FileBus, run_id: str) -> None:
        self._reader, self._run_id = TopicReader(bus, topics.CONTROL), run_id
        self._said = ""

    def __call__(self) -> str:
        for message, batch in self._reader.batches():
            if batch.header.type is not RecordType.CONTROL or message.partition == "conductor":
                continue
            for control in batch.records:
                if control.action is Action.STOP and control.run_id in (self._run_id, "*"):
                    self._said = f"stop was asked for{': ' + control.reason if control.reason else ''}"
        return self._said


def route_table(recording: Path) -> RouteTable:
    """The routes that a clean recording names; none when it has no table."""
    with LogReader(recording) as reader:
        while messages := reader.read(1):
            header = codec.decode_header(messages[0].data)
            if header.type is RecordType.ROUTE_TABLE:
                table: RouteTable = codec.decode(messages[0].data, header).records[0]
                return table
            if header.type is RecordType.STAMPED:
                break
    return RouteTable("", ())
