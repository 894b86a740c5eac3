"""Panes in ClickHouse, 18.16 or later: additive rows with their source range, roll-ups, views (docs/clickhouse.md).

What is atomic there is the insert of one block into one partition. So a call of `apply` is one such insert: panes, and
a row for each source range. A range that the table holds is left out; what it holds is read when the store is opened
and after each failure, when no earlier insert of the run is under way any more: a server lists an insert among its
processes before it takes the first row of it, so one whose client is gone is either listed, or in the table, or will
never be.
"""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from time import monotonic, sleep
from typing import Any, Final, Protocol

from analytics.clickhouse_rows import (
    COUNT_SUMS,
    NAMES,
    SKETCH_SUMS,
    columns,
    literal,
    pane_of,
    windows_of,
    within,
)
from analytics.clickhouse_schema import OLDEST, SPANS, Version, bring_up, version_of
from analytics.clickhouse_windows import fold, slots, windows
from analytics.source_ranges import SourceRanges
from analytics.store_address import StoreAddress
from analytics.store_port import StoreAway, StoreError
from analytics.windows import Window
from wire.records import Pane, SourceRange

FOLD_ROWS: Final = 100_000  # rows of panes that are read beside the roll-ups before they become part of them
_FOLD_MOST: Final = 200_000  # rows of panes in one fold: it has to be one block
_TOKENS: Final = (22, 2)  # since when an insert may bear a token
_GREETING_S: Final = 1.5  # after that it is asked whether the port speaks HTTP
_NATIVE: Final = "the native protocol's port is meant, by default 9000"
_SETTLE_S: Final = 10.0  # how long an earlier insert of the run is waited for
#: Codes of a server that cannot now, and may be able to later: timeouts, memory, disk, too many parts or queries.
_LATER: Final = frozenset({159, 164, 202, 209, 210, 236, 241, 242, 243, 252, 319, 394, 999, 1000})


