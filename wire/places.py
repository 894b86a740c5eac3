"""Where values stand in requests and answers: listed, read, and put in the place of others.

The notation of `Place.name`, by kind:

    path    "1"             the segment, counted from 0
    query   "page"          header "x-request-token"     cookie "sid"     form "name"
    json    "$.items[*].id" elements of an array are one place
    header  "location[1]"   a segment of a header that is a URL; "location?code": of its query

Values are given decoded (percent, quotes, JSON escapes, content codings), so that the same value is the same
text wherever it stands. Nothing here raises for what was on the wire.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final
from urllib.parse import quote, quote_plus, unquote_to_bytes

from wire import content, jsontext
from wire import head as heads
from wire.jsonplaces import json_values
from wire.records import Place, PlaceKind

Change = Callable[[str], str | None]
Found = tuple[Place, str]

#: Headers that are one URL: their parts are places.
URL_HEADERS: Final = frozenset({b"location", b"content-location", b"referer"})
#: Headers of transport, caching and negotiation, which hold nothing that an application hands out.
_NO_VALUES: Final = frozenset(
    b"accept accept-charset accept-encoding accept-language accept-ranges access-control-allow-credentials "
    b"access-control-allow-headers access-control-allow-methods access-control-max-age access-control-request-headers "
    b"access-control-request-method age allow alt-svc cache-control connection content-encoding content-language "
    b"content-length content-range content-security-policy content-type cookie date dnt expect expires forwarded from "
    b"host keep-alive link livefire-marker max-forwards origin pragma proxy-connection range retry-after sec-ch-ua "
    b"sec-fetch-dest sec-fetch-mode sec-fetch-site sec-fetch-user server server-timing set-cookie "
    b"strict-transport-security te trailer transfer-encoding upgrade upgrade-insecure-requests user-agent vary via "
    b"x-content-type-options x-forwarded-for x-forwarded-host x-forwarded-proto x-frame-options x-powered-by "
    b"x-xss-protection".split()
)
_AUTHORIZATION: Final = frozenset({b"authorization", b"proxy-authorization"})
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9_-]{0,30} +)(\S+)\Z")
_KNOWN_SCHEME: Final = re.compile(r"((?:bearer|basic|token|apikey|api-key|key|jwt) +)(\S+)\Z", re.IGNORECASE)
_PART: Final = re.compile(r"(.+?)(?:\[(\d+)\]|\?(.*))\Z", re.DOTALL)
_BAD_IN_COOKIE: Final = re.compile(r'[\x00-\x20",;%\\\x7f-\U0010ffff]')


# ---------------------------------------------------------------------------- listing


def values_of_request(head: bytes, body: bytes) -> list[tuple[Place, str]]:
    """Every value of a request with its place, in the order in which they stand."""
    parts = heads.request_head(head)
    found = _target_values(parts.target)
    for name, value in parts.fields:
        low = name.lower()
        if low == b"cookie":
            found += [(_place(PlaceKind.COOKIE, key), text) for key, text, _, _ in _cookie_pairs(value)]
        elif low not in _NO_VALUES:
            found += _header_values(low, value)
    return found + _body_values(head, body)


def values_of_response(head: bytes, body: bytes) -> list[tuple[Place, str]]:
    """Every value of an answer with its place, in the order in which they stand."""
    found: list[Found] = []
    for name, value in heads.fields_of(head.partition(b"\n")[2]):
        low = name.lower()
        if low == b"set-cookie":
            found += [(_place(PlaceKind.COOKIE, key), text) for key, text, _, _ in _cookie_pairs(value)[:1]]
        elif low not in _NO_VALUES:
            found += _header_values(low, value)
    return found + _body_values(head, body)


# ---------------------------------------------------------------------------- reading


def read_request(place: Place, head: bytes, body: bytes) -> list[str]:
    """The values that stand at a place of a request; [] where there is no such place."""
    values: list[str] = []

    def note(value: str) -> None:
        values.append(value)

    substitute(head, body, place, note)
    return values


def read_response(place: Place, head: bytes, body: bytes) -> list[str]:
    """The values that stand at a place of an answer; [] where there is no such place."""
    if place.kind in (PlaceKind.JSON, PlaceKind.FORM):
        return [value for at, value in _body_values(head, body, place) if at == place]
    if place.kind == PlaceKind.COOKIE:
        name = place.name
        return [
            text
            for field, value in heads.fields_of(head.partition(b"\n")[2])
            if field.lower() == b"set-cookie"
            for key, text, _, _ in _cookie_pairs(value)[:1]
            if key == name
        ]
    if place.kind == PlaceKind.HEADER:
        wanted = place.name.encode("utf-8", "surrogateescape")
        return [
            text
            for field, value in heads.fields_of(head.partition(b"\n")[2])
            if wanted.startswith(field.lower())
            for at, text in _header_values(field.lower(), value)
            if at == place
        ]
    return []


# ---------------------------------------------------------------------------- putting in


def substitute(head: bytes, body: bytes, place: Place, change: Change) -> tuple[bytes, bytes]:
    """A request (head, body) with each value at `place` replaced by `change(value)`; None keeps it.

    All other bytes stay as they are. Content-Length is not touched: who renders the request sets it.
    """
    kind = place.kind
    if kind in (PlaceKind.PATH, PlaceKind.QUERY):
        parts = heads.request_head(head)
        target = _changed_target(parts.target, place, change)
        if target == parts.target:
            return head, body
        rest = head.partition(b"\n")[2]
        return b" ".join((parts.method, target, parts.version)) + b"\r\n" + rest, body
    if kind == PlaceKind.COOKIE:
        return _with_field(head, b"cookie", lambda value: _changed_cookie(value, place.name, change)), body
    if kind == PlaceKind.HEADER:
        return _substitute_header(head, place, change), body
    return head, _changed_body(head, body, place, change)


def _substitute_header(head: bytes, place: Place, change: Change) -> bytes:
    part = _PART.match(place.name)
    if part is not None and part.group(1).encode("utf-8", "surrogateescape") in URL_HEADERS:
        inner = (
            _place(PlaceKind.PATH, part.group(2))
            if part.group(2) is not None
            else _place(PlaceKind.QUERY, part.group(3))
        )
        name = part.group(1).encode("utf-8", "surrogateescape")
        return _with_field(head, name, lambda value: _changed_target(value, inner, change))
    name = place.name.encode("utf-8", "surrogateescape")

    def changed(value: bytes) -> bytes:
        prefix, text = split_scheme(name, _text(value))
        if prefix != place.prefix:
            return value
        new = change(text)
        return value if new is None else _bytes(prefix + _one_line(new))

    return _with_field(head, name, changed)


def _with_field(head: bytes, name: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The head with the values of one field changed, and every other byte kept."""
    lines = head.split(b"\n")
    done = False
    for index, line in enumerate(lines[1:], 1):
        found, colon, value = line.partition(b":")
        if not colon or found.strip().lower() != name:
            continue
        value = value.strip()
        new = change(value)
        if new != value:
            lines[index] = found + b": " + new + (b"\r" if line.endswith(b"\r") else b"")
            done = True
    return b"\n".join(lines) if done else head


