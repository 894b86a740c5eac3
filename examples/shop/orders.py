"""Orders: keeps them in SQLite, has them paid by the third party. Stress work goes to the shadow and the mock.

LEAK=1 makes `record_event` forget the shadow: livefire_shadow raises there and names the place.
LEAK=raw makes it write past SQLAlchemy, where nothing can raise: rows of the run land in production, and
only counting them by SQL shows it.
LEAK=payments makes `place` ask the third party itself, past the client that knows the mock: its own log shows it.
"""

import asyncio
import contextlib
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import names
from aiohttp import web
from service import arguments, listening, serve
from sqlalchemy import create_engine, insert, select
from tables import Base, Order, OrderEvent, OrderLine, write_ahead

from livefire_shadow import HEADER, Settings, outside_request, run_id, shadow_setup
from livefire_shadow.aiohttp_client import shadow_client
from livefire_shadow.aiohttp_server import shadow_middleware
from livefire_shadow.sqlalchemy_routing import Routing, Store


class Orders:
    """The handlers, the two databases and the client."""

    def __init__(self, data: Path, payments: str, mock: str | None, leak: str) -> None:
        self._payments = payments
        self._leak = leak
        self._production_file = data / "orders.db"
        self._production = write_ahead(create_engine(f"sqlite:///{self._production_file}"))
        shadow = write_ahead(create_engine(f"sqlite:///{data / 'orders-shadow.db'}"))
        self._routing = Routing([Store("orders", self._production, shadow)])
        self._session = self._routing.sessionmaker()
        self._mocks = {payments: f"http://{mock}"} if mock else {}
        self._client: aiohttp.ClientSession | None = None
        with outside_request():
            Base.metadata.create_all(self._routing.engine("orders"))
        with shadow_setup():
            Base.metadata.create_all(self._routing.engine("orders"))

    async def client(self, app: web.Application) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=200)
        middlewares = [shadow_client(mocks=self._mocks)]
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(connector=connector, middlewares=middlewares, timeout=timeout) as self._client:
            yield
        with outside_request():
            self._production.dispose()

    async def place(self, request: web.Request) -> web.Response:
        body = await request.json()
        order_id = secrets.token_urlsafe(12)
        total = int(body[names.TOTAL])
        payment = {names.ORDER: order_id, names.AMOUNT: total, names.CARD: body[names.CARD]}
        async with (
            self._paying(request) as client,
            client.post(f"http://{self._payments}/payments", json=payment) as answer,
        ):
            if answer.status != 200:
                return web.json_response({names.ERROR: "payment", names.STATUS: answer.status}, status=502)
            receipt = str((await answer.json())[names.RECEIPT])
        order = Order(
            id=order_id,
            customer=body[names.USER],
            total_cents=total,
            status="paid",
            note=body.get(names.NOTE, ""),
            receipt=receipt,
            placed_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            run=run_id(),
        )
        lines = [
            OrderLine(order_id=order_id, product=line[names.PRODUCT], quantity=line[names.QUANTITY], run=run_id())
            for line in body[names.LINES]
        ]
        with self._session.begin() as session:
            session.add_all([order, *lines])
            answered = self._shown(order, lines)
        self.record_event(order_id, "placed")
        return web.json_response(answered, status=201)

    @contextlib.asynccontextmanager
    async def _paying(self, request: web.Request) -> AsyncIterator[aiohttp.ClientSession]:
        assert self._client is not None
        if self._leak != "payments":
            yield self._client
            return
        carried = {HEADER: request.headers[HEADER]} if HEADER in request.headers else {}
        async with aiohttp.ClientSession(headers=carried) as past_the_mock:
            yield past_the_mock

    async def show(self, request: web.Request) -> web.Response:
        with self._session() as session:
            order = session.get(Order, request.match_info["order"])
            if order is None or order.customer != request.query.get(names.USER):
                return web.json_response({names.ERROR: "no such order"}, status=404)
            lines = session.scalars(select(OrderLine).where(OrderLine.order_id == order.id)).all()
            return web.json_response(self._shown(order, lines))

    async def change(self, request: web.Request) -> web.Response:
        body = await request.json()
        with self._session.begin() as session:
            order = session.get(Order, request.match_info["order"])
            if order is None or order.customer != body.get(names.USER):
                return web.json_response({names.ERROR: "no such order"}, status=404)
            order.note = str(body.get(names.NOTE, ""))
            answered = {names.ORDER: order.id, names.NOTE: order.note, names.STATUS: order.status}
        self.record_event(answered[names.ORDER], "changed")
        return web.json_response(answered)

    def record_event(self, order_id: str, what: str) -> None:
        """A transaction of its own; the place where the leaks are."""
        if self._leak == "raw":
            with sqlite3.connect(self._production_file, timeout=3) as connection:
                connection.execute(
                    "insert into order_events (order_id, what, run) values (?, ?, ?)", (order_id, what, run_id())
                )
            connection.close()
            return
        engine = self._production if self._leak == "1" else self._routing.engine("orders")
        with engine.begin() as transaction:
            transaction.execute(insert(OrderEvent), {"order_id": order_id, "what": what, "run": run_id()})

    @staticmethod
    def _shown(order: Order, lines: Sequence[OrderLine]) -> dict[str, object]:
        return {
            names.ORDER: order.id,
            names.STATUS: order.status,
            names.TOTAL: order.total_cents,
            names.NOTE: order.note,
            names.RECEIPT: order.receipt,
            names.PLACED: order.placed_at,
            names.LINES: [{names.PRODUCT: line.product, names.QUANTITY: line.quantity} for line in lines],
        }


def main() -> None:
    parser = listening(arguments(__doc__ or ""))
    parser.add_argument("--payments", required=True, metavar="HOST:PORT")
    parser.add_argument("--mock", metavar="HOST:PORT", help="what answers for payments under stress")
    parser.add_argument("--data", required=True, type=Path, help="folder of the two databases")
    options = parser.parse_args()
    orders = Orders(options.data, options.payments, options.mock, os.environ.get("LEAK", ""))
    app = web.Application(middlewares=[shadow_middleware(Settings.from_env("orders"))])
    app.cleanup_ctx.append(orders.client)
    app.router.add_post("/orders", orders.place)
    app.router.add_get("/orders/{order}", orders.show)
    app.router.add_patch("/orders/{order}", orders.change)
    asyncio.run(serve(app, options))


if __name__ == "__main__":
    main()