class Refused(Exception):
    """The server's answer is an error: its code, and one line."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Executor(Protocol):
    """What runs a statement: the driver, or in tests an embedded server. One thread. Raises StoreAway, Refused."""

    shown: str  # the address, as it may be told
    database: str

    def execute(self, sql: str) -> list[tuple[Any, ...]]: ...

    def insert(self, sql: str, columns: Sequence[Sequence[Any]], query_id: str) -> None:
        """`sql` ends with VALUES; all rows go in one block."""

    def close(self) -> None: ...


class ClickHouseStore:
    """A run's panes in one database: writer and reader. The first call that only writers make makes it the writer."""

    def __init__(self, executor: Executor, run_id: str, *, fold_rows: int = FOLD_ROWS) -> None:
        """Raises StoreAway, and StoreError for a server that is too old, a missing database, a wrong password."""
        self.run_id, self._executor, self._fold_rows = run_id, executor, fold_rows
        self._run = literal(run_id)
        self._writer = ""  # our name, once we write
        self._held: SourceRanges | None = None  # None = to be read
        self._folded: dict[tuple[str, str], tuple[int, int]] = {}  # what of it is in the roll-ups
        self._loose = 0  # rows of panes that are not
        self._unsure: tuple[SourceRange, ...] = ()  # of a call that failed and may have come through
        self._start_s: int | None = None
        self._revision = 0  # of the last note
        self.version: Version = version_of(str(self._ask("SELECT version()")[0][0]))
        if self.version < OLDEST:
            have, need = (".".join(map(str, version)) for version in (self.version, OLDEST))
            raise StoreError(f"{executor.shown}: ClickHouse {have} is too old ({need} or later)")

    # ------------------------------------------------------------------------ talking

    def _ask(self, sql: str) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._told(lambda: self._executor.execute(sql))
        return rows

    def _told(self, call: Callable[[], Any]) -> Any:
        shown, database = self._executor.shown, self._executor.database
        try:
            return call()
        except StoreAway:
            self._held = None  # what became of it has to be found out
            raise
        except Refused as error:
            if error.code in _LATER:
                self._held = None
                raise StoreAway(f"{shown}: {error}") from None
            if error.code in (192, 193, 194, 516):
                raise StoreError(f"{shown}: user or password is refused") from None
            if error.code == 81:
                raise StoreError(f"{shown}: no database {database} there (CREATE DATABASE {database})") from None
            if error.code == 60:
                raise StoreError(f"{shown}: a table is missing; has anything been written there? ({error})") from None
            raise StoreError(f"{shown}: {error}") from None

    def _begin(self) -> None:
        """Become the run's writer, or find out again what the table holds."""
        if not self._writer:
            bring_up(self._ask, self.version, self._executor.shown)
            name = secrets.token_hex(8)
            self._note("writer", name)
            self._writer = name
        self._settle()
        held, self._folded = SourceRanges(), {}
        for row in self._ask(
            "SELECT source_topic, source_partition, source_first, source_end FROM panes "
            f"WHERE run = {self._run} AND kind = '' ORDER BY source_first"
        ):
            held.add([SourceRange(*row)])
        for topic, partition, first, end in self._ask(
            "SELECT source_topic, source_partition, min(source_first), max(source_end) FROM rollups "
            f"WHERE run = {self._run} AND span = 0 GROUP BY source_topic, source_partition"
        ):
            self._folded[topic, partition] = (first, end)
        start = self.note("start_s")
        self._start_s = int(start) if start else None
        self._loose = self._ask(
            f"SELECT count() FROM panes WHERE run = {self._run} AND kind != '' AND NOT {within(self._folded)}"
        )[0][0]
        self._held = held

    def _settle(self) -> None:
        """Wait until no insert of this run is under way, of whomever."""
        until = monotonic() + _SETTLE_S
        while self._ask(
            f"SELECT count() FROM system.processes WHERE startsWith(query_id, {literal(self._query_id())})"
        )[0][0]:
            if monotonic() > until:
                raise StoreAway(f"{self._executor.shown}: an earlier insert of run {self.run_id} is still under way")
            sleep(0.05)

    def _query_id(self, suffix: str = "") -> str:
        return f"livefire/{self.run_id}/{suffix}"

    def _check_writer(self) -> None:
        if self.note("writer") != self._writer:
            raise StoreError(f"{self._executor.shown}: another process is writing the panes of run {self.run_id}")

    # ------------------------------------------------------------------------ writing

    def open_for_writing(self) -> None:
        """Make what tables are missing, and become the run's writer: who was it before is refused from now on."""
        if self._held is None:
            self._begin()

    def apply(self, panes: Sequence[Pane], sources: Sequence[SourceRange]) -> bool:
        sources = tuple(source for source in sources if source.end > source.first)
        self.open_for_writing()
        assert self._held is not None
        self._check_writer()
        if sources and self._held.hold(sources, self._executor.shown):
            came_through = bool(sources) and sources == self._unsure
            self._unsure = ()
            return came_through
        self._fold_if_due()
        self._unsure = sources
        self._insert(panes, sources)
        self._held.add(sources)
        self._loose += len(panes)
        self._unsure = ()
        return True

    def _insert(self, panes: Sequence[Pane], sources: Sequence[SourceRange]) -> None:
        rows = columns(self.run_id, panes, sources)
        if not rows:
            return
        token = ""
        if self.version >= _TOKENS and sources:
            ranges = ";".join(f"{s.topic}/{s.partition}/{s.first}/{s.end}" for s in sources)
            token = f" SETTINGS insert_deduplication_token = {literal(f'{self._writer} {ranges}')}"
        sql = f"INSERT INTO panes ({', '.join(NAMES)}){token} VALUES"
        self._told(lambda: self._executor.insert(sql, rows, self._query_id(secrets.token_hex(8))))

    def resume(self, topic: str, partition: str) -> int:
        self.open_for_writing()
        assert self._held is not None
        return self._held.end_of(topic, partition)

    def set_note(self, name: str, value: str) -> None:
        self.open_for_writing()
        self._check_writer()
        if name == "start_s":
            if self._start_s is not None and str(self._start_s) != value and self._folded:
                raise StoreError(
                    f"{self._executor.shown}: run {self.run_id} began at {self._start_s}, its windows cannot move"
                )
            self._start_s = int(value)
        self._note(name, value)

    def _note(self, name: str, value: str) -> None:
        """The revision has a random part: two that write at once must not both be the last."""
        if not self._revision:
            self._revision = int(self._ask(f"SELECT max(revision) FROM notes WHERE run = {self._run}")[0][0])
        self._revision = revision = ((self._revision >> 16) + 1 << 16) + secrets.randbelow(1 << 16)
        row = f"{self._run}, {literal(name)}, {literal(value)}, {revision}"
        self._ask(f"INSERT INTO notes (run, name, value, revision) SELECT {row}")

    def _fold_if_due(self) -> None:
        """Make roll-ups of the ranges that lie without a hole behind those that are in them; all or nothing."""
        if self._loose < self._fold_rows or self._start_s is None:
            return
        regions: dict[tuple[str, str], tuple[int, int]] = {}
        rows = 0
        for topic, partition, first, end, count in self._ask(
            "SELECT source_topic, source_partition, source_first, source_end, count() FROM panes "
            f"WHERE run = {self._run} AND source_end > source_first AND NOT {within(self._folded)} "
            "GROUP BY source_topic, source_partition, source_first, source_end ORDER BY source_first"
        ):
            known = regions.get((topic, partition)) or self._folded.get((topic, partition))
            if known is None or first == known[1]:
                begin = regions.get((topic, partition), (first, end))[0]
                regions[topic, partition] = (begin, end)
                rows += count
            if rows >= _FOLD_MOST:
                break
        self._loose = 0 if rows < _FOLD_MOST else max(self._loose - rows, 0)
        if not regions:
            return
        self._ask(fold(self._run, self._start_s, within(regions)))
        for where, (first, end) in regions.items():
            self._folded[where] = (self._folded.get(where, (first, end))[0], end)

    # ------------------------------------------------------------------------ reading

    def note(self, name: str) -> str | None:
        return self._note_of(self._run, name)

    def _note_of(self, run: str, name: str) -> str | None:
        where = f"run = {run} AND name = {literal(name)}"
        found = self._ask(f"SELECT argMax(value, revision) FROM notes WHERE {where} GROUP BY name")
        return str(found[0][0]) if found else None

    def panes(self, run_id: str, first_s: int | None = None, end_s: int | None = None) -> list[Pane]:
        span = "" if first_s is None else f" AND second >= {first_s}"
        span += "" if end_s is None else f" AND second < {end_s}"
        rows = self._ask(
            f"SELECT second, step, route, kind, class, {COUNT_SUMS}, {SKETCH_SUMS} FROM panes "
            f"WHERE run = {literal(run_id)} AND kind != ''{span} "
            "GROUP BY second, step, route, kind, class ORDER BY second"
        )
        return [pane_of(run_id, row) for row in rows]

    def windows(
        self, run_id: str, *, every_s: int, over_s: int, start_s: int, watermark_s: int | None = None
    ) -> list[Window]:
        if not 1 <= every_s <= over_s:
            raise ValueError(
                f"windows every {every_s} s over {over_s} s: 'over' must be at least 'every', and both 1 or more"
            )
        run, span = literal(run_id), 0
        if self._note_of(run, "start_s") == str(start_s):  # slots begin there
            span = max((one for one in SPANS if every_s % one == 0 and over_s % one == 0), default=0)
        regions = self._regions(run) if span else {}
        while True:
            source = slots(run, span, f"NOT {within(regions)}")
            rows = self._ask(windows(source, every_s, over_s, start_s))
            # Roll-ups and panes are two tables: what was rolled up in between may be there twice, so read again.
            before, regions = regions, self._regions(run) if span else {}
            if before == regions:
                break
        return windows_of(run_id, rows, every_s=every_s, over_s=over_s, start_s=start_s, watermark_s=watermark_s)

    def _regions(self, run: str) -> dict[tuple[str, str], tuple[int, int]]:
        rows = self._ask(
            "SELECT source_topic, source_partition, min(source_first), max(source_end) FROM rollups "
            f"WHERE run = {run} AND span = 0 GROUP BY source_topic, source_partition"
        )
        return {(topic, partition): (first, end) for topic, partition, first, end in rows}

    def close(self) -> None:
        self._executor.close()


