"""The shop's front: accounts, products and carts in memory, orders from the orders service.

Sessions are kept apart by run, so that a token handed out in production is worth nothing under
stress, and the other way round.
"""

import asyncio
import csv
import gzip
import hashlib
import json
import random
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import names
from aiohttp import web
from service import arguments, listening, serve

from livefire_shadow import Settings, run_id
from livefire_shadow.aiohttp_client import shadow_client
from livefire_shadow.aiohttp_server import shadow_middleware

HERE = Path(__file__).parent
PAGE_SIZE = 10
MAX_SESSIONS = 200_000
# Two at a time, 45 ms each: about 44 answers a second, and a queue beyond it.
RECOMMENDERS = 2
RECOMMEND_S = 0.045
LOGO = b"\x89PNG\r\n\x1a\n" + hashlib.sha256(b"logo").digest() * 60
LOGO_TAG = '"' + hashlib.sha256(LOGO).hexdigest()[:16] + '"'

Json = dict[str, Any]


def product_id(number: int) -> str:
    return f"P{number:04d}"


def make_products(count: int = 600) -> dict[str, Json]:
    rng = random.Random(7)
    kinds = ["lamp", "chair", "table", "shelf", "rug", "vase", "clock", "mirror", "stool", "bench"]
    looks = ["oak", "steel", "linen", "glass", "clay", "wool", "cork", "brass", "stone", "paper"]
    products = {}
    for number in range(count):
        title = f"{looks[number % 10]} {kinds[number // 10 % 10]} {number // 100 + 1}"
        words = " ".join(rng.choice(looks + kinds) for _ in range(60))
        products[product_id(number)] = {
            names.PRODUCT: product_id(number),
            names.TITLE: title,
            names.PRICE: rng.randrange(500, 50_000, 50),
            names.STOCK: rng.randrange(5, 500),
            names.TEXT: words,
        }
    return products


@dataclass(slots=True)
class Visit:
    """What a login opens: who, the cookie that goes with the token, and a cart by line id."""

    user: str
    cookie: str
    cart: dict[str, Json] = field(default_factory=dict)


