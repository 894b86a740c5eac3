"""The tables of the orders service, the same in production and in its shadow.

`run` is the run of the marker, '' in production: so SQL can count what came from where.
"""

from sqlalchemy import Engine, Index, event
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[str] = mapped_column(primary_key=True)
    customer: Mapped[str]
    total_cents: Mapped[int]
    status: Mapped[str]
    note: Mapped[str]
    receipt: Mapped[str]
    placed_at: Mapped[str]
    run: Mapped[str]


class OrderLine(Base):
    __tablename__ = "order_lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[str]
    product: Mapped[str]
    quantity: Mapped[int]
    run: Mapped[str]
    __table_args__ = (Index("order_lines_order", "order_id"),)


class OrderEvent(Base):
    __tablename__ = "order_events"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[str]
    what: Mapped[str]
    run: Mapped[str]


def write_ahead(engine: Engine) -> Engine:
    """Sets WAL on each new connection of `engine`: readers and the one writer do not wait for each other."""

    @event.listens_for(engine, "connect")
    def set_pragmas(connection, record) -> None:  # type: ignore[no-untyped-def]
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
        connection.execute("pragma busy_timeout = 3000")

    return engine