class DriverExecutor:
    """clickhouse-driver: one connection, opened when it is needed and again after it broke."""

    def __init__(self, address: StoreAddress, *, patience_s: float = 30) -> None:
        from clickhouse_driver import Client

        logging.getLogger("clickhouse_driver").addHandler(logging.NullHandler())  # else it prints traces of its own
        self.shown, self.database = str(address), address.name or "default"
        self._host, self._port, self._patience_s = address.host, address.port, patience_s
        self._client = Client(
            address.host,
            port=address.port,
            database=self.database,
            user=address.user or "default",
            password=address.password,
            client_name="livefire",
            connect_timeout=3,
            send_receive_timeout=patience_s,
            sync_request_timeout=3,
        )

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        return list(self._call(lambda: self._client.execute(sql)) or ())

    def insert(self, sql: str, columns: Sequence[Sequence[Any]], query_id: str) -> None:
        block = {"insert_block_size": 1 << 30}  # of the driver: never cut into several
        self._call(lambda: self._client.execute(sql, columns, columnar=True, query_id=query_id, settings=block))

    def _call(self, call: Callable[[], Any]) -> Any:
        from clickhouse_driver import errors

        try:
            self._greet()
            return call()
        except errors.UnexpectedPacketFromServerError:
            self.close()
            raise StoreError(f"{self.shown}: no ClickHouse there ({_NATIVE})") from None
        except (errors.SocketTimeoutError, TimeoutError):
            self.close()
            raise StoreAway(f"{self.shown}: does not answer") from None
        except (errors.NetworkError, EOFError, OSError, errors.PartiallyConsumedQueryError) as error:
            self.close()
            raise StoreAway(f"{self.shown}: {_line(error)}") from None
        except errors.ServerException as error:
            raise Refused(error.code, _line(error)) from None
        except errors.Error as error:
            self.close()
            raise StoreError(f"{self.shown}: {_line(error)}") from None

    def _greet(self) -> None:
        """Connect. A port that waits for the rest of an HTTP request says nothing to a greeting: it is not waited for
        as long as for a server that has much to do. Raises what the driver does, and StoreError."""
        from clickhouse_driver import errors

        connection = self._client.connection
        if connection.connected or self._patience_s <= _GREETING_S:
            return
        connection.send_receive_timeout = _GREETING_S
        try:
            connection.connect()
            connection.socket.settimeout(self._patience_s)
        except errors.SocketTimeoutError:
            if _speaks_http(self._host, self._port):
                raise StoreError(f"{self.shown}: this is an HTTP port; {_NATIVE}") from None
        finally:
            connection.send_receive_timeout = self._patience_s

    def close(self) -> None:
        self._client.disconnect()


def _speaks_http(host: str, port: int) -> bool:
    """The native port knows this mistake, too: it answers in HTTP that it is for clickhouse-client."""
    try:
        with socket.create_connection((host, port), 1) as asked:
            asked.sendall(b"GET /ping HTTP/1.0\r\n\r\n")
            said = asked.recv(4096)
    except OSError:
        return False
    return said.startswith(b"HTTP/") and b"clickhouse-client" not in said


def _line(error: Exception) -> str:
    """The first line of what was told, without a stack trace of the server."""
    text = str(getattr(error, "message", "") or error) or type(error).__name__
    return text.partition("Stack trace")[0].replace("DB::Exception: ", "").strip().splitlines()[0].rstrip(" .,")


def open_at(address: StoreAddress, run_id: str, *, write: bool) -> ClickHouseStore:
    """Raises as `ClickHouseStore`; with `write` the tables are made, too."""
    store = ClickHouseStore(DriverExecutor(address), run_id)
    if write:
        store.open_for_writing()
    return store
