"""Masks bodies: JSON, forms, multipart forms, text; in their content coding. What cannot be read is not written:
a body of a kind that holds secrets, but damaged, cut inside or in an unknown coding, becomes filler of its length."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from mask.heads import Block, Heads
from mask.jsonbodies import FILLER, JsonBodies, is_valid
from mask.settings import MaskSettings
from mask.values import Values
from wire import content
from wire import head as heads

MAX_CACHED: Final = 512
MAX_CACHED_LENGTH: Final = 16 << 10
_MAX_NESTED: Final = 3
_JSON: Final = frozenset((b"application/json",))  # which may hold secrets, whatever is in it
_TEXT_TYPES: Final = re.compile(rb"text/|application/(?:.*(?:xml|javascript|ecmascript|graphql|yaml|x-ndjson|jsonl))")
_BINARY_TYPES: Final = re.compile(rb"image/|audio/|video/|font/|application/(?:pdf|zip|gzip|wasm|font|x-font|vnd\.ms-)")
_FORM_LIKE: Final = re.compile(rb"[\w.%+\[\]-]+=[^\s]*\Z")
_BOUNDARY: Final = re.compile(rb'boundary="?([^";]{1,70})', re.IGNORECASE)
_PART_NAME: Final = re.compile(rb'[; \t]name\*?[ \t]*=[ \t]*"?([^";\r\n]*)', re.IGNORECASE)


class Bodies:
    def __init__(self, values: Values, masked_heads: Heads, settings: MaskSettings, counts: dict[str, int]) -> None:
        self._values = values
        self._heads = masked_heads
        self._scan_text = settings.scan_text
        self._counts = counts
        self._json = JsonBodies(values)
        #: "": it is written as it is
        self._known: dict[tuple[bytes, bytes, tuple[bytes, ...], bytes, bool], tuple[bytes, str]] = {}
        self._depth = 0
        values.nested = self._nested

    def body(self, head: bytes, block: Block, body: bytes, *, cut: bool = False, holes: bool = False) -> bytes:
        """The body as it may be written; the same object when nothing is masked.

        `head` is the one it came with, `block` its fields. `cut`: its end is missing; `holes`: bytes inside it are.
        """
        media, codings = block.content
        if codings:
            if _BINARY_TYPES.match(media) and not media.endswith((b"xml", b"json")):
                return body
        elif media not in _JSON and not _may_hold_secrets(media, body):
            return body
        if holes:
            return self._filler(body, "gap")
        # What parts a multipart body stands in the field, behind its type.
        parted = heads.field(head, b"content-type") or b"" if media.startswith(b"multipart/") else b""
        key = (media, parted, codings, body, cut)
        known = self._known.get(key)
        if known is None:
            known = self._masked(head, body, media, codings, cut)
            if known[0] == body:
                known = (body, "")
            if len(body) <= MAX_CACHED_LENGTH:
                if len(self._known) >= MAX_CACHED:
                    self._known.clear()
                self._known[key] = known
        if not known[1]:
            return body
        self._count(known[1])
        return known[0]

    def filler(self, body: bytes, reason: str) -> bytes:
        """Nothing of a body but its length."""
        return self._filler(body, reason) if body else body

    # -- kinds

    def _masked(
        self, head: bytes, body: bytes, media: bytes, codings: tuple[bytes, ...], cut: bool
    ) -> tuple[bytes, str]:
        opened = content.decoded(body, codings) if codings else (body, True)
        if opened is None:
            return FILLER * len(body), "undecodable"
        text, whole = opened
        cut = cut or not whole
        if codings and not _may_hold_secrets(media, text):
            return body, ""
        kind = _kind(media, text)
        if kind == "json":
            new = self._json.masked(text, cut)
        elif kind == "form":
            new = self._heads.pairs(text, cut)
        elif kind == "multipart":
            new = self._multipart(head, text, cut)
        else:
            new = self._text(text, cut) if self._scan_text else text
        if new == text:
            return body, ""
        return content.encoded(new, codings), kind

    def _nested(self, value: str) -> str:
        """JSON that stands in a string."""
        if self._depth >= _MAX_NESTED:
            return self._values.tokens.token(value)
        self._depth += 1
        try:
            text = value.encode("utf-8", "surrogateescape")
            if is_valid(text):
                return self._json.masked(text, cut=False).decode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return self._values.tokens.token(value)
        finally:
            self._depth -= 1
        return self._values.text(value)

    def _text(self, text: bytes, cut: bool) -> bytes:
        tail = b""
        if cut:
            at = max(text.rfind(sign) for sign in (b" ", b"\n", b">", b'"', b"=")) + 1
            text, tail = text[:at], FILLER * (len(text) - at)
        return self._values.text(text.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape") + tail

    def _multipart(self, head: bytes, text: bytes, cut: bool) -> bytes:
        """Parts by name and type (RFC 7578); files of binary types are left as they are."""
        match = _BOUNDARY.search(heads.field(head, b"content-type") or b"")
        if match is None or cut or b"--" + match.group(1) + b"--" not in text:
            return FILLER * len(text)
        parts = text.split(b"--" + match.group(1))
        for index, part in enumerate(parts[1:-1], 1):
            part_head, blank, inner = part.partition(b"\r\n\r\n")
            if not blank or not inner.endswith(b"\r\n"):
                return FILLER * len(text)
            inner = inner[:-2]
            name_match = _PART_NAME.search(part_head)
            name = unquote_to_bytes(name_match.group(1)).decode("utf-8", "surrogateescape") if name_match else ""
            is_file = b"filename" in part_head.lower()
            if self._values.names.secret(name):
                value = inner.decode("utf-8", "surrogateescape")
                new = self._values.secret(value).encode("utf-8", "surrogateescape")
            elif is_file or b"content-type:" in part_head.lower():
                new = self._part(b"\n" + part_head.strip(b"\r\n"), inner)
            else:
                value = inner.decode("utf-8", "surrogateescape")
                new = self._values.plain(value).encode("utf-8", "surrogateescape")
            parts[index] = part_head + blank + new + b"\r\n"
        # What stands before the first part and behind the last is ignored (RFC 2046 section 5.1.1), so may be anything.
        parts[0] = FILLER * len(parts[0])
        ending = parts[-1][:4] if parts[-1].startswith(b"--\r\n") else parts[-1][:2]
        parts[-1] = ending + FILLER * (len(parts[-1]) - len(ending))
        return (b"--" + match.group(1)).join(parts)

    def _part(self, head: bytes, inner: bytes) -> bytes:
        media = content.media_type(head)
        if not _may_hold_secrets(media, inner):
            return inner
        kind = _kind(media, inner)
        if kind == "json":
            return self._json.masked(inner, cut=False)
        if kind == "multipart":
            if self._depth >= _MAX_NESTED:
                return FILLER * len(inner)
            self._depth += 1
            try:
                return self._multipart(head, inner, cut=False)
            finally:
                self._depth -= 1
        return self._heads.pairs(inner) if kind == "form" else self._text(inner, cut=False)

    def _filler(self, body: bytes, reason: str) -> bytes:
        self._count(reason)
        return FILLER * len(body)

    def _count(self, what: str) -> None:
        self._counts[what] = self._counts.get(what, 0) + 1


def _kind(media: bytes, text: bytes) -> str:
    if content.is_json(media, text):
        return "json"
    if content.is_form(media) or (not media and _FORM_LIKE.match(text)):
        return "form"
    return "multipart" if media.startswith(b"multipart/") else "text"


def _may_hold_secrets(media: bytes, body: bytes) -> bool:
    """False for what is binary by its type, or by its bytes where the type does not tell."""
    if _BINARY_TYPES.match(media) and not media.endswith((b"xml", b"json")):
        return False
    if content.is_json(media, body) or content.is_form(media) or media.startswith(b"multipart/"):
        return True
    if _TEXT_TYPES.match(media):
        return True
    try:
        body[:4096].decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > 4090
    return b"\0" not in body[:4096]
