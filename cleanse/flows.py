"""Learns flows: values that an answer hands out and that later requests of the same session send back.

A value counts for a flow only if the client cannot have known it otherwise:
- an answer handed it out before the request that sends it began, and the session had not sent it before:
  an echo hands out nothing, though another answer handed the value out first;
- other sessions are not handed the same value at the same place: a catalogue's ids, constants and
  quantities are the same for all, and stand for themselves when they are fired again.
Short values and plain numbers coincide by chance, so they must explain most of what is sent at a place.

Of several places that hand out the same values, those are kept that explain the most, earlier ones first.

Nothing here knows a name of any application. Memory is bounded: MAX_SESSIONS sessions, MAX_VALUES values each,
MAX_OWNED values a source; what is beyond is forgotten, oldest first.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from functools import lru_cache
from typing import Final

from mask.shapes import is_opaque
from mask.tokens import is_token
from wire import places
from wire.records import Exchange, Flow, Flows, Place

MAX_SESSIONS: Final = 20_000
MAX_VALUES: Final = 2_000
MAX_OWNED: Final = 4_096
MAX_PAIR_VALUES: Final = 2_048
MAX_SOURCES: Final = 2_000
MAX_COMBINATIONS: Final = 512
MAX_ALTERNATIVES: Final = 4  # places of one value that are remembered
MAX_VALUE_LENGTH: Final = 8_192
WEAK_EXAMPLES: Final = 3
WEAK_COVERAGE: Final = 0.6

_SHARED: Final = b""
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d|\d\d:\d\d")
_WORDS: Final = re.compile(r"[A-Za-z]+(?:[-_./:][A-Za-z]+)*\Z|[-+]?\d+[.,]\d*\Z")

_Source = int  # index of (route, place)


class _Session:
    __slots__ = ("handed", "pending", "sent")

    def __init__(self) -> None:
        self.handed: dict[str, list[_Source]] = {}
        self.sent: set[str] = set()
        self.pending: list[tuple[int, str, list[tuple[Place, str]]]] = []  # answers that are still under way


class FlowLearner:
    """Give it the exchanges in the order of their requests, each with its route."""

    def __init__(self, min_support: int = 2, max_body: int = 64 << 10) -> None:
        """`max_body`: so much is kept of a recorded answer's body; what stands behind it cannot be found when fired."""
        self._min_support, self._max_body = min_support, max_body
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()
        self._sources: dict[tuple[str, Place], _Source] = {}
        self._named: list[tuple[str, Place]] = []
        self._owners: list[OrderedDict[str, bytes]] = []  # of each source: value -> session, or _SHARED
        self._pairs: dict[tuple[_Source, str, Place], Counter[str]] = {}  # values that went from source to sink
        self._combinations: dict[tuple[str, Place], Counter[tuple[_Source, ...]]] = {}
        self._sent: Counter[tuple[str, Place]] = Counter()  # values at a sink, of any origin

    def add(self, exchange: Exchange, session_id: bytes, route: str, start_ns: int) -> None:
        session = self._session(session_id)
        self._hand_out(session, session_id, start_ns)
        request = exchange.request
        seen: set[tuple[Place, str]] = set()
        for found in places.values_of_request(request.head, request.body):
            if found not in seen and is_candidate(found[1]):
                seen.add(found)
                self._sink(session, route, *found)
        response = exchange.response
        if response is not None and response.status < 400:
            body = response.body[: self._max_body]
            values = [v for v in places.values_of_response(response.head, body) if is_candidate(v[1])]
            if values:
                session.pending.append((exchange.response_start_ns or start_ns, route, values))

    def _session(self, session_id: bytes) -> _Session:
        session = self._sessions.get(session_id)
        if session is None:
            session = self._sessions[session_id] = _Session()
            if len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
        else:
            self._sessions.move_to_end(session_id)
        return session

    def _hand_out(self, session: _Session, session_id: bytes, now_ns: int) -> None:
        """Answers that began before now are known to the client."""
        if not session.pending:
            return
        arrived = sorted((answer for answer in session.pending if answer[0] <= now_ns), key=lambda answer: answer[0])
        session.pending = [answer for answer in session.pending if answer[0] > now_ns]
        for _, route, values in arrived:
            for place, value in values:
                source = self._source(route, place)
                if source is None:
                    continue
                self._own(source, value, session_id)
                if value in session.sent:
                    continue  # an echo of what the client said
                sources = session.handed.get(value)
                if sources is None:
                    if len(session.handed) >= MAX_VALUES:
                        session.handed.pop(next(iter(session.handed)))
                    session.handed[value] = [source]
                elif source not in sources and len(sources) < MAX_ALTERNATIVES:
                    sources.append(source)

    def _source(self, route: str, place: Place) -> _Source | None:
        found = self._sources.get((route, place))
        if found is None:
            if len(self._named) >= MAX_SOURCES:
                return None
            found = self._sources[route, place] = len(self._named)
            self._named.append((route, place))
            self._owners.append(OrderedDict())
        return found

    def _own(self, source: _Source, value: str, session_id: bytes) -> None:
        owners = self._owners[source]
        owner = owners.setdefault(value, session_id)
        if owner not in (session_id, _SHARED):
            owners[value] = _SHARED
        if len(owners) > MAX_OWNED:
            owners.popitem(last=False)

    def _sink(self, session: _Session, route: str, place: Place, value: str) -> None:
        self._sent[route, place] += 1
        if len(session.sent) >= MAX_VALUES:
            session.sent.clear()
        session.sent.add(value)
        sources = session.handed.get(value)
        if sources is None:
            return
        combinations = self._combinations.setdefault((route, place), Counter())
        combination = tuple(sources)
        if combination in combinations or len(combinations) < MAX_COMBINATIONS:
            combinations[combination] += 1
        for source in sources:
            values = self._pairs.setdefault((source, route, place), Counter())
            if value in values or len(values) < MAX_PAIR_VALUES:
                values[value] += 1

    # -- what was learned

    def flows(self, recording_id: str) -> Flows:
        learned: list[Flow] = []
        for (route, place), combinations in self._combinations.items():
            if not places.is_text(place.name):
                continue
            accepted = {
                source: own
                for source in {source for combination in combinations for source in combination}
                if (own := self._own_values(source, route, place)) is not None
            }
            for source in _cover(combinations, accepted):
                support, examples = accepted[source]
                source_route, source_place = self._named[source]
                if places.is_text(source_place.name):
                    learned.append(Flow(source_route, source_place, route, place, support, examples))
        learned.sort(key=lambda f: (f.sink_route, f.sink.kind, f.sink.name, -f.support, f.source_route, f.source.name))
        return Flows(recording_id, tuple(learned))

    def _own_values(self, source: _Source, route: str, place: Place) -> tuple[int, int] | None:
        """(support, examples) of the values that only one session was handed; None where they prove nothing."""
        values = self._pairs.get((source, route, place))
        if not values:
            return None
        owners = self._owners[source]
        own = {value: count for value, count in values.items() if owners.get(value) != _SHARED}
        support, examples = sum(own.values()), len(own)
        if support < self._min_support or examples * 2 < len(values):
            return None
        if sum(is_weak(value) for value in own) * 2 > examples:
            if examples < WEAK_EXAMPLES or support < WEAK_COVERAGE * self._sent[route, place]:
                return None
        elif examples < 2 and not any(is_opaque(value) for value in own):
            return None
        return support, examples


