"""Seeded accounts: logins that work although the recorded passwords were masked.

A CSV whose columns are names of fields, a row an account:

    user,password
    load-001,secret1

A request whose JSON or form body has the first two of these fields (who, and the secret), and which was answered
below 400 when it was recorded, gets these, and those of the further ones that it has, of one row. The row is chosen
by a hash of (recorded value of the first column, copy): one recorded user is always the same account of a copy,
whoever fires it.
"""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path

from wire import places
from wire.config import ConfigError
from wire.records import Place, PlaceKind, Stamped


class Accounts:
    def __init__(self, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        self.columns = columns
        self.rows = rows
        self._json = tuple(Place(PlaceKind.JSON, f"$.{column}") for column in columns)
        self._form = tuple(Place(PlaceKind.FORM, column) for column in columns)
        self._words = tuple(column.encode() for column in columns)

    def row_of(self, recorded: str, copy: int) -> tuple[str, ...]:
        digest = hashlib.blake2b(f"{copy}\0{recorded}".encode(), digest_size=8, person=b"lf-account").digest()
        return self.rows[int.from_bytes(digest, "big") % len(self.rows)]

    def substitute(self, stamped: Stamped, copy: int, head: bytes, body: bytes) -> tuple[bytes, bytes] | None:
        """The request of one of the accounts; None for a request that is not a login of this kind."""
        if not 0 < stamped.baseline.status < 400:
            return None
        if not all(word in body for word in self._words[:2]):  # most requests end here, without being parsed
            return None
        for fields in (self._json, self._form):
            first = places.read_request(fields[0], head, body)
            if not first or not all(places.read_request(place, head, body) for place in fields[1:2]):
                continue
            row = self.row_of(first[0], copy)
            for place, value in zip(fields, row, strict=True):
                head, body = places.substitute(head, body, place, lambda _, value=value: value)  # type: ignore[misc]
            return head, body
        return None


def load(path: Path | str) -> Accounts:
    """Raises ConfigError with file and line."""
    try:
        text = Path(path).read_text("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file of accounts") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: accounts cannot be read: {error}") from None
    reader = csv.reader(io.StringIO(text))
    columns: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = []
    for row in reader:
        if not row:
            continue
        if not columns:
            columns = tuple(cell.strip() for cell in row)
            if not all(columns) or len(set(columns)) != len(columns):
                raise ConfigError(f"{path}:{reader.line_num}: the first line names the fields, each once")
            continue
        if len(row) != len(columns):
            raise ConfigError(f"{path}:{reader.line_num}: {len(row)} values where the first line has {len(columns)}")
        rows.append(tuple(row))
    if not rows:
        raise ConfigError(f"{path}: no accounts (the first line names the fields, each further one is an account)")
    return Accounts(columns, rows)
