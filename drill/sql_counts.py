"""Rows of a run, counted by SQL in the stores themselves: the one witness that needs nobody's cooperation.

Only this file uses SQLAlchemy (the extra `sql`). SQLite files are opened read-only; for servers, give the URL
of a user that may only read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from wire.config import ConfigError


class CountError(Exception):
    """A table that could not be counted: one line."""


class RunCounter:
    """Counts in one store. It connects when it counts, and holds no connection in between."""

    def __init__(self, url: str, run_column: Mapping[str, str]) -> None:
        """`run_column`: table, or schema.table -> the column that holds the run. Raises ConfigError for a URL that is
        none."""
        try:
            import sqlalchemy
            from sqlalchemy.pool import NullPool
        except ImportError:
            raise ConfigError("counting rows by SQL needs SQLAlchemy: pip install 'livefire[sql]'") from None
        self._run_column = dict(run_column)
        try:
            parsed = sqlalchemy.make_url(url)
            self.name = parsed.render_as_string(hide_password=True)
            options: dict[str, Any] = {"poolclass": NullPool}
            if parsed.get_backend_name() == "sqlite":
                if not parsed.database or parsed.database == ":memory:":
                    raise ConfigError(f"{self.name}: a store in memory cannot be looked into; give a file")
                file = Path(parsed.database)
                options["creator"] = lambda: _read_only(file)
            self._engine = sqlalchemy.create_engine(parsed, **options)
        except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError, ImportError) as error:
            raise ConfigError(f"isolation store: {error}") from None

    def count(self, run_id: str) -> dict[str, int]:
        """Rows of the run by table. Raises CountError."""
        import sqlalchemy
        from sqlalchemy import column, func, select, table

        found = {}
        try:
            with self._engine.connect() as connection:
                for name, run_column in self._run_column.items():
                    schema, _, bare = name.rpartition(".")
                    of = table(bare, schema=schema or None)
                    query = select(func.count()).select_from(of).where(column(run_column) == run_id)
                    found[name] = int(connection.execute(query).scalar_one())
        except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error) as error:
            cause = getattr(error, "orig", None) or error
            raise CountError(f"{self.name}: {str(cause).splitlines()[0]}") from None
        return found


def _read_only(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(file.absolute()))}?mode=ro", uri=True, timeout=2)
