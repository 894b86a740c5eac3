"""Values that the system hands out: what an answer gave live stands in the place of what was recorded.

Flows say where such a value comes from (a place in the answers of one route) and where it goes back (a place in
the requests of another). For each (session, copy, lap) a table keeps recorded value -> live value, for
each sink apart, so that an order 7 is not taken for a page 7.

A recorded list of values and the live one match by position; a recorded value that the live list holds itself
is data that was there before, and stands for itself; a live list that is shorter is used round and round.
A value that no answer of the session handed out is kept as it was recorded.

Memory: one entry a value handed out, of the sessions heard of lately (at most MAX_TABLES).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple

from replay.schedule import Item
from wire import places
from wire.records import Flow, Place

MAX_TABLES: Final = 100_000
#: Not taken for values: in a path they would name another resource than one (`DELETE /users/`, `/users/..`).
_NO_VALUES: Final = frozenset(("", ".", ".."))

#: (session, copy, lap)
Who = tuple[bytes, int, int]
_Key = tuple[int, str]  # sink, recorded value


class Binding(NamedTuple):
    """What the flows say of one recorded exchange."""

    sources: tuple[tuple[Place, tuple[int, ...], tuple[str, ...]], ...]  # place, sinks, recorded values
    sinks: tuple[tuple[int, Place, tuple[str, ...]], ...]  # sink, place, recorded values


class _Value:
    __slots__ = ("failed", "live", "producer")

    def __init__(self, producer: int) -> None:
        self.producer = producer  # serial of the shot that will hand it out
        self.live: str | None = None
        self.failed = False


class Need(NamedTuple):
    """What a shot needs before it can be rendered."""

    wait_for: int  # serial of the producer; 0 = nothing
    failed: bool  # its value will never be handed out


NOTHING: Final = Need(0, False)
_UNBOUND: Final = Binding((), ())


class Identities:
    def __init__(self, flows: Sequence[Flow], max_tables: int = MAX_TABLES) -> None:
        sinks: dict[tuple[str, Place], int] = {}
        self._sinks: dict[str, list[tuple[int, Place]]] = {}
        sources: dict[str, dict[Place, list[int]]] = {}
        for flow in flows:
            number = sinks.setdefault((flow.sink_route, flow.sink), len(sinks))
            by_route = self._sinks.setdefault(flow.sink_route, [])
            if (number, flow.sink) not in by_route:
                by_route.append((number, flow.sink))
            wanted = sources.setdefault(flow.source_route, {}).setdefault(flow.source, [])
            if number not in wanted:
                wanted.append(number)
        self._sources = {
            route: [(place, tuple(numbers)) for place, numbers in found.items()] for route, found in sources.items()
        }
        self._tables: OrderedDict[Who, dict[_Key, _Value]] = OrderedDict()
        self._max_tables = max_tables
        self.any = bool(flows)
        self.forgotten = 0  # tables dropped because there were too many

    def binding(self, item: Item) -> Binding:
        """What an exchange hands out and takes, read from the recording once."""
        found: Binding | None = item.binding
        if found is None:
            found = item.binding = self._bind(item)
        return found

    def _bind(self, item: Item) -> Binding:
        stamped = item.stamped
        sources = self._sources.get(stamped.route)
        sinks = self._sinks.get(stamped.route)
        if not sources and not sinks:
            return _UNBOUND
        handed = []
        for source, numbers in sources or ():
            values = places.read_response(source, stamped.baseline.head, stamped.baseline.body)
            if values:
                handed.append((source, numbers, tuple(values)))
        taken = []
        for number, place in sinks or ():
            values = places.read_request(place, stamped.request.head, stamped.request.body)
            if values:
                taken.append((number, place, tuple(values)))
        return Binding(tuple(handed), tuple(taken)) if handed or taken else _UNBOUND

    def need(self, who: Who, item: Item, serial: int) -> Need:
        """Whether all values that shot `serial` sends back are there yet. It waits for earlier shots alone: what itself
        or a later one hands out anew (a rolling cookie) it had from elsewhere when it was recorded."""
        sinks = self.binding(item).sinks
        table = self._tables.get(who) if sinks else None
        if not table:
            return NOTHING
        wait_for = 0
        for number, _, values in sinks:
            for text in values:
                value = table.get((number, text))
                if value is None or value.live is not None or value.producer >= serial:
                    continue
                if value.failed:
                    return Need(0, True)
                wait_for = max(wait_for, value.producer)
        return Need(wait_for, False)

    def produce(self, who: Who, item: Item, serial: int) -> bool:
        """Shot `serial` is going to hand out the values of this exchange. True when there are any."""
        sources = self.binding(item).sources
        if not sources:
            return False
        table = self._table(who)
        for _, numbers, values in sources:
            for text in values:
                for number in numbers:
                    known = table.get((number, text))
                    if known is None:
                        table[number, text] = _Value(serial)
                    elif known.failed:
                        known.failed, known.producer = False, serial
        return True

    def answered(self, who: Who, item: Item, serial: int, head: bytes, body: bytes) -> None:
        """The live answer of a producer."""
        table = self._table(who)
        for source, numbers, recorded in self.binding(item).sources:
            live = places.read_response(source, head, body)
            itself = set(live)
            for index, text in enumerate(recorded):
                new = text if text in itself else live[index % len(live)] if live else None
                if new in _NO_VALUES:
                    new = None
                for number in numbers:
                    value = table.setdefault((number, text), _Value(serial))
                    if new is not None:
                        value.live, value.failed = new, False
                    elif value.producer == serial and value.live is None:
                        value.failed = True

    def failed(self, who: Who, item: Item, serial: int) -> None:
        """A producer got no answer, or was never sent."""
        table = self._table(who)
        for _, numbers, recorded in self.binding(item).sources:
            for text in recorded:
                for number in numbers:
                    value = table.setdefault((number, text), _Value(serial))
                    if value.producer == serial and value.live is None:
                        value.failed = True

    def substitute(self, who: Who, item: Item, head: bytes, body: bytes) -> tuple[bytes, bytes] | None:
        """The request with live values, or None when it stays as it was recorded."""
        sinks = self.binding(item).sinks
        table = self._tables.get(who) if sinks else None
        if not table:
            return None
        changed = False
        for number, place, values in sinks:
            live = {
                text: value.live
                for text in values
                if (value := table.get((number, text))) is not None and value.live not in (None, text)
            }
            if live:
                head, body = places.substitute(head, body, place, live.get)
                changed = True
        return (head, body) if changed else None

    def _table(self, who: Who) -> dict[_Key, _Value]:
        table = self._tables.get(who)
        if table is None:
            if len(self._tables) >= self._max_tables:
                self._tables.popitem(last=False)
                self.forgotten += 1
            table = self._tables[who] = {}
        else:
            self._tables.move_to_end(who)
        return table