# ---------------------------------------------------------------------------- heads


def split_scheme(name: bytes, value: str) -> tuple[str, str]:
    """("Bearer ", "X") of `Bearer X`; ("", value) where no scheme stands before one credential."""
    match = (_SCHEME if name in _AUTHORIZATION else _KNOWN_SCHEME).match(value)
    return (match.group(1), match.group(2)) if match else ("", value)


def is_text(value: str) -> bool:
    """Whether a name or a segment that was on the wire is UTF-8, and so can be written into a record."""
    return value.isascii() or value.encode("utf-8", "replace").decode() == value


def segments_of(path: bytes) -> list[str]:
    """The segments of a path, decoded: `/a/b%20c` -> ["a", "b c"]; `/` -> []."""
    inner = path[1:] if path.startswith(b"/") else path
    if b"%" not in inner:
        return inner.decode("utf-8", "surrogateescape").split("/") if inner else []
    return [_unquoted(part) for part in inner.split(b"/")]


def _target_values(target: bytes) -> list[Found]:
    found = [
        (_place(PlaceKind.PATH, str(index)), value)
        for index, value in enumerate(segments_of(heads.path_of(target)))
        if value
    ]
    return found + [(_place(PlaceKind.QUERY, key), text) for key, text in _pairs(heads.query_of(target))]


def _header_values(low: bytes, value: bytes) -> list[Found]:
    if low in URL_HEADERS:
        name = low.decode()
        return [
            (
                _place(
                    PlaceKind.HEADER,
                    f"{name}[{at.name}]" if at.kind == PlaceKind.PATH else f"{name}?{at.name}",
                ),
                text,
            )
            for at, text in _target_values(value)
        ]
    prefix, text = split_scheme(low, _text(value))
    return [(_place(PlaceKind.HEADER, _text(low), prefix), text)] if text else []


def _changed_target(target: bytes, place: Place, change: Change) -> bytes:
    rest, hash_sign, fragment = target.partition(b"#")
    before, mark, query = rest.partition(b"?")
    if place.kind == PlaceKind.QUERY:
        return before + mark + _changed_pairs(query, place.name, change) + hash_sign + fragment
    path = heads.path_of(before)
    if not path or not place.name.isdigit():
        return target
    origin = before[: len(before) - len(path)] if before.endswith(path) else before
    segments = path[1:].split(b"/")
    index = int(place.name)
    if index >= len(segments) or not segments[index]:
        return target
    new = change(_unquoted(segments[index]))
    if new is None:
        return target
    segments[index] = quote(new, safe="!$&'()*+,;=:@~", errors="surrogateescape").encode()
    return origin + b"/" + b"/".join(segments) + mark + query + hash_sign + fragment


