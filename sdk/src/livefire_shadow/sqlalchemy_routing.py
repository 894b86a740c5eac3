"""SQLAlchemy: a separate engine for stress, chosen by context, and a guard on every engine in the process.

    routing = Routing([Store("orders", production=create_engine(...), shadow=create_engine(...))])
    Session = routing.sessionmaker()

The routing alone is a convention, which a forgotten `production.begin()` breaks. The guard therefore
listens on the `Engine`, `Dialect` and `Pool` *classes*: an engine that nobody registered is refused
under stress too. It works at the cursor, so `text()`, `exec_driver_sql` and bulk inserts are covered
(`schema_translate_map` ignores the first two). What does not go through SQLAlchemy is out of its reach: the
run column and a count by SQL show that.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry, Pool

from livefire_shadow.audit import AUDIT, Audit
from livefire_shadow.context import Stress, current, is_setup, require_unset_threads
from livefire_shadow.errors import IsolationViolation
from livefire_shadow.place import nearest_place
from livefire_shadow.statement import head_of, is_write

_DIALECT = "livefire_shadow_dialect"
_CLASSES: tuple[tuple[Any, str, str], ...] = (
    (Engine, "do_connect", "_on_do_connect"),
    (Pool, "checkout", "_on_checkout"),
    (Engine, "before_cursor_execute", "_on_statement"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Store:
    """A production engine and its shadow: another database, with another credential."""

    name: str
    production: Engine
    shadow: Engine


@dataclass(frozen=True, slots=True)
class _Side:
    store: Store
    is_shadow: bool


class Routing:
    """The stores of this process, and the guard over all engines. Make one a process, at start-up."""

    def __init__(self, stores: Iterable[Store], *, audit: Audit = AUDIT) -> None:
        """Installs the guard. Raises ValueError when names repeat, or a shadow is its production's database."""
        require_unset_threads()
        self._audit = audit
        self._stores: dict[str, Store] = {}
        # Keyed by dialect: an engine has its own, and `execution_options()` copies of the engine share it.
        self._sides: dict[Dialect, _Side] = {}
        for store in stores:
            if store.name in self._stores:
                raise ValueError(f"store {store.name!r} comes twice")
            if _database(store.production) == _database(store.shadow):
                raise ValueError(f"store {store.name!r}: the shadow is the production database, {_url(store.shadow)}")
            for engine, is_shadow in ((store.production, False), (store.shadow, True)):
                if engine.dialect in self._sides:
                    raise ValueError(f"store {store.name!r}: engine {_url(engine)} is already in use")
                self._sides[engine.dialect] = _Side(store, is_shadow)
            self._stores[store.name] = store
        self.install()

    def install(self) -> None:
        """Puts the guard on the SQLAlchemy classes, for engines made before and after."""
        for target, name, method in _CLASSES:
            if not event.contains(target, name, getattr(self, method)):
                event.listen(target, name, getattr(self, method))

    def remove(self) -> None:
        """Takes the guard away: for tests, which show what happens without it."""
        for target, name, method in _CLASSES:
            if event.contains(target, name, getattr(self, method)):
                event.remove(target, name, getattr(self, method))

    def engine(self, name: str) -> Engine:
        """The engine of store `name` for the work at hand. Raises LostContext, KeyError for an unknown name."""
        store = self._stores[name]
        return store.shadow if isinstance(current(), Stress) else store.production

    def bind_for(self, bound: Engine | Connection) -> Engine | Connection:
        """What a session bound to `bound` uses now: under stress, the shadow of a production engine.

        A Connection is left as it is, for the guard to judge. Raises LostContext, and
        IsolationViolation under stress for an engine that is in no store.
        """
        stress = isinstance(current(), Stress)
        if not stress or isinstance(bound, Connection):
            return bound
        side = self._sides.get(bound.dialect)
        if side is None:
            raise self._violation("unregistered", _url(bound), "SESSION")
        return side.store.shadow

    def session_class(self) -> type[Session]:
        """A `Session` that chooses its engine by context, for `AsyncSession(sync_session_class=...)` too."""
        return type("RoutedSession", (_RoutedSession,), {"_routing": self})

    def sessionmaker(self, bind: Engine | None = None, **options: Any) -> "sessionmaker[Session]":
        """A `sessionmaker` of routed sessions; `bind` defaults to the first store's production engine."""
        if bind is None and "binds" not in options:
            bind = next(iter(self._stores.values())).production
        return sessionmaker(bind, class_=self.session_class(), **options)

    def _on_do_connect(self, dialect: Dialect, record: ConnectionPoolEntry, arguments: Any, keywords: Any) -> None:
        record.info[_DIALECT] = dialect
        self._check(dialect, dialect.name, "CONNECT")

    def _on_checkout(self, connection: Any, record: ConnectionPoolEntry, proxy: Any) -> None:
        # A connection made before the guard was installed has no dialect noted: under stress it is
        # refused like any other that nobody registered.
        self._check(record.info.get(_DIALECT), "unknown", "CHECKOUT")

    def _on_statement(
        self, connection: Connection, cursor: DBAPICursor, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        head = head_of(statement)
        side = self._check(connection.dialect, _url(connection.engine), head)
        if side is not None and side.is_shadow:
            if is_setup():
                self._audit.setup_statement()
                return
            self._audit.shadow_statement(side.store.name, is_write(head))
        elif is_write(head):
            self._audit.production_write()

    def _check(self, dialect: Dialect | None, fallback: str, head: str) -> _Side | None:
        stress = isinstance(current(), Stress)
        side = None if dialect is None else self._sides.get(dialect)
        if side is None:
            if stress:
                raise self._violation("unregistered", fallback, head)
        elif stress and not side.is_shadow:
            raise self._violation("production_under_stress", _url(side.store.production), head)
        elif side.is_shadow and not stress:
            raise self._violation("shadow_under_production", _url(side.store.shadow), head)
        return side

    def _violation(self, kind: str, store: str, head: str) -> IsolationViolation:
        place = nearest_place()
        self._audit.violation(kind, place, store, head)
        return IsolationViolation(f"{place}: {kind.replace('_', ' ')}: {head} on {store}")


class _RoutedSession(Session):
    _routing: Routing
    _pinned: bool | None = None

    def get_bind(self, *args: Any, **options: Any) -> Engine | Connection:
        stress = isinstance(current(), Stress)
        bound = self._routing.bind_for(super().get_bind(*args, **options))
        # Objects loaded from one side must not be flushed to the other: a session that was not
        # closed between two requests belongs to the first.
        if self._pinned is None:
            self._pinned = stress
        elif self._pinned != stress:
            raise self._routing._violation("session_reused", _url(bound.engine), "SESSION")
        return bound

    def close(self) -> None:
        super().close()
        self._pinned = None

    def reset(self) -> None:
        super().reset()
        self._pinned = None


def _url(engine: Engine) -> str:
    # Query parameters may hold passwords of their own.
    return engine.url.set(query={}).render_as_string(hide_password=True)


_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433, "oracle": 1521}
_THIS_HOST = frozenset(("localhost", "127.0.0.1", "::1"))


def _database(engine: Engine) -> tuple[object, ...]:
    """The same for the same database, however it is written."""
    url = engine.url
    backend, name = url.get_backend_name(), url.database or ""
    if backend == "sqlite":
        if not name or ":memory:" in name or url.query.get("mode") == "memory":
            return (id(engine),)
        if name.startswith("file:"):
            name = unquote(name.removeprefix("file:").removeprefix("//localhost").partition("?")[0])
        return ("sqlite", os.path.realpath(name))
    backend = "mysql" if backend == "mariadb" else backend
    host = str(url.host or url.query.get("host") or "localhost").lower()
    port = str(url.port or url.query.get("port") or _PORTS.get(backend, ""))
    return (backend, "localhost" if host in _THIS_HOST else host, port, name, url.query.get("unix_socket"))
