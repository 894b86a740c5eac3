"""What cleanse does to exchanges, without reading or writing anything.

Three passes: `sift` (which stay), then in time order `learn` (routes are known by then; flows), then `stamp`.
"""

from __future__ import annotations

from collections.abc import Sequence

from cleanse.flows import FlowLearner
from cleanse.routes import RouteLearner
from cleanse.rules.unreplayable import started_ns
from cleanse.sessions import Sessions
from cleanse.settings import CleanseSettings
from cleanse.sieve import LEDGER, Sieve, lose
from cleanse.stamp import stamped
from wire import head as heads
from wire.account import Account
from wire.records import Exchange, Flows, RouteTable, Stamped
from wire.routes import RouteMatcher

MAX_SERVERS = 10_000


class Pipeline:
    """One recording's way. Counts on `account`, ledger "messages": seen = emitted + drops + in flight."""

    def __init__(
        self,
        settings: CleanseSettings,
        recording_id: str,
        until_ns: int | None = None,
        from_ns: int | None = None,
    ) -> None:
        """Raises ConfigError for rules that cannot be meant."""
        self.account = Account()
        self.first_ns = 0  # when the first exchange that stays began
        self.sessions = Sessions()
        self.servers: set[str] = set()  # of what stays; a replay is not fired at them by accident
        self._settings = settings
        self._recording_id = recording_id
        self._sieve = Sieve(settings, from_ns, until_ns)
        self._ledger = self.account.ledger(LEDGER)
        self._learner = RouteLearner(settings.routes, settings.rename)
        self._flow_learner = FlowLearner(settings.min_support, settings.max_baseline_bytes)
        self._table: RouteTable | None = None
        self._matcher: RouteMatcher | None = None

    # -- first pass, in any order

    def sift(self, batch: Sequence[Exchange]) -> list[Exchange]:
        """Those of the batch that stay."""
        kept = self._sieve.keep(batch, self._ledger)
        for exchange in kept:
            start = started_ns(exchange)
            if len(self.servers) < MAX_SERVERS:
                self.servers.add(exchange.server)
            if not self.first_ns or start < self.first_ns:
                self.first_ns = start
            self._note_route(exchange)
        return kept

    def lose(self, count: int) -> None:
        """Count the exchanges of a batch that could not even be read."""
        lose(self.account, count)

    def _note_route(self, exchange: Exchange) -> None:
        # What was never there teaches nothing: scanners ask for thousands of paths.
        if exchange.response is not None and exchange.response.status == 404:
            return
        method = heads.method_of(exchange.request.head).decode("ascii", "replace")
        self._learner.add(method, heads.path_of(heads.target_of(exchange.request.head)))

    # -- second pass, in time order

    def learn(self, exchange: Exchange) -> None:
        """Values of one exchange, after all exchanges were sifted."""
        if self._settings.learn_flows:
            session = exchange.session_id or exchange.connection_id
            self._flow_learner.add(exchange, session, self.route_of(exchange), started_ns(exchange))

    @property
    def routes(self) -> RouteTable:
        if self._table is None:
            self._table = self._learner.table(self._recording_id)
        return self._table

    @property
    def flows(self) -> Flows:
        return self._flow_learner.flows(self._recording_id)

    def route_of(self, exchange: Exchange) -> str:
        if self._matcher is None:
            self._matcher = RouteMatcher(self.routes)
        head = exchange.request.head
        return self._matcher.name(heads.method_of(head), heads.target_of(head))

    # -- third pass, in time order

    def stamp(self, exchange: Exchange) -> Stamped:
        session = exchange.session_id or exchange.connection_id
        start, index = self.sessions.next(session, started_ns(exchange) - self.first_ns)
        self._ledger.in_flight -= 1
        self._ledger.emitted += 1
        limit = self._settings.max_baseline_bytes
        return stamped(exchange, self.route_of(exchange), self.first_ns, start, index, limit)
