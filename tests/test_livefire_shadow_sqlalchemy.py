import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, insert, make_url, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from livefire_shadow import (
    PRODUCTION,
    IsolationViolation,
    LostContext,
    Marker,
    Stress,
    bind,
    carry,
    outside_request,
    run_id,
    shadow_setup,
)
from livefire_shadow.audit import MAX_PLACES, Audit
from livefire_shadow.sqlalchemy_routing import Routing, Store
from livefire_shadow.statement import head_of, is_write

STRESS = Stress(Marker("run-1", 1_800_000_000, "k1"), "value")


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str]
    run: Mapped[str]


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.audit = Audit()
        self.store = Store("orders", self.make("production"), self.make("shadow"))
        self.routing = Routing([self.store], audit=self.audit)
        self.Session = self.routing.sessionmaker()

    def make(self, name: str) -> Engine:
        return create_engine(f"sqlite:///{self.folder}/{name}.db")

    def rows(self, name: str) -> int:
        """Counted behind everybody's back."""
        with sqlite3.connect(self.folder / f"{name}.db") as connection:
            return int(connection.execute("select count(*) from orders").fetchone()[0])

    def violations(self) -> list[dict[str, Any]]:
        return self.audit.snapshot()["violations"]  # type: ignore[return-value]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    with outside_request():
        Base.metadata.create_all(world.routing.engine("orders"))
    with shadow_setup():
        Base.metadata.create_all(world.routing.engine("orders"))
    world.audit.reset()
    yield world
    world.routing.remove()
    for engine in (world.store.production, world.store.shadow):
        engine.dispose()


def write(world: World, note: str = "x") -> None:
    with world.Session.begin() as session:
        session.add(Order(note=note, run=run_id()))


def test_session_goes_where_the_context_says(world: World) -> None:
    with bind(PRODUCTION):
        write(world)
        write(world)
    with bind(STRESS):
        write(world)
        with world.Session() as session:
            assert session.scalars(select(Order.run)).all() == ["run-1"]
    assert (world.rows("production"), world.rows("shadow")) == (2, 1)
    counts = world.audit.snapshot()
    assert counts["production_writes"] == 2
    assert counts["shadow_writes"] == {"orders": 1}
    assert counts["shadow_statements"] == {"orders": 2}
    assert counts["violations"] == []


def test_lost_context_reaches_no_store(world: World) -> None:
    for use in (lambda: write(world), world.store.production.connect, world.store.shadow.connect):
        with pytest.raises(LostContext):
            use()
    with bind(STRESS), ThreadPoolExecutor(1) as pool:
        with pytest.raises(LostContext):
            pool.submit(write, world).result()
        pool.submit(carry(write), world).result()
    assert (world.rows("production"), world.rows("shadow")) == (0, 1)