class Storefront:
    def __init__(self, orders: str) -> None:
        self._orders = orders
        with (HERE / "accounts.csv").open(newline="") as file:
            self._accounts = {row[names.USER]: row[names.PASSWORD] for row in csv.DictReader(file)}
        self._products = make_products()
        self._ids = list(self._products)
        self._catalog = json.dumps({names.PRODUCTS: list(self._products.values())}).encode()
        self._catalog_gzip = gzip.compress(self._catalog, 6, mtime=0)
        # By run ('' is production) and token; the oldest goes first when there are too many.
        self._visits: OrderedDict[tuple[str, str], Visit] = OrderedDict()
        self._recommenders = asyncio.Semaphore(RECOMMENDERS)
        self._client: aiohttp.ClientSession | None = None

    async def client(self, app: web.Application) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=200)
        middlewares = [shadow_client(inside=[self._orders])]
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(connector=connector, middlewares=middlewares, timeout=timeout) as self._client:
            yield

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/login", self.login),
            web.get("/products", self.products),
            web.get("/products/{product}", self.product),
            web.get("/search", self.search),
            web.get("/recommendations", self.recommendations),
            web.get("/catalog", self.catalog),
            web.get("/feed", self.feed),
            web.get("/static/logo", self.logo),
            web.get("/cart", self.cart),
            web.post("/cart", self.add_line),
            web.put("/cart/{line}", self.change_line),
            web.delete("/cart/{line}", self.remove_line),
            web.post("/orders", self.place_order),
            web.get("/orders/{order}", self.show_order),
            web.patch("/orders/{order}", self.change_order),
        ]

    async def login(self, request: web.Request) -> web.Response:
        body = await _json(request)
        user = str(body.get(names.USER))
        if user not in self._accounts or self._accounts[user] != body.get(names.PASSWORD):
            return _error(401, "wrong user or password")
        token, cookie = secrets.token_urlsafe(24), secrets.token_urlsafe(18)
        self._visits[run_id(), token] = Visit(user, cookie)
        if len(self._visits) > MAX_SESSIONS:
            self._visits.popitem(last=False)
        response = web.json_response({names.TOKEN: token, names.USER: user})
        response.set_cookie(names.COOKIE, cookie, httponly=True, samesite="Lax")
        return response

    async def products(self, request: web.Request) -> web.Response:
        page = _number(request.query.get(names.PAGE, "1"), 1, 1000)
        ids = self._ids[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
        more = page * PAGE_SIZE < len(self._ids)
        return web.json_response({names.PAGE: page, names.PRODUCTS: self._brief(ids), names.MORE: more})

    async def product(self, request: web.Request) -> web.Response:
        product = self._products.get(request.match_info["product"])
        return web.json_response(product) if product else _error(404, "no such product")

    async def search(self, request: web.Request) -> web.Response:
        words = request.query.get(names.QUERY, "").lower().split()
        hits = [key for key, product in self._products.items() if all(word in product[names.TITLE] for word in words)]
        return web.json_response({names.QUERY: " ".join(words), names.PRODUCTS: self._brief(hits[:PAGE_SIZE])})

    async def recommendations(self, request: web.Request) -> web.Response:
        product = request.query.get(names.PRODUCT, "")
        async with self._recommenders:
            await asyncio.sleep(RECOMMEND_S)
        return web.json_response(
            {names.PRODUCT: product, names.PRODUCTS: self._brief(random.Random(product).sample(self._ids, 5))}
        )

    async def catalog(self, request: web.Request) -> web.Response:
        headers = {"Vary": "Accept-Encoding"}
        if "gzip" not in request.headers.get("Accept-Encoding", ""):
            return web.Response(body=self._catalog, content_type="application/json", headers=headers)
        headers["Content-Encoding"] = "gzip"
        return web.Response(body=self._catalog_gzip, content_type="application/json", headers=headers)

    async def feed(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        for number in range(6):
            await response.write(json.dumps({names.NEWS: number, names.TEXT: "new in the shop " * 12}).encode() + b"\n")
            await asyncio.sleep(0.001)
        await response.write_eof()
        return response

    async def logo(self, request: web.Request) -> web.Response:
        headers = {"ETag": LOGO_TAG, "Cache-Control": "max-age=60"}
        if request.headers.get("If-None-Match") == LOGO_TAG:
            return web.Response(status=304, headers=headers)
        return web.Response(body=LOGO, content_type="image/png", headers=headers)

    async def cart(self, request: web.Request) -> web.Response:
        visit = self._visit(request)
        lines = [{names.LINE: key, **line} for key, line in visit.cart.items()]
        return web.json_response({names.LINES: lines, names.TOTAL: self._total(visit)})

    async def add_line(self, request: web.Request) -> web.Response:
        visit, body = self._visit(request), await _json(request)
        product = str(body.get(names.PRODUCT))
        if product not in self._products:
            return _error(404, "no such product")
        line = secrets.token_hex(8)
        visit.cart[line] = {
            names.PRODUCT: product,
            names.QUANTITY: _number(body.get(names.QUANTITY, 1), 1, 99),
        }
        return web.json_response({names.LINE: line, **visit.cart[line], names.TOTAL: self._total(visit)}, status=201)

    async def change_line(self, request: web.Request) -> web.Response:
        visit, body = self._visit(request), await _json(request)
        line = visit.cart.get(request.match_info["line"])
        if line is None:
            return _error(404, "no such line")
        line[names.QUANTITY] = _number(body.get(names.QUANTITY, 1), 1, 99)
        return web.json_response({names.LINE: request.match_info["line"], **line, names.TOTAL: self._total(visit)})

    async def remove_line(self, request: web.Request) -> web.Response:
        if self._visit(request).cart.pop(request.match_info["line"], None) is None:
            return _error(404, "no such line")
        return web.Response(status=204)

    async def place_order(self, request: web.Request) -> web.Response:
        visit, body = self._visit(request), await _json(request)
        if not visit.cart or not body.get(names.CARD):
            return _error(409, "an empty cart, or no card")
        order = {
            names.USER: visit.user,
            names.LINES: list(visit.cart.values()),
            names.TOTAL: self._total(visit),
            names.CARD: body[names.CARD],
            names.NOTE: body.get(names.NOTE, ""),
        }
        response = await self._ask("POST", "/orders", json=order)
        if response.status == 201:
            visit.cart.clear()
        return response

    async def show_order(self, request: web.Request) -> web.Response:
        visit = self._visit(request)
        return await self._ask("GET", f"/orders/{request.match_info['order']}", params={names.USER: visit.user})

    async def change_order(self, request: web.Request) -> web.Response:
        visit, body = self._visit(request), await _json(request)
        change = {names.USER: visit.user, names.NOTE: body.get(names.NOTE, "")}
        return await self._ask("PATCH", f"/orders/{request.match_info['order']}", json=change)

    async def _ask(self, method: str, path: str, **options: Any) -> web.Response:
        assert self._client is not None
        async with self._client.request(method, f"http://{self._orders}{path}", **options) as answer:
            return web.Response(body=await answer.read(), status=answer.status, content_type=answer.content_type)

    def _visit(self, request: web.Request) -> Visit:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        visit = self._visits.get((run_id(), token)) if kind == "Bearer" else None
        # The token alone is not enough: a browser also sends the cookie that came with it.
        if visit is None or request.cookies.get(names.COOKIE) != visit.cookie:
            raise web.HTTPUnauthorized(text=json.dumps({names.ERROR: "log in"}), content_type="application/json")
        return visit

    def _brief(self, ids: list[str]) -> list[Json]:
        shown = (names.PRODUCT, names.TITLE, names.PRICE)
        return [{name: self._products[key][name] for name in shown} for key in ids]

    def _total(self, visit: Visit) -> int:
        lines = visit.cart.values()
        return sum(self._products[line[names.PRODUCT]][names.PRICE] * line[names.QUANTITY] for line in lines)


async def _json(request: web.Request) -> Json:
    try:
        body = await request.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text=json.dumps({names.ERROR: "not a JSON object"}), content_type="application/json")
    return body


def _number(value: object, low: int, high: int) -> int:
    try:
        return max(low, min(high, int(str(value))))
    except ValueError:
        raise web.HTTPBadRequest(
            text=json.dumps({names.ERROR: "not a number"}), content_type="application/json"
        ) from None


def _error(status: int, text: str) -> web.Response:
    return web.json_response({names.ERROR: text}, status=status)


async def run(options: Any) -> None:
    storefront = Storefront(options.orders)
    app = web.Application(middlewares=[shadow_middleware(Settings.from_env("storefront"))])
    app.cleanup_ctx.append(storefront.client)
    app.router.add_routes(storefront.routes())
    await serve(app, options)


def main() -> None:
    parser = listening(arguments(__doc__ or ""))
    parser.add_argument("--orders", required=True, metavar="HOST:PORT")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