@lru_cache(16_384)
def is_candidate(value: str) -> bool:
    """Whether a value can be one that a system hands out: no prose, words, dates, decimals."""
    n = len(value)
    if n == 0 or n > MAX_VALUE_LENGTH or not value.isprintable() or " " in value:
        return False
    if n < 6:
        return any(c.isdigit() for c in value) and not _WORDS.match(value)
    if _WORDS.match(value):
        return is_opaque(value) or (n >= 8 and is_token(value))
    return not _DATE.match(value)


def is_weak(value: str) -> bool:
    """Whether a value may well be met twice by chance."""
    return len(value) < 6 or (value.isdigit() and len(value) < 10)


def _cover(combinations: Counter[tuple[_Source, ...]], accepted: dict[_Source, tuple[int, int]]) -> list[_Source]:
    """The fewest sources that explain what was sent: each time the one that explains the most of what is left."""
    left = {tuple(s for s in combination if s in accepted): 0 for combination in combinations}
    for combination, count in combinations.items():
        left[tuple(s for s in combination if s in accepted)] += count
    left.pop((), None)
    total = sum(left.values())
    chosen: list[_Source] = []
    while left:
        explains: Counter[_Source] = Counter()
        first: Counter[_Source] = Counter()
        for combination, count in left.items():
            first[combination[0]] += count
            for source in combination:
                explains[source] += count
        best = max(explains, key=lambda source: (explains[source], first[source], -source))
        if chosen and explains[best] < max(2, 0.02 * total):
            break
        chosen.append(best)
        left = {combination: count for combination, count in left.items() if best not in combination}
    return chosen