ROW = {"note": "secret-value", "run": "run-1"}
WAYS = {
    "core": lambda c: c.execute(insert(Order), ROW),
    "text": lambda c: c.execute(text("insert into orders (note, run) values (:note, :run)"), ROW),
    "driver": lambda c: c.exec_driver_sql("insert into orders (note, run) values ('secret-value', 'r')"),
    "bulk": lambda c: c.execute(insert(Order), [ROW] * 500),
    "comment": lambda c: c.exec_driver_sql("/*h*/ -- x\n insert into orders (note, run) values ('secret-value', 'r')"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("engine", ["production", "unregistered"])
def test_stress_on_another_engine_raises_and_names_the_place(world: World, way: str, engine: str) -> None:
    target = world.store.production if engine == "production" else world.make("production")
    with bind(STRESS), pytest.raises(IsolationViolation), target.begin() as connection:
        WAYS[way](connection)
    assert world.rows("production") == 0
    (violation,) = world.violations()
    assert violation["kind"] == {"production": "production_under_stress", "unregistered": "unregistered"}[engine]
    assert "test_livefire_shadow_sqlalchemy.py" in violation["place"]
    assert "test_stress_on_another_engine" in violation["place"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("engine", ["production", "unregistered"])
def test_a_connection_taken_before_is_refused_at_the_cursor(world: World, way: str, engine: str) -> None:
    target = world.store.production if engine == "production" else world.make("production")
    with bind(PRODUCTION), target.connect() as connection:
        with bind(STRESS), pytest.raises(IsolationViolation, match="INSERT orders"):
            WAYS[way](connection)
        connection.commit()
    assert world.rows("production") == 0
    (violation,) = world.violations()
    assert violation["statement"] == "INSERT orders"
    assert "production.db" in violation["store"] and "secret-value" not in str(violation)


@pytest.mark.parametrize("way", WAYS)
def test_without_the_guard_the_same_writes_land(world: World, way: str) -> None:
    # The negative control: it is the guard that stops them, and the count sees them when it does not.
    world.routing.remove()
    with bind(STRESS), world.make("production").begin() as connection:
        WAYS[way](connection)
    assert world.rows("production") >= 1


def test_raw_connection_is_refused_too(world: World) -> None:
    with bind(STRESS):
        for engine in (world.store.production, world.make("production")):
            with pytest.raises(IsolationViolation):
                engine.raw_connection()
        world.store.shadow.raw_connection().close()


def test_a_pooled_connection_made_before_the_guard_is_refused(world: World) -> None:
    world.routing.remove()
    stranger = world.make("production")
    stranger.connect().close()
    world.routing.install()
    with bind(STRESS), pytest.raises(IsolationViolation):
        stranger.connect()
    with bind(PRODUCTION), stranger.connect() as connection:
        assert connection.exec_driver_sql("select 1").scalar() == 1


def test_an_engines_copy_with_options_is_the_same_store(world: World) -> None:
    with bind(STRESS):
        with world.store.shadow.execution_options(isolation_level="SERIALIZABLE").connect() as connection:
            connection.execute(select(Order))
        with pytest.raises(IsolationViolation):
            world.store.production.execution_options(isolation_level="SERIALIZABLE").connect()


def test_production_work_on_the_shadow_raises(world: World) -> None:
    with bind(PRODUCTION), pytest.raises(IsolationViolation, match="shadow under production"):
        world.store.shadow.connect()


def test_a_session_left_open_between_requests_is_refused(world: World) -> None:
    session = world.Session()
    with bind(STRESS):
        session.add(Order(note="x", run=run_id()))
        session.flush()
    with bind(PRODUCTION), pytest.raises(IsolationViolation, match="session reused"):
        session.scalars(select(Order)).all()
    session.rollback()
    session.close()
    with bind(PRODUCTION):
        assert session.scalars(select(Order)).all() == []
        session.close()


def test_a_session_bound_to_a_stranger_is_refused_under_stress(world: World) -> None:
    maker = world.routing.sessionmaker(world.make("production"))
    with bind(STRESS), pytest.raises(IsolationViolation), maker() as session:
        session.execute(text("select 1"))


def test_a_shadow_that_is_production_is_refused_at_start(world: World, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "production.db")
    for shadow in (world.make("production"), create_engine(f"sqlite:///{link}")):
        with pytest.raises(ValueError, match="shadow is the production database"):
            Routing([Store("orders", world.make("production"), shadow)])
    one, two = (_Unconnected(f"postgresql+psycopg://{user}:pw@db:5432/shop") for user in "ab")
    with pytest.raises(ValueError, match="shadow is the production database") as error:
        Routing([Store("orders", one, two)])  # type: ignore[arg-type]
    assert "pw" not in str(error.value)


class _Unconnected:
    """The part of an engine that is looked at before anything connects; its driver is not installed here."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.dialect = object()


def test_violations_are_bounded_and_none_is_lost() -> None:
    audit = Audit()
    for number in range(MAX_PLACES + 50):
        audit.violation("unregistered", f"f:{number}", "s", "INSERT t")
    snapshot = audit.snapshot()
    assert len(snapshot["violations"]) == MAX_PLACES  # type: ignore[arg-type]
    assert snapshot["violations_elsewhere"] == 50


@pytest.mark.parametrize(
    ("statement", "head", "writes"),
    [
        ("SELECT a FROM b WHERE c = 'INSERT'", "SELECT b", False),
        ('insert into "orders" (a) values (1)', "INSERT orders", True),
        ("UPDATE s.t SET a = 'x'", "UPDATE s.t", True),
        ("delete\nfrom t", "DELETE t", True),
        ("REPLACE INTO t VALUES (1)", "REPLACE t", True),
        ("WITH x AS (SELECT 1) SELECT * FROM x", "SELECT x", False),
        ("WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x", "DELETE t", True),
        ("(SELECT 1)", "SELECT", False),
        ("DROP TABLE IF EXISTS t", "DROP t", True),
        ("CALL refund(1)", "CALL", True),
        ("", "?", True),
    ],
)
def test_statement_heads(statement: str, head: str, writes: bool) -> None:
    assert (head_of(statement), is_write(head_of(statement))) == (head, writes)


@given(st.text(max_size=80))
def test_a_value_never_stands_in_a_head(value: str) -> None:
    quoted = value.replace("'", "''")
    assert head_of(f"UPDATE t SET a = '{quoted}'") == "UPDATE t"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("postgresql://app@db/shop", "postgresql://app@db:5432/shop", True),
        ("postgresql://app@DB/shop", "postgresql://other@db/shop", True),
        ("postgresql:///shop?host=db", "postgresql://db/shop", True),
        ("postgresql://localhost/shop", "postgresql://127.0.0.1/shop", True),
        ("mysql://db/shop", "mariadb://db:3306/shop", True),
        ("sqlite:///file:/tmp/a%20b.db?uri=true", "sqlite:////tmp/a b.db", True),
        ("postgresql://db/shop", "postgresql://db/shop_shadow", False),
        ("postgresql://db/shop", "postgresql://db:5433/shop", False),
        ("postgresql://db/shop", "postgresql://db2/shop", False),
        ("sqlite:///a.db", "sqlite:///b.db", False),
    ],
)
def test_a_database_is_the_same_however_it_is_written(one: str, other: str, same: bool) -> None:
    from types import SimpleNamespace

    from sqlalchemy import make_url

    from livefire_shadow.sqlalchemy_routing import _database

    found = [_database(SimpleNamespace(url=make_url(url))) for url in (one, other)]
    assert (found[0] == found[1]) is same