def _pairs(text: bytes) -> list[tuple[str, str]]:
    pairs = []
    for part in text.split(b"&"):
        key, equals, value = part.partition(b"=")
        if equals:
            pairs.append((_unquoted_plus(key), _unquoted_plus(value)))
    return pairs


def _changed_pairs(text: bytes, name: str, change: Change) -> bytes:
    parts = text.split(b"&")
    for index, part in enumerate(parts):
        key, equals, value = part.partition(b"=")
        if equals and _unquoted_plus(key) == name:
            new = change(_unquoted_plus(value))
            if new is not None:
                parts[index] = key + b"=" + quote_plus(new, safe="~", errors="surrogateescape").encode()
    return b"&".join(parts)


def _cookie_pairs(value: bytes) -> list[tuple[str, str, bytes, bool]]:
    """(name, decoded value, value as it is written without quotes, whether it was quoted) of a cookie field."""
    pairs = []
    for part in value.split(b";"):
        key, equals, raw = part.partition(b"=")
        if not equals:
            continue
        raw = raw.strip()
        in_quotes = len(raw) >= 2 and raw[:1] == raw[-1:] == b'"'
        inner = raw[1:-1] if in_quotes else raw
        pairs.append((_text(key.strip()), _unquoted(inner) if b"%" in inner else _text(inner), inner, in_quotes))
    return pairs


def _changed_cookie(value: bytes, name: str, change: Change) -> bytes:
    parts = value.split(b";")
    for index, part in enumerate(parts):
        for key, text, inner, in_quotes in _cookie_pairs(part):
            if key != name:
                continue
            new = change(text)
            if new is None:
                continue
            written = cookie_text(new, escaped=_text(inner) != text)
            before = part[: part.find(b"=") + 1]
            parts[index] = before + (b'"' + written + b'"' if in_quotes else written)
    return b";".join(parts)


def cookie_text(value: str, escaped: bool) -> bytes:
    """A value as it may stand in a cookie: escaped all through if the one in its place was, else where it must be."""
    if escaped:
        return quote(value, safe="", errors="surrogateescape").encode()
    return _BAD_IN_COOKIE.sub(lambda m: quote(m.group(), safe="", errors="surrogateescape"), value).encode()


# ---------------------------------------------------------------------------- bodies


def _body_values(head: bytes, body: bytes, only: Place | None = None) -> list[Found]:
    if not body:
        return []
    opened = content.decoded(body, content.codings_of(head))
    if opened is None:
        return []
    text = opened[0]
    media = content.media_type(head)
    if content.is_form(media):
        return [(_place(PlaceKind.FORM, key), value) for key, value in _pairs(text)]
    if not content.is_json(media, text):
        return []
    if only is not None:
        if only.kind != PlaceKind.JSON:
            return []
        wanted = _json_path(only.name)
        return [(only, found.value) for found in jsontext.scalars(text) if found.whole and found.path == wanted]
    return json_values(text)


def _changed_body(head: bytes, body: bytes, place: Place, change: Change) -> bytes:
    if not body:
        return body
    codings = content.codings_of(head)
    opened = content.decoded(body, codings)
    if opened is None:
        return body
    text = opened[0]
    media = content.media_type(head)
    if place.kind == PlaceKind.FORM:
        new = _changed_pairs(text, place.name, change) if content.is_form(media) else text
    elif content.is_json(media, text):
        wanted = _json_path(place.name)

        def put(found: jsontext.Scalar) -> bytes | None:
            if not found.whole or found.path != wanted:
                return None
            value = change(found.value)
            return None if value is None else jsontext.replacement(found, value)

        new = jsontext.changed(text, put)
    else:
        return body
    return body if new == text else content.encoded(new, codings)


# ---------------------------------------------------------------------------- text


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _one_line(text: str) -> str:
    """A live value goes into a head: it must not be able to end its line."""
    return text.replace("\r", "").replace("\n", "").replace("\0", "")


def _unquoted(raw: bytes) -> str:
    if b"%" not in raw:
        return raw.decode("utf-8", "surrogateescape")
    return unquote_to_bytes(raw).decode("utf-8", "surrogateescape")


def _unquoted_plus(raw: bytes) -> str:
    return _unquoted(raw.replace(b"+", b" "))


@lru_cache(maxsize=4096)
def _place(kind: PlaceKind, name: str, prefix: str = "") -> Place:
    return Place(kind, name, prefix)


@lru_cache(maxsize=4096)
def _json_path(name: str) -> jsontext.Path | None:
    try:
        return jsontext.read_path(name)
    except ValueError:
        return None


def places_text(places: Iterable[Place]) -> list[str]:
    """Places as a person reads them: `json $.token`, `header authorization "Bearer "`."""
    return [f"{at.kind.value} {at.name}" + (f' "{at.prefix}"' if at.prefix else "") for at in places]


__all__ = [
    "URL_HEADERS", "Change", "cookie_text", "places_text", "read_request", "read_response", "segments_of",
    "split_scheme", "substitute", "values_of_request", "values_of_response",
]  # fmt: skip
