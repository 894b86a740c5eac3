"""The port of importers: what other tools' files hold, one exchange or one reject at a time.

An importer is a generator of `Entry` and `Reject`: every line or entry of its file gives exactly one of the two, in the
file's order, so that its ledger balances by itself. It raises ConfigError only for a file that is not of its kind.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

import msgspec

from wire.records import Fault, Framing, Request, Response

NOBODY: Final = "0.0.0.0:0"  # an address that the file does not tell
#: Of a body that is not in the file, and whose length is not either; see `Request.truncated_bytes`.
UNKNOWN: Final = -1
#: Methods whose requests have no body as a rule; of all others a log leaves open whether they had one.
BODILESS: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"DELETE"})
_PATH: Final = re.compile(r"[/?]")


class Entry(msgspec.Struct, frozen=True):
    """One exchange, as far as the file tells. Times in ns since 1970, 0 = not known."""

    place: int  # line, or number of the entry, from 1
    request: Request
    response: Response | None
    request_start_ns: int
    request_end_ns: int = 0
    response_start_ns: int = 0
    response_end_ns: int = 0
    client: str = NOBODY
    server: str = NOBODY
    connection: str = ""  # the file's own name of it; "" = each exchange has its own
    protocol: str = "http/1"
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()  # what the account should count beside it


class Reject(msgspec.Struct, frozen=True):
    """What gives no exchange."""

    place: int
    reason: str  # of a small set for each importer
    why: str  # for people: what is wrong with it, and nothing of what is in it: that may be a secret
    intentional: bool = False  # no traffic that could be replayed, and nothing is wrong


def checked(found: Entry | Reject) -> Entry | Reject:
    """An entry that a record can hold: of a time or length beyond 63 bits, or a name that is no text, a reject."""
    if isinstance(found, Reject):
        return found
    request, response = found.request, found.response
    numbers = [found.request_start_ns, found.request_end_ns, found.response_start_ns, found.response_end_ns]
    numbers += [request.body_bytes, request.truncated_bytes]
    numbers += [response.body_bytes, response.truncated_bytes] if response is not None else []
    if min(numbers) < UNKNOWN or max(numbers) >> 63:
        return Reject(found.place, "bad_value", "a time or a length that nothing can have")
    try:
        f"{found.client}{found.server}{found.connection}".encode()
    except UnicodeEncodeError:
        return Reject(found.place, "bad_value", "an address that is no text")
    return found


def request_without_body(head: bytes, method: bytes, known_bytes: int = UNKNOWN) -> tuple[Request, bool]:
    """A request whose body is not in the file; whether one is missing, or may be. `known_bytes`: its length."""
    if known_bytes == 0 or (known_bytes < 0 and method in BODILESS):
        return Request(head), False
    if known_bytes < 0:
        return Request(head, truncated_bytes=UNKNOWN), True
    return Request(head, b"", known_bytes, Framing.LENGTH, 0, known_bytes), True


def response_without_body(status: int, head: bytes, body_bytes: int) -> Response:
    """An answer of which only the length is known; `body_bytes` below 0: not even that."""
    if body_bytes < 0:
        return Response(status, head, truncated_bytes=UNKNOWN)
    return Response(status, head, b"", body_bytes, Framing.LENGTH if body_bytes else Framing.NONE, 0, body_bytes)


def address(host: str, port: str | int = 0) -> str:
    """`ip:port`, IPv6 in brackets; NOBODY for an empty one."""
    host = host.strip().strip("[]")
    if not host or host == "-":
        return NOBODY if not port else f"0.0.0.0:{port}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def origin_of(url: str) -> tuple[str, str]:
    """(target in origin-form, authority) of one in absolute-form, as it was sent but for a fragment: an empty query
    is one, too. Raises ValueError."""
    authority = urlsplit(url).netloc.rpartition("@")[2]
    rest = url.partition("://")[2].partition("#")[0]
    begin = _PATH.search(rest)
    path = rest[begin.start() :] if begin is not None else ""
    return path if path.startswith("/") else f"/{path}", authority
