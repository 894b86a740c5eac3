"""Production: shoppers who log in, look around, fill a cart and order, each visit on a connection of its own.

What each does is chosen by --seed; when exactly, by the clock. Prints counts at the end.
"""

import argparse
import asyncio
import csv
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import names
from service import JsonLog, arguments, stop_event

HERE = Path(__file__).parent
BROWSERS = ("Firefox/146.0", "Chrome/143.0", "Safari/26.1", "Edge/143.0")
WORDS = ["oak", "steel", "linen", "glass", "clay", "lamp", "chair", "table", "shelf", "rug"]


class Shopper:
    """One visit after the other, each by another person; a steady mean of requests a second."""

    def __init__(self, number: int, options: argparse.Namespace, accounts: list[dict[str, str]], log: JsonLog) -> None:
        self._number = number
        self._rng = random.Random(f"{options.seed}:{number}")
        self._think_s = options.shoppers / options.rate
        self._base = f"http://{options.to}"
        self._accounts = accounts
        self._log = log
        self.counts: Counter[str] = Counter()
        self._token = ""
        self._tag = ""
        self._due = 0.0

    async def run(self) -> None:
        # Shoppers do not arrive all in the same moment.
        self._due = time.monotonic() + self._rng.random() * self._think_s
        for visit in itertools.count():
            agent = f"Mozilla/5.0 (visitor {self._number}.{visit}) {BROWSERS[visit % len(BROWSERS)]}"
            # Cookies of an address without a name are kept only by an "unsafe" jar.
            jar = aiohttp.CookieJar(unsafe=True)
            connector = aiohttp.TCPConnector(limit=1, keepalive_timeout=60)
            timeout = aiohttp.ClientTimeout(total=15)
            async with aiohttp.ClientSession(
                self._base, connector=connector, cookie_jar=jar, headers={"User-Agent": agent}, timeout=timeout
            ) as session:
                async for method, target, options in self._visit():
                    await self._send(session, method, target, **options)

    async def _visit(self) -> AsyncIterator[tuple[str, str, dict[str, Any]]]:
        """The requests of one visit; `self._answer` is what came for the last one."""
        rng = self._rng
        self._token = ""
        account = rng.choice(self._accounts)
        yield "GET", "/static/logo", {"headers": {"If-None-Match": self._tag} if self._tag else {}}
        if rng.random() < 0.08:
            wrong = {names.USER: account[names.USER], names.PASSWORD: f"guess-{rng.randrange(16**6):06x}"}
            yield "POST", "/login", {"json": wrong}
        if rng.random() < 0.05:
            stranger = {names.USER: f"nobody{rng.randrange(1000)}@shop.example", names.PASSWORD: "unknown-to-all"}
            yield "POST", "/login", {"json": stranger}
        known = {names.USER: account[names.USER], names.PASSWORD: account[names.PASSWORD]}
        yield "POST", "/login", {"json": known}
        self._token = str(self._answer.get(names.TOKEN, ""))
        seen: list[str] = []
        for _ in range(rng.randint(2, 4)):
            if rng.random() < 0.6:
                yield "GET", f"/products?{names.PAGE}={rng.randint(1, 60)}", {}
            else:
                yield "GET", f"/search?{names.QUERY}={'+'.join(rng.sample(WORDS, rng.randint(1, 2)))}", {}
            product = rng.choice([row[names.PRODUCT] for row in self._answer.get(names.PRODUCTS, [])] or ["P0001"])
            seen.append(product)
            yield ("HEAD" if rng.random() < 0.25 else "GET"), f"/products/{product}", {}
            yield "GET", f"/recommendations?{names.PRODUCT}={product}", {}
        if rng.random() < 0.15:
            yield "GET", "/catalog", {"headers": {"Accept-Encoding": rng.choice(["gzip", "gzip", "identity"])}}
        if rng.random() < 0.25:
            yield "GET", "/feed", {}
        if self._token and rng.random() < 0.8:
            async for request in self._buy(seen, account):
                yield request

    async def _buy(self, seen: list[str], account: dict[str, str]) -> AsyncIterator[tuple[str, str, dict[str, Any]]]:
        rng = self._rng
        lines: list[str] = []
        for product in seen:
            yield "POST", "/cart", {"json": {names.PRODUCT: product, names.QUANTITY: rng.randint(1, 4)}}
            lines.append(str(self._answer.get(names.LINE, "")))
        if rng.random() < 0.4:
            yield "PUT", f"/cart/{rng.choice(lines)}", {"json": {names.QUANTITY: rng.randint(1, 9)}}
        if len(lines) > 2:
            yield "DELETE", f"/cart/{lines.pop()}", {}
        yield "GET", "/cart", {}
        if rng.random() < 0.75:
            note = rng.choice(["", "ring twice", "leave at the door"])
            yield "POST", "/orders", {"json": {names.CARD: account[names.CARD], names.NOTE: note}}
            order = self._answer.get(names.ORDER)
            if order:
                yield "GET", f"/orders/{order}", {}
                if rng.random() < 0.4:
                    yield "PATCH", f"/orders/{order}", {"json": {names.NOTE: "a gift"}}

    async def _send(
        self,
        session: aiohttp.ClientSession,
        method: str,
        target: str,
        headers: dict[str, str] | None = None,
        **body: Any,
    ) -> None:
        self._due = max(self._due + self._rng.expovariate(1 / self._think_s), time.monotonic())
        await asyncio.sleep(self._due - time.monotonic())
        sent = dict(headers or {})
        if self._token:
            sent["Authorization"] = f"Bearer {self._token}"
        self._answer: dict[str, Any] = {}
        status, error, ts_ns = 0, "", time.time_ns()
        try:
            async with session.request(method, target, headers=sent, **body) as answer:
                content, status = await answer.read(), answer.status
                self._tag = answer.headers.get("ETag", self._tag)
            if content and answer.content_type == "application/json":
                self._answer = json.loads(content)
        except (aiohttp.ClientError, TimeoutError) as failed:
            error = type(failed).__name__
        placed = self._answer.get(names.ORDER) if (method, target, status) == ("POST", "/orders", 201) else None
        self.counts[str(status) if status else error] += 1
        self.counts["orders"] += placed is not None
        self._log.write(
            ts_ns=ts_ns, shopper=self._number, method=method, target=target, body=body.get("json"), status=status,
            order=placed, error=error,
        )  # fmt: skip


