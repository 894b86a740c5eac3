"""Traffic of an application whose every name is drawn by a seed: what is learned from it cannot come from a name."""

from __future__ import annotations

import gzip
import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from wire.records import Exchange, Request, Response

START_NS = 1_800_000_000_000_000_000
MS = 1_000_000


@dataclass
class Names:
    """Every name that the application uses, none of which means anything."""

    user: str
    password: str
    token: str
    cookie: str
    header: str
    wrapper: str
    order: str
    lines: str
    line: str
    product: str
    amount: str
    echo: str
    page: str
    number: str


@dataclass
class Trace:
    names: Names
    exchanges: list[Exchange]
    secrets: set[str] = field(default_factory=set)


def draw_names(rng: random.Random) -> Names:
    fields = list(Names.__dataclass_fields__)
    drawn: set[str] = set()
    while len(drawn) < len(fields):
        drawn.add("".join(rng.choices("bcdfghjklmnpqrstvwxz", k=9)))
    return Names(*sorted(drawn, key=lambda _: rng.random()))


def urlsafe(rng: random.Random, n: int) -> str:
    alphabet = string.ascii_letters + string.digits
    return "".join(rng.choices(alphabet, k=n - 6)) + "a1B2c3"  # never without digits or mixed case


def make(seed: int, sessions: int = 12, names: Names | None = None) -> Trace:
    rng = random.Random(seed)
    names = draw_names(rng) if names is None else names
    trace = Trace(names, [])
    plans: list[tuple[int, list[Callable[[], None]]]] = []
    clock = [START_NS]
    serials = iter(range(1, 1 << 20))
    orders = iter(range(1000, 1 << 20))
    catalogue = [f"sku-{rng.randrange(10**6):06d}" for _ in range(12)]

    def session(number: int) -> list[Callable[[], None]]:
        me = number.to_bytes(16, "big")
        state: dict[str, Any] = {"token": "", "cookie": "", "crumb": "", "order": "", "lines": [], "serial": 0}
        user, password = f"person{number}@mail.example", f"{urlsafe(rng, 11)}!{number}"

        def send(
            method: str,
            target: str,
            status: int,
            answer: Any,
            body: Any = None,
            more: tuple[str, ...] = (),
            answer_more: tuple[str, ...] = (),
        ) -> None:
            content = json.dumps(body).encode() if body is not None else b""
            lines = [f"{method} {target} HTTP/1.1", "Host: app.test", "User-Agent: browser/1.0", *more]
            if state["token"]:
                lines += [
                    f"Authorization: Bearer {state['token']}",
                    f"Cookie: theme=dark; {names.cookie}={state['cookie']}",
                ]
            if content:
                lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
            out = json.dumps(answer).encode()
            zipped = rng.random() < 0.3
            if zipped:
                out = gzip.compress(out, mtime=0)
            head = [
                f"HTTP/1.1 {status} OK",
                "Content-Type: application/json",
                *answer_more,
                f"Content-Length: {len(out)}",
            ]
            head += ["Content-Encoding: gzip"] if zipped else []
            clock[0] += rng.randrange(1, 20) * MS
            start = clock[0]
            trace.exchanges.append(
                Exchange(
                    next(serials).to_bytes(16, "big"),
                    me,
                    me,
                    f"10.0.0.{number}:50000",
                    "10.1.0.1:8080",
                    Request("\r\n".join([*lines, "", ""]).encode(), content, len(content)),
                    Response(status, "\r\n".join([*head, "", ""]).encode(), out, len(out)),
                    start,
                    start + 1,
                    start + MS // 2,
                    start + MS // 2 + 1,
                )
            )

        def login() -> None:
            token, cookie = urlsafe(rng, 32), urlsafe(rng, 24)
            trace.secrets |= {token, cookie, password, user}
            send("POST", "/enter", 200, {names.wrapper: {names.token: token}, names.user: user},
                 {names.user: user, names.password: password},
                 answer_more=(f"Set-Cookie: {names.cookie}={cookie}; Path=/; HttpOnly",))  # fmt: skip
            state.update(token=token, cookie=cookie)

        def browse() -> None:
            page = rng.randint(1, 9)
            items = [{names.product: sku, names.amount: rng.randint(100, 9999), names.number: rng.randint(1, 9)}
                     for sku in catalogue]  # fmt: skip
            state["crumb"] = crumb = urlsafe(rng, 20)
            trace.secrets.add(crumb)
            send("GET", f"/things?{names.page}={page}", 200, {names.lines: items, names.page: page},
                 answer_more=(f"X-{names.header}: {crumb}",))  # fmt: skip

        def add() -> None:
            sku, count, line = rng.choice(catalogue), rng.randint(1, 9), f"{rng.getrandbits(64):016x}a1"
            state["lines"].append(line)
            send("POST", "/basket", 201, {names.line: line, names.product: sku, names.number: count},
                 {names.product: sku, names.number: count}, more=(f"X-{names.header}: {state['crumb']}",))  # fmt: skip

        def change() -> None:
            send(
                "PUT",
                f"/basket/{rng.choice(state['lines'])}",
                200,
                {names.number: 2},
                {names.number: rng.randint(1, 9)},
            )

        def order() -> None:
            state["order"] = urlsafe(rng, 16)
            state["serial"] = next(orders)
            items = [{names.line: line} for line in state["lines"]]
            send("POST", "/buys", 201, {names.wrapper: {names.order: state["order"]}, names.echo: state["serial"],
                                        names.lines: items}, {names.echo: f"ref-{rng.randrange(10**9):09d}"})  # fmt: skip

        def look() -> None:
            send("GET", f"/buys/{state['order']}", 200, {names.order: state["order"], names.echo: state["serial"]})
            send("GET", f"/bills/{state['serial']}", 200, {names.amount: rng.randint(100, 9999)})

        def note() -> None:
            send("PATCH", f"/buys/{state['order']}?{names.page}=1", 200, {names.number: 1},
                 {names.wrapper: {names.order: state["order"]}})  # fmt: skip

        return [login, browse, add, add, change, browse, add, order, look, note, look]

    for number in range(1, sessions + 1):
        plans.append((number, session(number)))
    while plans:
        index = rng.randrange(min(len(plans), 5))
        plans[index][1].pop(0)()
        if not plans[index][1]:
            plans.pop(index)
    return trace
