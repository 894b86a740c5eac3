"""The stores that the contract suite is run against: a name, and what opens a run's store of that kind.

Each function is given pytest's request, makes a place of its own (a folder, a database, a prefix) and removes it afterwards.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from analytics.store_address import open_store
from analytics.store_port import Store

Opener = Callable[[str], Store]  # run id -> its store, for writing and reading


@contextmanager
def embedded(request: pytest.FixtureRequest) -> Iterator[Opener]:
    folder = tempfile.mkdtemp(prefix="lf-store-")
    try:
        yield lambda run_id: open_store(f"{folder}/", run_id)
    finally:
        shutil.rmtree(folder)


@contextmanager
def clickhouse(request: pytest.FixtureRequest) -> Iterator[Opener]:
    from clickhouse_driver import Client

    address = request.getfixturevalue("clickhouse_server").address
    database = "lf_" + secrets.token_hex(6)
    with contextlib.closing(_Client(Client.from_url(f"clickhouse://{address}/default"))) as client:
        client.execute(f"CREATE DATABASE {database}")
        try:
            yield lambda run_id: open_store(f"clickhouse://{address}/{database}", run_id)
        finally:
            client.execute(f"DROP DATABASE {database}")


class _Client:
    def __init__(self, client: object) -> None:
        self.execute = client.execute  # type: ignore[attr-defined]
        self.close = client.disconnect  # type: ignore[attr-defined]


@contextmanager
def clickhouse_folding(request: pytest.FixtureRequest) -> Iterator[Opener]:
    """With roll-ups made of a few panes already."""
    from analytics.store_address import StoreAddress, parse_address
    from analytics.store_clickhouse import ClickHouseStore, DriverExecutor

    with clickhouse(request) as opener:
        with contextlib.closing(opener("any")) as store:
            where = parse_address(store._executor.shown)  # type: ignore[attr-defined]
        assert isinstance(where, StoreAddress)
        yield lambda run_id: ClickHouseStore(DriverExecutor(where), run_id, fold_rows=15)


@contextmanager
def chdb(request: pytest.FixtureRequest) -> Iterator[Opener]:
    from chdb_executor import ChdbExecutor

    from analytics.store_clickhouse import ClickHouseStore

    server = request.getfixturevalue("chdb_server")
    database = "lf_" + secrets.token_hex(6)
    server.execute(f"CREATE DATABASE {database}")
    try:
        yield lambda run_id: ClickHouseStore(ChdbExecutor(server, database), run_id, fold_rows=15)
    finally:
        server.execute(f"DROP DATABASE {database}")


@contextmanager
def elasticsearch(request: pytest.FixtureRequest) -> Iterator[Opener]:
    from elastic_place import place_of

    with place_of(request) as place:
        yield place.open


BACKENDS: dict[str, Callable[[pytest.FixtureRequest], AbstractContextManager[Opener]]] = {
    "embedded": embedded,
    "clickhouse": clickhouse,
    "clickhouse-folding": clickhouse_folding,
    "chdb": chdb,
    "elasticsearch": elasticsearch,
}