async def run(options: argparse.Namespace) -> None:
    with (HERE / "accounts.csv").open(newline="") as file:
        accounts = list(csv.DictReader(file))
    log = JsonLog(options.log)
    shoppers = [Shopper(number, options, accounts, log) for number in range(options.shoppers)]
    stop = stop_event(options.stdin_guard)
    started = time.monotonic()
    # A shopper that fails is a bug: it ends the whole, by the group.
    try:
        async with asyncio.timeout(options.duration), asyncio.TaskGroup() as group:
            tasks = [group.create_task(shopper.run()) for shopper in shoppers]
            await stop.wait()
            for task in tasks:
                task.cancel()
    except TimeoutError:
        pass
    log.close()
    took_s = time.monotonic() - started
    counts = sum((shopper.counts for shopper in shoppers), Counter[str]())
    orders = counts.pop("orders", 0)
    total = counts.total()
    answers = dict(sorted(counts.items()))
    print(json.dumps({"requests": total, "per_s": round(total / took_s, 1), "orders": orders, "answers": answers}))


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--to", required=True, metavar="HOST:PORT", help="the storefront")
    parser.add_argument("--shoppers", type=int, default=6, help="how many at once (default %(default)s)")
    parser.add_argument("--rate", type=float, default=28, help="requests a second, all together (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--for", dest="duration", type=float, metavar="SECONDS", help="stop after this long")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
