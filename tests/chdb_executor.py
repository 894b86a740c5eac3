"""The ClickHouse store's statements, run by the current ClickHouse that chdb embeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from servers.chdb_child import Chdb, ChdbError
from servers.process import Died

from analytics.store_clickhouse import Refused
from analytics.store_port import StoreAway


class ChdbExecutor:
    """One of several users of one child, each in a database of its own."""

    def __init__(self, server: Chdb, database: str) -> None:
        self._server, self.database = server, database
        self.shown = f"chdb/{database}"

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        return self._ask(sql)

    def insert(self, sql: str, columns: Sequence[Sequence[Any]], query_id: str) -> None:
        self._ask(sql, list(zip(*columns, strict=True)))

    def _ask(self, sql: str, rows: list[Any] | None = None) -> list[tuple[Any, ...]]:
        try:
            self._server.execute(f"USE {self.database}")
            return self._server.execute(sql, rows)
        except ChdbError as error:
            raise Refused(error.code, str(error).splitlines()[0]) from None
        except Died as error:
            raise StoreAway(f"{self.shown}: {str(error).splitlines()[0]}") from None

    def close(self) -> None:
        pass
