"""`livefire kibana`: what is sent, and what each answer means. The server here is no Kibana: it takes the request apart as
Kibana does (multipart, header, space, rules of `kibana_rules`) and answers in the shapes that Kibana's API describes.
"""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kibana_rules import problems
from test_analytics_kibana import known_fields

from analytics.kibana.dashboards import exported
from livefire import cli

KEY = "VnVhQ2ZHY0JDZGJrUW0tZTVhT3g6dWkybHAyYXhUTm1zeWFrdzl0dk5udw=="
Answer = tuple[int, dict[str, str], bytes]


class Said(NamedTuple):
    code: int
    out: str
    err: str


class Standing(ThreadingHTTPServer):
    """Takes imports by Kibana's rules; `answer` instead of its own, if given."""

    daemon_threads = True

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.objects: dict[tuple[str, str, str], Any] = {}  # space, type, id
        self.answer: Answer | None = None
        self.key = ""
        self.scheme = "http"
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.scheme = "https"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: Any) -> None:  # a client that does not trust it hangs up
        pass

    @property
    def address(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    def take(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        self.seen.append((path, headers, body))
        if self.answer:
            return self.answer
        if "kbn-xsrf" not in headers:
            return refused(400, "Request must contain a kbn-xsrf header.")
        if self.key and headers.get("authorization") != f"ApiKey {self.key}":
            return refused(401, "[security_exception] unable to authenticate")
        space, _, rest = path.removeprefix("/s/").partition("/api/") if path.startswith("/s/") else ("", "", path[5:])
        if rest != "saved_objects/_import?overwrite=true" or space not in ("", "ops"):
            return refused(404, "Not Found")
        part = part_of(headers["content-type"], body)
        if part.get_param("name", header="content-disposition") != "file":
            return refused(400, "[request body.file]: expected value of type [Stream] but got [undefined]")
        if not str(part.get_filename()).endswith(".ndjson"):
            return refused(400, "Invalid file extension")
        text = bytes(part.get_payload(decode=True) or b"").decode()
        name = "shop" if '"id":"shop-' in text else "livefire"
        told = problems(text, known_fields(name))
        if told:
            return refused(400, told[0])
        found = [json.loads(line) for line in text.splitlines()]
        for each in found:
            self.objects[space, each["type"], each["id"]] = each
        return answered({"success": True, "successCount": len(found), "successResults": [], "warnings": []})


class _Answers(BaseHTTPRequestHandler):
    server: Standing

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, more, data = self.server.take(self.path, headers, body)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **more}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def part_of(content_type: str, body: bytes) -> Message:
    whole = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    (part,) = whole.iter_parts()  # type: ignore[attr-defined]
    return part  # type: ignore[no-any-return]


def answered(reply: object, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(reply).encode()


def refused(status: int, message: str) -> Answer:
    return answered({"statusCode": status, "error": "Bad Request", "message": message}, status)


@pytest.fixture
def standing() -> Iterator[Standing]:
    server = Standing()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def livefire(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Said]:
    monkeypatch.chdir(tmp_path)
    for name in ("LIVEFIRE_KIBANA", "LIVEFIRE_KIBANA_API_KEY", "LIVEFIRE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")

    def run(*arguments: object) -> Said:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["livefire", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capfd.readouterr()
        assert "Traceback" not in said.err
        return Said(int(ended.value.code or 0), said.out, said.err)

    return run


def test_install_puts_everything_in_and_again_over_it(standing: Standing, livefire: Callable[..., Said]) -> None:
    for _ in range(2):
        said = livefire("kibana", "install", standing.address)
        assert said == (
            0,
            f"{standing.address}: 40 objects are in\nopen {standing.address}/app/dashboards#/view/livefire-dashboard-drill\n",
            "",
        )
    assert len(standing.objects) == 40 == exported().count("\n")
    path, headers, body = standing.seen[0]
    assert path == "/api/saved_objects/_import?overwrite=true"
    assert headers["kbn-xsrf"] and "authorization" not in headers
    assert part_of(headers["content-type"], body).get_payload(decode=True) == exported().encode()


def test_into_a_space_with_the_key_of_the_environment(
    standing: Standing, livefire: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    standing.key = KEY
    monkeypatch.setenv("LIVEFIRE_KIBANA_API_KEY", KEY)
    monkeypatch.setenv("LIVEFIRE_KIBANA", standing.address)
    said = livefire("kibana", "install", "--space", "ops", "--name", "shop")
    assert (said.code, said.err) == (0, "")
    assert {space for space, _, _ in standing.objects} == {"ops"}
    assert ("ops", "dashboard", "shop-dashboard-drill") in standing.objects
    assert f"open {standing.address}/s/ops/app/dashboards#/view/shop-dashboard-drill" in said.out
    assert KEY not in said.out
    monkeypatch.delenv("LIVEFIRE_KIBANA_API_KEY")
    said = livefire("kibana", "install", standing.address + "/s/ops")
    assert said == (2, "", f"livefire: {standing.address}/s/ops: Kibana wants an API key\n")


ERRORS = {
    "success": False,
    "successCount": 37,
    "errors": [
        {
            "type": "lens",
            "id": "livefire-panel-load",
            "meta": {"title": "Load"},
            "error": {"type": "missing_references", "references": [{"type": "index-pattern", "id": "gone"}]},
        },
        {"type": "dashboard", "id": "d", "error": {"type": "conflict"}},
        {"type": "map", "id": "m", "title": "M", "error": {"type": "unsupported_type"}},
        {
            "type": "lens",
            "id": "l",
            "error": {"type": "unknown", "statusCode": 422, "message": "belongs to\na more recent version of Kibana"},
        },
        {
            "type": "lens",
            "id": "x",
            "error": {"type": "ambiguous_conflict", "destinations": [{"id": "y"}, {"id": "z"}]},
        },
    ],
}


@pytest.mark.parametrize(
    ("answer", "lines"),
    [
        (
            answered(ERRORS),
            [
                "lens livefire-panel-load (Load): refers to what is not there: index-pattern gone",
                "dashboard d: is there already, and was not overwritten",
                "map m (M): this Kibana does not know the type",
                "lens l: belongs to a more recent version of Kibana",
                "lens x: several like it are there already: y, z",
            ],
        ),
        (answered({"success": True, "successCount": 39}), ["Kibana took 39 of 40 objects and does not say why"]),
        (answered({"success": False}), ["Kibana took None of 40 objects and does not say why"]),
        (answered({}), ["Kibana took None of 40 objects and does not say why"]),
        (refused(400, "Non-unique import objects\ndetected: [x]"), ["Kibana refuses the import: Non-unique import"]),
        (refused(500, "Cannot read properties"), ["Kibana refuses the import: Cannot read properties"]),
        (refused(403, "Forbidden"), ["the API key is not allowed to write saved objects here; it needs Saved Objects"]),
        (refused(401, "no"), ["Kibana does not accept the API key"]),
        (refused(404, "Not Found"), ["no such space, or no Kibana, there"]),
        ((200, {}, b"<html>"), ["answers 200 with something that is no JSON; is that a Kibana?"]),
        ((200, {}, b"[]"), ["answers 200 with something that is no JSON"]),
        ((502, {}, b"bad gateway"), ["answers 502 with something that is no JSON"]),
        # Elasticsearch's words, at whose address one may easily knock.
        (
            (400, {}, b'{"error":"no handler found for uri [/api/saved_objects/_import] and method [POST]"}'),
            ["answers 400, and not as Kibana does; is that Kibana's address, or Elasticsearch's?"],
        ),
        ((302, {"Location": "/login?next=x"}, b""), ["redirects to /login?next=x, which is not followed"]),
    ],
)
def test_what_goes_wrong_is_a_line_each(
    standing: Standing, livefire: Callable[..., Said], answer: Answer, lines: list[str]
) -> None:
    standing.answer = answer
    said = livefire("kibana", "install", standing.address, "--api-key", KEY)
    assert (said.code, said.out) == (2, "")
    told = said.err.removeprefix("livefire: ").splitlines()
    assert len(told) == len(lines)
    for found, wanted in zip(told, lines, strict=True):
        assert found.startswith(f"{standing.address}: {wanted}")
    assert KEY not in said.err
    assert len(standing.seen) == 1  # a redirect was not followed
    assert standing.seen[0][1]["authorization"] == f"ApiKey {KEY}"


def test_a_broken_file_is_refused_by_the_rules(standing: Standing) -> None:
    from livefire.errors import UserError
    from livefire.kibana import import_objects

    broken = exported().replace('"livefire.offered"', '"livefire.offred"')
    with pytest.raises(UserError, match=r"Kibana refuses the import: .*no field livefire\.offred"):
        import_objects(standing.address, broken)
    assert not standing.objects


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "which Kibana? livefire kibana install https://kibana.example:5601"),
        (["kibana:5601"], "kibana 'kibana:5601' is no address; give one like https://kibana.example:5601"),
        (["https://me:secret@k:5601"], "kibana at k: no user and password in the address; make an API key"),
        (["http://kibana.example:5601", "--api-key", KEY], "an API key is not sent without TLS"),
        (["http://127.0.0.1:1", "--api-key", "two words"], "the API key is none: it is one word"),
        (["http://127.0.0.1:1"], "http://127.0.0.1:1: cannot be reached: "),
    ],
)
def test_wrong_input_is_one_line(livefire: Callable[..., Said], arguments: list[str], told: str) -> None:
    said = livefire("kibana", "install", *arguments)
    assert (said.code, said.out) == (2, "")
    assert told in said.err and said.err.count("\n") == 1
    assert KEY not in said.err and "secret" not in said.err


def test_tls_with_an_own_authority(livefire: Callable[..., Said], tmp_path: Path) -> None:
    authority, certificate = authority_of(tmp_path)
    server = Standing(certificate)
    server.key = KEY
    try:
        said = livefire("kibana", "install", server.address, "--api-key", KEY, "--ca", authority)
        assert (said.code, said.err) == (0, "")
        assert len(server.objects) == 40
        for without in ([], ["--ca", __file__]):
            said = livefire("kibana", "install", server.address, "--api-key", KEY, *without)
            assert said.code == 2 and said.err.count("\n") == 1
            assert ("name its authority: --ca FILE" if not without else "holds no certificate (PEM)") in said.err
        said = livefire("kibana", "install", server.address.replace("https", "http"), "--api-key", KEY)
        assert said.code == 2 and said.err.count("\n") == 1
        assert len(server.seen) == 1
    finally:
        server.shutdown()
        server.server_close()


def authority_of(folder: Path) -> tuple[Path, tuple[Path, Path]]:
    """An authority's certificate, and a server's with its key; by the openssl command."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl: sudo apt-get install -y openssl")
    key, request, authority_key = folder / "key.pem", folder / "request.pem", folder / "authority-key.pem"
    authority, certificate, names = folder / "authority.pem", folder / "certificate.pem", folder / "names"
    names.write_text("subjectAltName=IP:127.0.0.1\n")
    new = ["req", "-newkey", "rsa:2048", "-nodes"]
    for arguments in (
        [*new, "-x509", "-subj", "/CN=authority", "-keyout", authority_key, "-out", authority, "-days", "2"],
        [*new, "-subj", "/CN=kibana", "-keyout", key, "-out", request],
        ["x509", "-req", "-in", request, "-CA", authority, "-CAkey", authority_key, "-CAcreateserial"],
    ):
        if arguments[0] == "x509":
            arguments += ["-out", certificate, "-days", "2", "-extfile", names]
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)
    return authority, (certificate, key)


def test_export(livefire: Callable[..., Said], tmp_path: Path) -> None:
    assert livefire("kibana", "export") == (0, exported(), "")
    said = livefire("kibana", "export", "--to", "out.ndjson", "--name", "shop")
    assert said == (0, "out.ndjson: 40 objects\n", "")
    assert (tmp_path / "out.ndjson").read_text("utf-8") == exported("shop")
    assert livefire("kibana", "export", "--to", "absent/out.ndjson").err == (
        "livefire: absent/out.ndjson: there is no folder absent\n"
    )
