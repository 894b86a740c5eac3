"""Whose exchange it is: a keyed hash of the first thing in a configured list that a request carries.

Made before masking, so that two values that mask alike stay apart; keyed, so that the value cannot be guessed from
the recording.
No name of any application is known here: names come from the settings.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from wire.config import ConfigError, suggestion
from wire.ids import session_id

#: (head, head in lower case, client "ip:port", connection id) -> value, or None when it is not there
Finder = Callable[[bytes, bytes, str, bytes], bytes | None]

MAX_CACHED: Final = 4096
_KNOWN = ["jwt", "cookie:NAME", "header:NAME", "client+agent", "client", "connection"]


class SessionFinder:
    """`CaptureSettings.sessions`, compiled. Raises ConfigError for a source that is not known."""

    def __init__(self, key: bytes, sources: Sequence[str]) -> None:
        self._key = key
        self._known: dict[tuple[str, bytes], bytes] = {}
        self._finders = [(source.lower(), _finder(source)) for source in sources]

    def of(self, head: bytes, low: bytes, client: str, connection: bytes) -> bytes:
        """The session id (16 bytes) of a request, its head given as it is, and in lower case (or only its end, from the
        newline before the first field on). The connection's own where nothing else is found."""
        for source, find in self._finders:
            value = find(head, low, client, connection)
            if value:
                return self._id(source, value)
        return self._id("connection", connection)

    def _id(self, source: str, value: bytes) -> bytes:
        found = self._known.get((source, value))
        if found is None:
            if len(self._known) >= MAX_CACHED:
                self._known.clear()
            found = self._known[source, value] = session_id(self._key, source, value)
        return found


def _finder(source: str) -> Finder:
    kind, _, name = source.partition(":")
    kind = kind.lower()
    if kind in ("cookie", "header") and name:
        if kind == "cookie":
            return _cookie(name.encode("latin-1", "replace"))
        return _header(name.lower().encode("latin-1", "replace"))
    if not name:
        if kind == "jwt":
            return _jwt
        if kind == "client+agent":
            return _client_agent
        if kind == "client":
            return lambda head, low, client, connection: _address(client)
        if kind == "connection":
            return lambda head, low, client, connection: connection
    raise ConfigError(f"sessions: {source!r} is not a source of sessions{suggestion(source, _KNOWN)}")


def _field(head: bytes, low: bytes, name: bytes) -> bytes | None:
    """`name` as it stands in `low`: behind a newline, before a colon."""
    at = low.find(name)
    if at < 0:
        return None
    start = at + len(name) + len(head) - len(low)
    end = head.find(b"\n", start)
    return head[start : end if end >= 0 else len(head)].strip()


def _header(name: bytes) -> Finder:
    line = b"\n" + name + b":"
    return lambda head, low, client, connection: _field(head, low, line)


def _cookie(name: bytes) -> Finder:
    def find(head: bytes, low: bytes, client: str, connection: bytes) -> bytes | None:
        for part in (_field(head, low, b"\ncookie:") or b"").split(b";"):
            found, _, value = part.strip().partition(b"=")
            if found == name:
                return value.strip(b'"')
        return None

    return find


def _jwt(head: bytes, low: bytes, client: str, connection: bytes) -> bytes | None:
    value = _field(head, low, b"\nauthorization:")
    if value is None or value[:7].lower() != b"bearer ":
        return None
    return _subject(value[7:].strip())


@lru_cache(4096)
def _subject(token: bytes) -> bytes | None:
    """The subject of a JWT (RFC 7519 section 4.1.2); nothing is verified."""
    parts = token.split(b".")
    if len(parts) != 3:
        return None
    try:
        claims: Any = msgspec.json.decode(binascii.a2b_base64(parts[1].translate(_URL_SAFE) + b"=="))
    except (binascii.Error, msgspec.DecodeError, ValueError):
        return None
    subject = claims.get("sub") if isinstance(claims, dict) else None
    return str(subject).encode("utf-8", "replace") if isinstance(subject, str | int) else None


_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def _address(client: str) -> bytes:
    return client.rpartition(":")[0].encode()


def _client_agent(head: bytes, low: bytes, client: str, connection: bytes) -> bytes:
    """The client's address (the first hop that a proxy names, if one does) and its User-Agent."""
    forwarded = _field(head, low, b"\nx-forwarded-for:")
    address = forwarded.split(b",")[0].strip() if forwarded else _address(client)
    return address + b"\0" + (_field(head, low, b"\nuser-agent:") or b"")
