"""Which part of the traffic is recorded: a share of the sessions, or requests of a kind.

A share of the sessions goes by the session's id alone, so all recorders with one masking key take the same sessions,
each of them whole, and a smaller share is a part of a larger one. It is part of the recording's scale. Kinds of
requests (method, path, header, cookie) are not: of them the recording holds all that passed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from capture.message import Message, values_of
from capture.settings import SampleSettings
from wire import head
from wire.config import ConfigError

#: Asked of a request; the reason for which it is left out, "" to keep it.
Filter = Callable[[Message], str]

NOT_SAMPLED: Final = "not_sampled"
_METHOD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_WILD = re.compile(r"\*\*|\*|\{[^{}/]*\}")


class SessionSample:
    """A share of all sessions, by bytes of the id that shedding does not look at: the one says nothing of the other."""

    def __init__(self, share: float) -> None:
        self._below = round(share * (1 << 32))

    def holds(self, session_id: bytes) -> bool:
        return int.from_bytes(session_id[4:8], "big") < self._below


def sampled(share: float, sheds: Callable[[bytes], str] | None) -> Callable[[bytes], str] | None:
    """Asked of a session id: why it is not recorded. `sheds` is asked of those in the sample; None: all are kept."""
    if share >= 1:
        return sheds
    holds = SessionSample(share).holds

    def why(session_id: bytes) -> str:
        if not holds(session_id):
            return NOT_SAMPLED
        return sheds(session_id) if sheds is not None else ""

    return why


def filter_of(settings: SampleSettings) -> Filter | None:
    """None when every request is wanted. Of one kind any may hold, of each kind that is given one must. Raises
    ConfigError."""
    tests: list[tuple[str, Callable[[Message], bool]]] = []
    if settings.methods:
        tests.append(("not_method", _methods(settings.methods)))
    if settings.paths:
        tests.append(("not_path", _paths(settings.paths)))
    if settings.headers:
        tests.append(("not_header", _headers(settings.headers)))
    if settings.cookies:
        tests.append(("not_cookie", _cookies(settings.cookies)))
    if not tests:
        return None

    def why(request: Message) -> str:
        for reason, test in tests:
            if not test(request):
                return reason
        return ""

    return why


def _methods(names: Sequence[str]) -> Callable[[Message], bool]:
    for name in names:
        if not _METHOD.fullmatch(name):
            raise ConfigError(f"only method {name!r}: is none (as in GET, POST)")
    wanted = {name.upper().encode() for name in names}
    return lambda request: request.method in wanted


def path_pattern(text: str) -> re.Pattern[bytes]:
    """`/orders/{id}`, `/static/**`: `*` and `{name}` stand for what has no slash in it, `**` for anything. Raises
    ConfigError."""
    if not text.startswith("/"):
        raise ConfigError(f"only path {text!r}: begins with / (as in /orders/{{id}}, /static/**)")
    parts, at = [], 0
    for found in _WILD.finditer(text):
        parts.append(re.escape(text[at : found.start()]))
        parts.append(".*" if found[0] == "**" else "[^/]*" if found[0] == "*" else "[^/]+")
        at = found.end()
    parts.append(re.escape(text[at:]))
    return re.compile("".join(parts).encode(), re.DOTALL)


def _paths(patterns: Sequence[str]) -> Callable[[Message], bool]:
    compiled = [path_pattern(text) for text in patterns]

    def test(request: Message) -> bool:
        path = head.path_of(head.request_head(request.head).target)
        return any(pattern.fullmatch(path) for pattern in compiled)

    return test


def _headers(wanted: Sequence[tuple[str, str]]) -> Callable[[Message], bool]:
    lines = [(b"\n" + name.lower().encode("latin-1", "replace"), value.encode()) for name, value in wanted]

    def test(request: Message) -> bool:
        return any(value in fields_of(request, line) for line, value in lines)

    return test


def fields_of(request: Message, line: bytes) -> list[bytes]:
    """The values of a field as they were sent; `line`: a newline and its name in lower case."""
    shift = len(request.head) - len(request.low)
    found, low = [], request.low
    if not values_of(low, line):
        return []
    at = low.find(line)
    while at >= 0:
        colon = low.find(b":", at)
        if colon >= 0 and not low[at + len(line) : colon].strip(b" \t"):
            end = low.find(b"\n", colon)
            found.append(request.head[colon + 1 + shift : (end if end >= 0 else len(low)) + shift].strip())
        at = low.find(line, at + 1)
    return found


def _cookies(wanted: Sequence[tuple[str, str]]) -> Callable[[Message], bool]:
    pairs = {(name.encode(), value.encode()) for name, value in wanted}

    def test(request: Message) -> bool:
        for field in fields_of(request, b"\ncookie"):
            for part in field.split(b";"):
                name, _, value = part.strip().partition(b"=")
                if (name, value.strip(b'"')) in pairs or (name, value) in pairs:
                    return True
        return False

    return test


def described(settings: SampleSettings) -> str:
    """What is left out, for the user, without the values that were looked for: "" when nothing is."""
    parts = [f"{settings.share * 100:g} % of the sessions"] if settings.share < 1 else []
    parts += [f"method {name}" for name in settings.methods]
    parts += [f"path {path}" for path in settings.paths]
    parts += [f"header {name}" for name, _ in settings.headers]
    parts += [f"cookie {name}" for name, _ in settings.cookies]
    return ", ".join(parts)
