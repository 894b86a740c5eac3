"""Panes in one SQLite file.

Write-ahead log, one writer (a lock beside the file holds that), readers that open it read-only and read in one short
statement: several processes that write and checkpoint one such file can lose commits in SQLite before 3.51.3. A
commit survives the process being killed; `close` folds the log into the file, so that a finished run is one file.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

from analytics.panes import add_panes, key_of
from analytics.store_port import StoreAway, StoreError
from analytics.windows import Window, windows
from wire.records import Kind, Pane, Sketch, SourceRange

VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS panes (
    second INTEGER NOT NULL, run TEXT NOT NULL, step INTEGER NOT NULL, route TEXT NOT NULL, kind TEXT NOT NULL,
    class INTEGER NOT NULL, offered INTEGER NOT NULL, completed INTEGER NOT NULL, errors INTEGER NOT NULL,
    shed INTEGER NOT NULL, unknown INTEGER NOT NULL, differing INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
    bytes_in INTEGER NOT NULL, from_due BLOB NOT NULL, from_send BLOB NOT NULL,
    PRIMARY KEY (run, second, step, route, kind, class)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sources (
    topic TEXT NOT NULL, partition TEXT NOT NULL, first INTEGER NOT NULL, "end" INTEGER NOT NULL,
    PRIMARY KEY (topic, partition, first)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_COLUMNS: Final = (
    "second, run, step, route, kind, class, offered, completed, errors, shed, unknown, differing, "
    "bytes_out, bytes_in, from_due, from_send"
)
_KEY: Final = "run = ? AND second = ? AND step = ? AND route = ? AND kind = ? AND class = ?"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Sketch).decode


def _row(pane: Pane) -> tuple[Any, ...]:
    return (
        *key_of(pane), pane.offered, pane.completed, pane.errors, pane.shed, pane.unknown, pane.differing,
        pane.bytes_out, pane.bytes_in, _encode(pane.from_due), _encode(pane.from_send),
    )  # fmt: skip


def _pane(row: Sequence[Any]) -> Pane:
    return Pane(
        second=row[0], run_id=row[1], step=row[2], route=row[3], kind=Kind(row[4]), status_class=row[5],
        offered=row[6], completed=row[7], errors=row[8], shed=row[9], unknown=row[10], differing=row[11],
        bytes_out=row[12], bytes_in=row[13], from_due=_decode(row[14]), from_send=_decode(row[15]),
    )  # fmt: skip


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        kind = StoreAway if "locked" in str(error) else StoreError
        raise kind(f"{path}: {error}") from None


class PaneStore:
    """The writer."""

    def __init__(self, path: Path | str, run_id: str = "") -> None:
        """Makes or opens the file. Raises StoreError if it has a writer, or is of a later version, or no database.

        With `run_id`, also if it holds panes of another run: a file is one run's.
        """
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(f"{self.path}.writer", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written: {os.strerror(error.errno or 0).lower()}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise StoreError(f"{self.path}: another process is writing these panes") from None
        try:
            with _told(self.path):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                self._db = sqlite3.connect(self.path, isolation_level=None, timeout=5)
                version = self._db.execute("PRAGMA user_version").fetchone()[0]
                if version > VERSION:
                    raise StoreError(f"{self.path}: version {version} is newer than this program reads ({VERSION})")
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
                self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
                self._refuse_others(run_id)
        except BaseException:
            os.close(self._lock)
            raise
        self._open = True

    def _refuse_others(self, run_id: str) -> None:
        found = self._db.execute("SELECT run FROM panes WHERE run != ? LIMIT 1", (run_id,)).fetchone()
        if run_id and found is not None:
            self._db.close()
            raise StoreError(
                f"{self.path}: holds run {found[0]}; for several runs give a folder (a path that ends with /)"
            )

    def apply(self, panes: Sequence[Pane], sources: Sequence[SourceRange]) -> bool:
        with _told(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                fresh = self._claim(sources)
                if fresh:
                    for pane in panes:
                        self._add(pane)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
        return fresh

    def _claim(self, sources: Sequence[SourceRange]) -> bool:
        held = [self._held(source) for source in sources if source.end > source.first]
        if all(held):
            return not held
        if any(held):
            raise StoreError(f"{self.path}: panes of ranges of which only a part is held already")
        for source in sources:
            self._hold(source)
        return True

    def _held(self, source: SourceRange) -> bool:
        found = self._db.execute(
            'SELECT first, "end" FROM sources WHERE topic = ? AND partition = ? AND first < ? AND "end" > ?',
            (source.topic, source.partition, source.end, source.first),
        ).fetchone()
        if found is None:
            return False
        if found[0] <= source.first and source.end <= found[1]:
            return True
        raise StoreError(
            f"{self.path}: {source.topic}-{source.partition} [{source.first}, {source.end}) overlaps "
            f"[{found[0]}, {found[1]}), which is held already"
        )

    def _hold(self, source: SourceRange) -> None:
        """Add a range, joined with those that touch it: so a partition that is read in order is one row."""
        where = (source.topic, source.partition)
        first, end = source.first, source.end
        for one, other in self._db.execute(
            'SELECT first, "end" FROM sources WHERE topic = ? AND partition = ? AND ("end" = ? OR first = ?)',
            (*where, first, end),
        ).fetchall():
            self._db.execute("DELETE FROM sources WHERE topic = ? AND partition = ? AND first = ?", (*where, one))
            first, end = min(first, one), max(end, other)
        self._db.execute("INSERT INTO sources VALUES (?, ?, ?, ?)", (*where, first, end))

    def _add(self, pane: Pane) -> None:
        second, run, *rest = key_of(pane)
        found = self._db.execute(f"SELECT {_COLUMNS} FROM panes WHERE {_KEY}", (run, second, *rest)).fetchone()
        total = pane if found is None else add_panes(_pane(found), pane)
        self._db.execute(f"INSERT OR REPLACE INTO panes ({_COLUMNS}) VALUES ({','.join('?' * 16)})", _row(total))

    def resume(self, topic: str, partition: str) -> int:
        with _told(self.path):
            found = self._db.execute(
                'SELECT "end" FROM sources WHERE topic = ? AND partition = ? ORDER BY first LIMIT 1', (topic, partition)
            ).fetchone()
        return int(found[0]) if found else 0

    def set_note(self, name: str, value: str) -> None:
        with _told(self.path):
            self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def panes(self, run_id: str, first_s: int | None = None, end_s: int | None = None) -> list[Pane]:
        return _panes(self._db, self.path, run_id, first_s, end_s)

    def windows(
        self, run_id: str, *, every_s: int, over_s: int, start_s: int, watermark_s: int | None = None
    ) -> list[Window]:
        found = self.panes(run_id)
        return list(windows(found, every_s=every_s, over_s=over_s, start_s=start_s, watermark_s=watermark_s))

    def note(self, name: str) -> str | None:
        return _note(self._db, self.path, name)

    def close(self) -> None:
        """Fold the log into the file and let go. May be called twice."""
        if not self._open:
            return
        self._open = False
        try:
            self._db.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error:
            pass  # a reader is in it: the log stays beside the file, which is just as good
        self._db.close()
        os.close(self._lock)

    def __enter__(self) -> PaneStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class StoredPanes:
    """A reader."""

    def __init__(self, path: Path | str) -> None:
        """Raises StoreError if there is no such file, or it is no store of panes."""
        self.path = Path(path)
        if not self.path.is_file():
            raise StoreError(f"{path}: no panes there (has the run been analysed?)")
        with _told(self.path):
            self._db = sqlite3.connect(
                f"file:{quote(str(self.path.absolute()))}?mode=ro", uri=True, isolation_level=None, timeout=5
            )
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version != VERSION:
            self._db.close()
            raise StoreError(f"{path}: not a store of panes of version {VERSION} (it says {version})")

    def panes(self, run_id: str, first_s: int | None = None, end_s: int | None = None) -> list[Pane]:
        return _panes(self._db, self.path, run_id, first_s, end_s)

    def windows(
        self, run_id: str, *, every_s: int, over_s: int, start_s: int, watermark_s: int | None = None
    ) -> list[Window]:
        found = self.panes(run_id)
        return list(windows(found, every_s=every_s, over_s=over_s, start_s=start_s, watermark_s=watermark_s))

    def note(self, name: str) -> str | None:
        return _note(self._db, self.path, name)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> StoredPanes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _panes(db: sqlite3.Connection, path: Path, run_id: str, first_s: int | None, end_s: int | None) -> list[Pane]:
    with _told(path):
        rows = db.execute(
            f"SELECT {_COLUMNS} FROM panes WHERE run = ? AND second >= ? AND second < ? ORDER BY second",
            (run_id, -(1 << 62) if first_s is None else first_s, (1 << 62) if end_s is None else end_s),
        ).fetchall()
    return [_pane(row) for row in rows]


def _note(db: sqlite3.Connection, path: Path, name: str) -> str | None:
    with _told(path):
        found = db.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
    return None if found is None else str(found[0])
