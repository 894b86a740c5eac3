"""Whose exchange it is."""

from __future__ import annotations

import base64
import json

import pytest

from capture.session import SessionFinder
from wire.config import ConfigError

KEY = b"k" * 32


def session(sources: list[str], head: bytes, client: str = "1.2.3.4:5", connection: bytes = b"c" * 16) -> bytes:
    return SessionFinder(KEY, sources).of(head, head.lower(), client, connection)


def request(*fields: str) -> bytes:
    return ("GET / HTTP/1.1\r\n" + "".join(f"{field}\r\n" for field in fields) + "\r\n").encode()


def jwt(subject: object, **more: object) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'none'})}.{part({'sub': subject, **more})}.sig"


def test_the_first_that_is_there_holds() -> None:
    sources = ["cookie:Sid", "header:X-User", "connection"]
    by_cookie = session(sources, request("Cookie: a=b; Sid=1", "X-User: u"))
    assert by_cookie == session(sources, request("Cookie: Sid=1"), client="9.9.9.9:1", connection=b"d" * 16)
    by_header = session(sources, request("Cookie: a=b", "x-user: u"))
    assert by_header == session(sources, request("X-USER:u"))
    assert len({by_cookie, by_header, session(sources, request())}) == 3


def test_a_jwt_is_its_subject() -> None:
    default = ["jwt", "client+agent"]
    one = session(default, request(f"Authorization: Bearer {jwt('ann', iat=1)}"))
    assert one == session(default, request(f"authorization: bearer {jwt('ann', iat=2)}"), client="8.8.8.8:1")
    assert one != session(default, request(f"Authorization: Bearer {jwt('bob')}"))


@pytest.mark.parametrize("token", ["opaque", "a.b.c", "..", "é.è.ê", jwt(None), jwt(["x"])])
def test_what_is_no_jwt_is_passed_over(token: str) -> None:
    found = session(["jwt", "client+agent"], request(f"Authorization: Bearer {token}", "User-Agent: x"))
    assert found == session(["client+agent"], request("User-Agent: x"))


def test_client_and_agent_without_the_port() -> None:
    one = session(["client+agent"], request("User-Agent: x"), client="[::1]:1")
    assert one == session(["client+agent"], request("User-Agent: x"), client="[::1]:2")
    assert one != session(["client+agent"], request("User-Agent: y"), client="[::1]:2")
    behind = request("User-Agent: x", "X-Forwarded-For: 7.7.7.7, 10.0.0.1")
    assert session(["client+agent"], behind) == session(["client+agent"], behind, client="6.6.6.6:1")


def test_keys_matter() -> None:
    other = SessionFinder(b"z" * 32, ["connection"]).of(request(), request().lower(), "c", b"c" * 16)
    assert other != session(["connection"], request())


@pytest.mark.parametrize("source", ["jwy", "cookie:", "cookie", "header", "client+agents:x"])
def test_unknown_sources_are_refused(source: str) -> None:
    with pytest.raises(ConfigError, match="source of sessions"):
        SessionFinder(KEY, [source])


def test_without_anything_else_a_session_is_a_connection() -> None:
    one = session(["cookie:sid"], request())
    assert one == session(["cookie:sid"], request(), client="9.9.9.9:9")
    assert one != session(["cookie:sid"], request(), connection=b"d" * 16)
    assert one == session(["connection"], request())
