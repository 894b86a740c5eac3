import ast
import csv
import json
import os
import re
import secrets
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from shop_rename import rename_fields

import livefire_shadow
from livefire_shadow import HEADER, sign

SHOP = Path(__file__).parents[1] / "examples/shop"
KEY = b"0123456789abcdef"


def marker(run: str) -> str:
    return sign(run, int(time.time()) + 600, "k1", KEY)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Mock:
    """Answers every payment, and keeps what it was asked."""

    def __init__(self, receipt: str) -> None:
        seen: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                seen.append({"path": self.path, "marker": self.headers.get(HEADER), "body": body})
                answer = json.dumps({receipt: "mocked"}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self.seen = seen
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.at = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def names_of(shop: Path) -> dict[str, str]:
    return dict(re.findall(r'^([A-Z_]+) = "([^"]+)"$', (shop / "names.py").read_text(), re.MULTILINE))


class Shop:
    """The processes, started from shop.yaml as the demo starts them."""

    def __init__(self, folder: Path, shop: Path = SHOP, leak: str = "") -> None:
        self.folder, self.shop = folder, shop
        self.n = names_of(shop)
        self.mock = Mock(self.n["RECEIPT"])
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.plan = yaml.safe_load((shop / "shop.yaml").read_text())
        self.places = {"dir": str(folder), "payments.mock": self.mock.at}
        for name in self.plan["services"]:
            self.places[f"{name}.at"] = self.places[f"{name}.via"] = f"127.0.0.1:{free_port()}"
        self.environ = {
            **os.environ,
            "LIVEFIRE_SHADOW_KEYS": f"k1:{KEY.hex()}",
            "LEAK": leak,
            "PYTHONPATH": str(Path(livefire_shadow.__file__).parents[1]),
        }

    def start(self, name: str, run: list[str], *extra: str) -> subprocess.Popen[bytes]:
        filled = [re.sub(r"\{([\w.]+)\}", lambda match: self.places[match[1]], part) for part in run]
        command = [sys.executable, str(self.shop / filled[0]), *filled[1:], *extra]
        with (self.folder / f"{name}.err").open("wb") as errors:
            process = subprocess.Popen(
                command, env=self.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        self.processes[name] = process
        return process

    def start_all(self) -> None:
        for name, service in self.plan["services"].items():
            process = self.start(name, service["run"], "--stdin-guard")
            self.wait_healthy(name, process)

    def wait_healthy(self, name: str, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 30
        while True:
            assert process.poll() is None, (self.folder / f"{name}.err").read_text()
            try:
                with urllib.request.urlopen(f"http://{self.places[f'{name}.at']}/healthz", timeout=30):
                    return
            except OSError:
                assert time.monotonic() < deadline
                threading.Event().wait(0.05)

    def ask(
        self, method: str, target: str, body: Any = None, headers: dict[str, str] | None = None, to: str = "storefront"
    ) -> tuple[int, Any, dict[str, str]]:
        request = urllib.request.Request(f"http://{self.places[f'{to}.at']}{target}", method=method)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                status, content, got = answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as answer:
            status, content, got = answer.code, answer.read(), dict(answer.headers)
        parsed = (
            json.loads(content)
            if "json" in got.get("Content-Type", "") and content.count(b"\n") == 0 and content[:1] == b"{"
            else content
        )
        return status, parsed, got

    def log(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / f"{name}.log").read_text().splitlines()]

    def count(self, database: str, table: str, run: str) -> int:
        with sqlite3.connect(self.folder / f"{database}.db") as connection:
            return int(connection.execute(f"select count(*) from {table} where run = ?", (run,)).fetchone()[0])

    def audit(self, name: str) -> dict[str, Any]:
        status, audit, _ = self.ask("GET", "/.livefire/audit", headers={HEADER: marker("audit")}, to=name)
        assert status == 200
        return audit

    def login(self, marked: dict[str, str]) -> dict[str, str]:
        with (self.shop / "accounts.csv").open(newline="") as file:
            account = next(csv.DictReader(file))
        n = self.n
        known = {n["USER"]: account[n["USER"]], n["PASSWORD"]: account[n["PASSWORD"]]}
        status, answer, got = self.ask("POST", "/login", known, marked)
        assert status == 200
        cookie = got["Set-Cookie"].partition(";")[0]
        assert cookie.startswith(n["COOKIE"] + "=")
        return {"Authorization": f"Bearer {answer[n['TOKEN']]}", "Cookie": cookie, **marked}

    def order(self, auth: dict[str, str]) -> tuple[int, Any]:
        n = self.n
        status, line, _ = self.ask("POST", "/cart", {n["PRODUCT"]: "P0001", n["QUANTITY"]: 2}, auth)
        assert (status, line[n["QUANTITY"]]) == (201, 2)
        return self.ask("POST", "/orders", {n["CARD"]: "4000111122223333", n["NOTE"]: "x"}, auth)[:2]

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()
        self.mock.server.shutdown()
        self.mock.server.server_close()


@contextmanager
def running(folder: Path, shop: Path = SHOP, leak: str = "") -> Iterator[Shop]:
    world = Shop(folder, shop, leak)
    try:
        world.start_all()
        yield world
    finally:
        world.stop()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with running(tmp_path_factory.mktemp("shop")) as world:
        yield world


def walk(shop: Shop, marked: dict[str, str]) -> str:
    """A whole session; the order's id."""
    n = shop.n
    auth = shop.login(marked)
    status, placed = shop.order(auth)
    assert status == 201, placed
    order = placed[n["ORDER"]]
    assert len(order) >= 12
    assert shop.ask("GET", f"/orders/{order}", None, auth)[0:2] == (200, placed)
    assert shop.ask("PATCH", f"/orders/{order}", {n["NOTE"]: "gift"}, auth)[1][n["NOTE"]] == "gift"
    line = shop.ask("POST", "/cart", {n["PRODUCT"]: "P0002"}, auth)[1][n["LINE"]]
    assert shop.ask("PUT", f"/cart/{line}", {n["QUANTITY"]: 5}, auth)[1][n["QUANTITY"]] == 5
    assert [row[n["LINE"]] for row in shop.ask("GET", "/cart", None, auth)[1][n["LINES"]]] == [line]
    assert shop.ask("DELETE", f"/cart/{line}", None, auth)[0] == 204
    assert shop.ask("GET", "/cart", None, auth)[1][n["LINES"]] == []
    return str(order)


def test_production_and_stress_are_kept_apart_down_to_the_rows(shop: Shop) -> None:
    run = f"run-{secrets.token_hex(4)}"
    marked = {HEADER: marker(run)}
    before = len(shop.log("payments"))
    live = walk(shop, {})
    stressed = walk(shop, marked)

    assert (shop.count("orders", "orders", ""), shop.count("orders", "orders", run)) == (1, 0)
    for table, rows in (("orders", 1), ("order_lines", 1), ("order_events", 2)):
        assert shop.count("orders", table, "") == shop.count("orders-shadow", table, run) == rows
        assert shop.count("orders", table, run) == shop.count("orders-shadow", table, "") == 0

    # Payments was asked once, by production; the mock once, with the very marker.
    paid = [line for line in shop.log("payments")[before:] if line["method"] == "POST"]
    assert [(line["target"], line["marked"], line["run"]) for line in paid] == [("/payments", False, "")]
    assert [(row["path"], row["marker"]) for row in shop.mock.seen] == [("/payments", marked[HEADER])]
    assert {line["run"] for line in shop.log("storefront") if line["marked"]} == {run}
    assert {line["run"] for line in shop.log("orders") if line["marked"]} == {run}

    orders = shop.audit("orders")
    assert orders["violations"] == orders["blocked_outbound"] == []
    assert (orders["lost_context"], orders["mocked"]) == (0, {shop.places["payments.via"]: 1})
    assert orders["shadow_writes"]["orders"] == 5 and orders["production_writes"] == 5 + 4
    assert shop.audit("storefront")["propagated"] == 3

    # An order of production does not exist for stress, nor the other way round.
    assert shop.ask("GET", f"/orders/{live}", None, shop.login(marked))[0] == 404
    assert shop.ask("GET", f"/orders/{stressed}", None, shop.login({}))[0] == 404


def test_a_token_is_worth_nothing_elsewhere(shop: Shop) -> None:
    first, second = {HEADER: marker("run-a")}, {HEADER: marker("run-b")}
    live, stress = shop.login({}), shop.login(first)
    assert shop.ask("GET", "/cart", None, live)[0] == 200
    assert shop.ask("GET", "/cart", None, {**live, **first})[0] == 401
    assert shop.ask("GET", "/cart", None, {**stress, **second})[0] == 401
    assert shop.ask("GET", "/cart", None, {key: stress[key] for key in ("Authorization", "Cookie")})[0] == 401
    assert shop.ask("GET", "/cart", None, {**live, "Cookie": shop.login({})["Cookie"]})[0] == 401
    n = shop.n
    assert shop.ask("POST", "/login", {n["USER"]: "nobody@shop.example", n["PASSWORD"]: "x"})[0] == 401
    assert shop.ask("POST", "/login", {n["USER"]: "amber@shop.example", n["PASSWORD"]: "x"})[0] == 401


def test_a_bad_marker_is_refused_by_both_services_and_writes_nothing(shop: Shop) -> None:
    for bad in ("", "1", sign("r", int(time.time()) + 60, "k1", b"some other key.."), marker("r") + "0"):
        for to in ("storefront", "orders"):
            assert shop.ask("GET", "/products", None, {HEADER: bad}, to)[0] == 403
    assert shop.ask("GET", "/.livefire/audit")[0] == 403


def test_the_third_partys_log_shows_a_marker_that_got_through(shop: Shop) -> None:
    # The negative control for counting marked lines there.
    shop.ask("POST", "/payments", {}, {HEADER: marker("run-leak")}, "payments")
    # aiohttp logs a request just after its answer has left.
    deadline = time.monotonic() + 30
    while not (lines := [line for line in shop.log("payments") if line["run"] == "run-leak"]):
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    assert [line["marked"] for line in lines] == [True]


def test_special_answers(shop: Shop) -> None:
    status, _, got = shop.ask("GET", "/catalog")
    assert status == 200 and int(got["Content-Length"]) > 250_000
    _, _, got = shop.ask("GET", "/catalog", None, {"Accept-Encoding": "gzip"})
    assert got["Content-Encoding"] == "gzip" and int(got["Content-Length"]) < 150_000
    status, feed, got = shop.ask("GET", "/feed")
    assert got["Transfer-Encoding"] == "chunked" and "Content-Length" not in got and len(feed.splitlines()) == 6
    status, _, got = shop.ask("GET", "/static/logo")
    assert shop.ask("GET", "/static/logo", None, {"If-None-Match": got["ETag"]})[0:2] == (304, b"")
    status, _, got = shop.ask("HEAD", "/products/P0001")
    assert status == 200 and int(got["Content-Length"]) > 100
    assert shop.ask("GET", "/products/P9999")[0] == 404
    assert len(shop.ask("GET", f"/search?{shop.n['QUERY']}=oak")[1][shop.n["PRODUCTS"]]) == 10
    assert len(shop.ask("GET", f"/recommendations?{shop.n['PRODUCT']}=P0001")[1][shop.n["PRODUCTS"]]) == 5


def test_a_forgotten_shadow_fails_and_names_the_place(tmp_path: Path) -> None:
    with running(tmp_path, leak="1") as shop:
        assert shop.order(shop.login({}))[0] == 201
        assert shop.order(shop.login({HEADER: marker("run-x")}))[0] == 500
        (violation,) = shop.audit("orders")["violations"]
        assert re.fullmatch(r"shop/orders\.py:\d+ record_event", violation["place"])
        assert violation["kind"] == "production_under_stress"
        assert violation["store"].endswith("/orders.db")
        assert shop.count("orders", "order_events", "run-x") == 0


def test_a_leak_past_the_library_is_seen_only_by_sql(tmp_path: Path) -> None:
    with running(tmp_path, leak="raw") as shop:
        assert shop.order(shop.login({HEADER: marker("run-x")}))[0] == 201
        assert shop.audit("orders")["violations"] == []
        assert shop.count("orders", "order_events", "run-x") == 1


def test_shoppers_walk_through_everything_and_stop_when_stdin_closes(tmp_path: Path) -> None:
    with running(tmp_path) as shop:
        production = shop.plan["production"]["run"]
        options = ["--stdin-guard", "--rate", "120", "--shoppers", "8"]
        process = shop.start("shoppers", production, *options)
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            path = tmp_path / "shoppers.log"
            if path.exists() and path.read_text().count('"PATCH"') >= 2 and path.read_text().count("/feed") >= 1:
                break
            assert process.poll() is None, (tmp_path / "shoppers.err").read_text()
            threading.Event().wait(0.1)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.stdin = None
        assert process.wait(10) == 0
        said = json.loads(process.stdout.read())
        sent = [json.loads(line) for line in path.read_text().splitlines()]
        assert said["requests"] == len(sent)
        assert {row["status"] for row in sent} <= {200, 201, 204, 304, 401}
        assert {row["method"] for row in sent} == {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}
        placed = [row["order"] for row in sent if row["order"]]
        assert said["orders"] == len(placed) > 0
        # A request that was cut off at the end may have arrived all the same.
        assert 0 <= len([row for row in shop.log("storefront") if row["target"] != "/healthz"]) - len(sent) <= 8
        assert 0 <= shop.count("orders", "orders", "") - len(placed) <= 8

        for name in ("storefront", "orders", "payments"):
            service = shop.processes[name]
            if name == "orders":
                service.terminate()
            else:
                assert service.stdin is not None
                service.stdin.close()
                service.stdin = None
            assert service.wait(10) == 0, name
            assert (tmp_path / f"{name}.err").read_text() == ""


def test_the_shop_serves_a_session_under_other_names(tmp_path: Path) -> None:
    renamed = rename_fields(SHOP, tmp_path / "copy", 5)
    old = names_of(SHOP)
    new = names_of(tmp_path / "copy")
    assert new == {constant: renamed[name] for constant, name in old.items()}
    assert set(old.values()).isdisjoint(new.values())
    assert yaml.safe_load((tmp_path / "copy/mask.yaml").read_text())["fields"] == [new["PASSWORD"], new["CARD"]]
    (tmp_path / "run").mkdir()
    with running(tmp_path / "run", tmp_path / "copy") as shop:
        walk(shop, {})
        walk(shop, {HEADER: marker("run-1")})
        said = json.dumps(shop.mock.seen)
        assert not any(f'"{name}":' in said for name in ("card_number", "amount_cents"))


def test_field_names_stand_in_one_module() -> None:
    """A literal beside names.py would survive the renaming, and hide that something depends on it."""
    # Words that the shop's code also uses for other things (a logger's fields, attributes of HTTP).
    elsewhere = {"status", "order", "user", "line", "lines", "product", "products", "orders", "text", "error", "stock"}
    telling = set(names_of(SHOP).values()) - elsewhere
    for path in SHOP.glob("*.py"):
        if path.name in ("names.py", "tables.py"):
            continue
        literals = {
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not literals & telling, path.name
