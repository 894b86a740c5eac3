"""A current ClickHouse, as the package chdb embeds it, in a process of its own.

Of its own, because one process may open a path once, some statements end the process, and half a gigabyte of library
need not sit in the tests'. Both halves are here: `Chdb` asks, `serve` answers, one JSON line each.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from servers.process import Command, Died, Missing, Server

_SETTINGS = {"output_format_json_quote_64bit_integers": 0, "output_format_json_quote_denormals": 1}


class ChdbError(Exception):
    """What the database answered: its code and its words."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        code = text.partition("Code: ")[2].partition(".")[0]
        self.code = int(code) if code.isdigit() else 0


class Chdb(Server):
    """`execute` as clickhouse-driver's `Client.execute`. `address` is the folder. Raises Missing."""

    name = "chdb"

    def __init__(self) -> None:
        if importlib.util.find_spec("chdb") is None:
            raise Missing("the package chdb is not installed: make servers")
        super().__init__()
        self.address = str(self.folder / "data")
        self._asks: IO[bytes] | None = None
        self._told: IO[bytes] | None = None
        self._lock = threading.Lock()

    def _command(self) -> Command:
        env = {**os.environ, "TZ": "UTC"}  # its DateTime texts are in this zone
        return Command([sys.executable, "-m", "servers.chdb_child", self.address], env, Path(__file__).parent.parent)

    def start(self) -> Chdb:
        asks, told = os.pipe(), os.pipe()
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, asks[0])
            stack.callback(os.close, told[1])
            self._asks, self._told = os.fdopen(asks[1], "wb"), os.fdopen(told[0], "rb")
            self.launch(stdin=asks[0], stdout=told[1])
        self.execute("SELECT 1")
        return self

    def execute(self, sql: str, rows: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        """The rows of an answer. With `rows` (sequences or dicts) `sql` is "INSERT INTO t (...) VALUES".

        Raises ChdbError, and Died when the process ended over it (`start` opens the same data again).
        """
        if rows is not None:
            if not rows:
                return []
            head = sql.strip()
            assert head.upper().endswith("VALUES"), f"rows belong to INSERT ... VALUES, not to {head[:60]!r}"
            kind = "JSONEachRow" if isinstance(rows[0], dict) else "JSONCompactEachRow"
            sql = f"{head[:-6]} FORMAT {kind} " + "\n".join(json.dumps(row, default=_plain) for row in rows)
        with self._lock:
            try:
                if self._asks is None or self._told is None:
                    raise Died("chdb is not running")
                self._asks.write(json.dumps(sql).encode() + b"\n")
                self._asks.flush()
                line = self._told.readline()
            except (OSError, ValueError):
                line = b""
        if not line:
            raise Died(f"chdb ended over {sql[:200]!r}: {self.tail()[-500:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise ChdbError(answer["error"])
        makers = [_maker(kind) for kind in answer["types"]]
        return [tuple(make(value) for make, value in zip(makers, row, strict=True)) for row in answer["rows"]]

    def kill(self) -> None:
        super().kill()
        for pipe in (self._asks, self._told):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._asks = self._told = None


def _plain(value: object) -> object:
    if isinstance(value, datetime.datetime):
        if value.tzinfo is not None:
            value = value.astimezone(datetime.UTC)
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode()
    if hasattr(value, "tolist"):  # numpy
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in a row: {value!r}")


def _inside(kind: str) -> list[str]:
    """The types between the outermost brackets: Tuple(Array(Int8), String) -> Array(Int8), String."""
    found, depth, begin = [], 0, kind.index("(") + 1
    for at in range(begin, len(kind) - 1):
        depth += {"(": 1, ")": -1}.get(kind[at], 0)
        if kind[at] == "," and not depth:
            found.append(kind[begin:at].strip())
            begin = at + 1
    return [*found, kind[begin:-1].strip()]


def _maker(kind: str) -> Callable[[Any], Any]:
    """What makes the value that clickhouse-driver would return of its JSON."""
    outer = kind.partition("(")[0]
    if outer in ("Nullable", "LowCardinality"):
        inner = _maker(_inside(kind)[0])
        return lambda value: None if value is None else inner(value)
    if outer == "SimpleAggregateFunction":
        return _maker(_inside(kind)[1])
    if outer == "Array":
        element = _maker(_inside(kind)[0])
        return lambda value: [element(part) for part in value]
    if outer == "Tuple":
        parts = [_maker(part.rpartition(" ")[2] if part[0].islower() else part) for part in _inside(kind)]
        return lambda value: tuple(
            make(part) for make, part in zip(parts, value.values() if isinstance(value, dict) else value, strict=True)
        )
    if outer in ("Float32", "Float64"):
        return float
    if outer == "DateTime":
        return lambda value: datetime.datetime.fromisoformat(value)
    if outer == "Date":
        return lambda value: datetime.date.fromisoformat(value)
    return lambda value: value


def serve(folder: str) -> None:
    asks, told = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the library's own words go to the log
    from chdb import session

    base = session.Session(folder)
    base.query("".join(f"SET {name} = {value};" for name, value in _SETTINGS.items()))
    for line in asks:
        try:
            data = base.query(json.loads(line), "JSONCompactEachRowWithNamesAndTypes").bytes()
            lines = [json.loads(row) for row in data.splitlines()]
            answer = {"types": lines[1] if lines else [], "rows": lines[2:]}
        except Exception as error:
            answer = {"error": str(error)}
        told.write(json.dumps(answer).encode() + b"\n")
        told.flush()
    time.sleep(10)  # who asked is gone: the keeper ends this process, and then removes the folder


if __name__ == "__main__":
    serve(sys.argv[1])
