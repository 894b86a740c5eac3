"""Who Elasticsearch's client says it is, and whom it trusts: the real server behind a front that takes TLS off."""

from __future__ import annotations

import base64
import http.client
import shutil
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from elastic_place import place_of

from analytics.store_address import open_store
from analytics.store_port import StoreError

KEY = "VnVhQ2ZHY0JDZGJrUW0tZTVhT3g6dWkybHAyYXhUTm1zeWFrdzl0dk5udw=="
SUBJECT_ALT = "subjectAltName=IP:127.0.0.1"


class Front(ThreadingHTTPServer):
    """Takes TLS off, keeps what each request says it is, lets in who says `wanted`, and hands on to the server."""

    daemon_threads = True

    def __init__(self, url: str, cert, wanted: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.wanted, self.said = urlsplit(url).netloc, wanted, set[str | None]()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*cert)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: object) -> None:  # a client that does not trust it hangs up
        pass


class _Handler(BaseHTTPRequestHandler):
    server: Front
    protocol_version = "HTTP/1.1"

    def _hand_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        said = self.headers.get("authorization")
        self.server.said.add(said)
        if said != self.server.wanted:
            refused = b'{"error":{"type":"security_exception","reason":"unable to authenticate"},"status":401}'
            return self._answer(401, "application/json", refused)
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "authorization")}
        upstream.request(self.command, self.path, body or None, headers)
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        self._answer(answer.status, answer.headers.get("content-type", "application/json"), data)

    def _answer(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("x-elastic-product", "Elasticsearch")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _hand_on

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def cert(tmp_path_factory):
    """Signed by itself: it is its own authority."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl: sudo apt-get install -y openssl")
    made, key = (tmp_path_factory.mktemp("tls") / name for name in ("cert.pem", "key.pem"))
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(made)]
    subprocess.run(
        [*words, "-days", "2", "-subj", "/CN=tests", "-addext", SUBJECT_ALT], check=True, capture_output=True
    )
    return made, key


@pytest.fixture
def place(request):
    with place_of(request) as made:
        yield made


def front_of(place, cert, wanted):
    front = Front(place.url, cert, wanted)
    return front, f"127.0.0.1:{front.server_port}/{place.name}"


def test_an_api_key_goes_over_tls_to_whom_the_ca_signed(place, cert, monkeypatch):
    front, where = front_of(place, cert, f"ApiKey {KEY}")
    monkeypatch.setenv("LIVEFIRE_ELASTICSEARCH_API_KEY", KEY)
    monkeypatch.setenv("LIVEFIRE_ELASTICSEARCH_CA", str(cert[0]))
    with open_store(f"elasticsearchs://{where}", "run") as store:
        store.set_note("start_s", "5")
    assert front.said == {f"ApiKey {KEY}"}
    with place.open("run") as found:
        assert found.note("start_s") == "5"
    monkeypatch.setenv("LIVEFIRE_ELASTICSEARCH_API_KEY", "d3Jvbmc6a2V5")
    with pytest.raises(StoreError, match=r"refuses the API key \(401\): unable to authenticate") as refused:
        open_store(f"elasticsearchs://{where}", "run")
    assert "d3Jvbmc6a2V5" not in str(refused.value) and "\n" not in str(refused.value)


def test_a_user_goes_over_tls_and_a_wrong_password_is_one_line(place, cert, monkeypatch):
    front, where = front_of(place, cert, "Basic " + base64.b64encode(b"me:s3cret").decode())
    monkeypatch.setenv("LIVEFIRE_ELASTICSEARCH_CA", str(cert[0]))
    monkeypatch.setenv("LF_PASSWORD", "s3cret")
    open_store(f"elasticsearchs://me:LF_PASSWORD@{where}", "run").close()
    assert front.said == {front.wanted}
    monkeypatch.setenv("LF_PASSWORD", "wr0ng")
    with pytest.raises(StoreError, match=r"refuses me \(401\)") as refused:
        open_store(f"elasticsearchs://me:LF_PASSWORD@{where}", "run")
    assert "wr0ng" not in str(refused.value) and "\n" not in str(refused.value)


def test_whom_no_known_authority_signed_is_told_nothing(place, cert, monkeypatch, tmp_path):
    front, where = front_of(place, cert, f"ApiKey {KEY}")
    monkeypatch.setenv("LIVEFIRE_ELASTICSEARCH_API_KEY", KEY)
    with pytest.raises(StoreError, match="TLS: ") as refused:
        open_store(f"elasticsearchs://{where}", "run")
    assert "\n" not in str(refused.value) and front.said == set()
    monkeypatch.setenv("LIVEFIRE_ELASTICSEARCH_CA", str(tmp_path / "none.pem"))
    with pytest.raises(StoreError, match=r"none\.pem: no such file \(LIVEFIRE_ELASTICSEARCH_CA\)"):
        open_store(f"elasticsearchs://{where}", "run")
