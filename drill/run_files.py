"""What a drill reads of files beside its own outcomes: the stop that somebody asked for, the recording's routes."""

from __future__ import annotations

from pathlib import Path

from bus.logfile import LogReader
from bus.ports import Bus
from bus.topic import TopicReader
from replay.hearing import FleetControl
from wire import codec, topics
from wire.codec import RecordType
from wire.records import Action, Control, RouteTable


class StopAsked:
    """Hears `livefire stop` (another writer of the control topic); the reason, "" while there is none.

    `fleet`: where a stop of all runs is said, for a run that is not alone on its bus. Calls raise BusAway.
    """

    def __init__(self, bus: Bus, run_id: str, fleet: FleetControl | None = None) -> None:
        self._reader, self._run_id, self._fleet = TopicReader(bus, topics.CONTROL), run_id, fleet
        self._said = ""

    def __call__(self) -> str:
        if self._fleet is not None and (stop := self._fleet.stop_of(self._run_id)) is not None:
            self._said = _said(stop)
        for message, batch in self._reader.batches():
            if batch.header.type is not RecordType.CONTROL or message.partition == "conductor":
                continue
            for control in batch.records:
                if control.action is Action.STOP and control.run_id in (self._run_id, "*"):
                    self._said = _said(control)
        return self._said


def _said(stop: Control) -> str:
    return f"stop was asked for{': ' + stop.reason if stop.reason else ''}"


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
