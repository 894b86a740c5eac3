"""Masks heads: start line and fields. What is not known to be harmless is not written.

Most lines of most heads were seen before, and often all of them together, so the results of lines and of whole blocks
are remembered, within bounds. A head of which one line is new costs that line.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, quote_plus, unquote_to_bytes

from mask.settings import MaskSettings
from mask.values import Values
from wire import content
from wire.places import URL_HEADERS, cookie_text, split_scheme

MAX_CACHED: Final = 8192
MAX_CACHED_LENGTH: Final = 1024
MAX_CACHED_BLOCKS: Final = 256
MAX_CACHED_BLOCK: Final = 4096

#: Headers of the protocol: framing, content, negotiation, caching, routing, tracing, security policy.
ALLOWED: Final = frozenset(
    b"accept accept-charset accept-encoding accept-language accept-patch accept-post accept-ranges "
    b"access-control-allow-credentials access-control-allow-headers access-control-allow-methods "
    b"access-control-allow-origin access-control-expose-headers access-control-max-age access-control-request-headers "
    b"access-control-request-method age allow alt-svc cache-control connection content-disposition content-encoding "
    b"content-language content-length content-range content-security-policy content-type cross-origin-embedder-policy "
    b"cross-origin-opener-policy cross-origin-resource-policy date dnt etag expect expires host http2-settings "
    b"if-match if-modified-since if-none-match if-range if-unmodified-since keep-alive last-modified livefire-marker "
    b"max-forwards origin pragma prefer preference-applied priority proxy-connection range referrer-policy "
    b"retry-after sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform sec-fetch-dest sec-fetch-mode sec-fetch-site "
    b"sec-fetch-user server strict-transport-security te trailer transfer-encoding upgrade upgrade-insecure-requests "
    b"user-agent vary via warning www-authenticate x-content-type-options x-frame-options x-powered-by "
    b"x-requested-with x-xss-protection".split()
)
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
#: What a line was masked as, in one letter, so that those of a block are one word.
_CODES: Final = {"h": "header", "c": "cookie", "t": "target", "m": "malformed_line"}
_CODE_OF: Final = {what: code for code, what in _CODES.items()}
_BLANKS: Final = (b" ", b"\t")
_Line = tuple[bytes, str]  # what is written for a line, and as what it was masked: "" for none
#: Cookie values that nobody can be told apart by.
_HARMLESS: Final = re.compile(r"(?:[a-z]{1,12}|[a-z]{2}[-_][A-Z]{2}|\d{1,4})?\Z", re.ASCII)
_VERSION: Final = re.compile(rb"HTTP/\d(?:\.\d)?\Z")
_METHOD: Final = re.compile(rb"[!-~]{1,32}\Z")
#: Paths of short words and numbers: shorter than any pattern.
_PLAIN_REQUEST: Final = re.compile(rb"[A-Z]{1,32} (?:/[A-Za-z0-9_-]{0,11})+ HTTP/1\.[01]\r?\Z")
_STATUS_LINE: Final = re.compile(rb"(HTTP/\d(?:\.\d)? \d{3})(?: ([^\r]*))?\r?\Z")
_REASON: Final = re.compile(rb"[A-Za-z' /-]{0,40}\Z")
_COOKIE_ATTRIBUTES: Final = frozenset(
    b"domain expires httponly max-age partitioned path priority samesite secure".split()
)


class Block:
    """What is written for a block of fields, and what it says of the body; made once for many heads."""

    __slots__ = ("_codings", "_media", "block", "counted", "new", "used")

    def __init__(self, block: bytes, new: bytes, counted: tuple[tuple[str, int], ...]) -> None:
        self.block = block
        self.new = new  # the same object when nothing is masked
        self.counted = counted  # what is masked in it, how often
        self.used = 0  # how often it was, since the counts were brought up to date
        self._media: bytes | None = None
        self._codings: tuple[bytes, ...] = ()

    @property
    def content(self) -> tuple[bytes, tuple[bytes, ...]]:
        """Media type and content codings, as `wire.content` reads them."""
        media = self._media
        if media is None:
            media = self._media = content.media_type(self.block)
            self._codings = content.codings_of(self.block)
        return media, self._codings


class Heads:
    def __init__(self, values: Values, settings: MaskSettings, counts: dict[str, int]) -> None:
        self._values = values
        self._allowed = ALLOWED | {name.strip().lower().encode() for name in settings.allow_headers}
        self._allowed_cookies = frozenset(settings.allow_cookies)
        self._counts = counts
        self._lines: dict[bytes, _Line] = {}
        self._starts: dict[bytes, _Line] = {}
        self._blocks: dict[bytes, Block] = {}
        self._counted: dict[str, tuple[tuple[str, int], ...]] = {}  # of the codes of a block's lines

    def head(self, head: bytes) -> bytes:
        """A head of a request or an answer, with its start line. The same object when nothing is masked."""
        return self.masked(head)[0]

    def masked(self, head: bytes, block: bytes = b"") -> tuple[bytes, Block]:
        """The same, and what its fields are. `block`: its end, from the newline before the first field on, if that is
        at hand."""
        if block:
            start = head[: len(head) - len(block)]
        else:
            at = head.find(b"\n")
            start, block = (head[:at], head[at:]) if at >= 0 else (head, b"")
        new, code = start, ""
        if start.startswith(b"HTTP/") or (start and not _PLAIN_REQUEST.match(start)):
            known = self._starts.get(start) or self._remember(self._starts, start, self._start_line(start))
            new, code = known
            if code:
                self._count(_CODES[code])
        found = self._blocks.get(block) or self._block(block)
        if found.counted:
            found.used += 1
        elif not code:
            return head, found
        return new + found.new, found

    def settle(self) -> None:
        """Bring the counts up to date; before they are looked at."""
        for found in self._blocks.values():
            if found.used:
                self._tally(found.counted, found.used)
                found.used = 0

    def _tally(self, counted: tuple[tuple[str, int], ...], times: int = 1) -> None:
        for what, count in counted:
            self._counts[what] = self._counts.get(what, 0) + count * times

    def fields(self, block: bytes) -> bytes:
        """Field lines without a head: trailers. The same object when nothing is masked."""
        new, counted = self._fields(block)
        self._tally(counted)
        return new

    def _block(self, block: bytes) -> Block:
        found = Block(block, *self._fields(block))
        if len(block) <= MAX_CACHED_BLOCK:
            if len(self._blocks) >= MAX_CACHED_BLOCKS:
                self.settle()
                self._blocks.clear()
            self._blocks[block] = found
        else:
            self._tally(found.counted)  # nobody is going to ask how often it was used
        return found

    def _fields(self, block: bytes, whole: bool = False) -> tuple[bytes, tuple[tuple[str, int], ...]]:
        """What is written for them, and how many of which kind were masked. Only lines that were not seen lately cost
        more than a look. `whole`: no line is folded."""
        lines = block.split(b"\n")
        known = self._lines
        written: list[bytes] = []
        codes: list[str] = []
        for line in lines:
            found = known.get(line)
            if found is None:
                if line[:1] in _BLANKS and not whole:  # none such is ever known
                    new, counted = self._fields(b"\n".join(self._unfolded(lines)), whole=True)
                    return (new, counted) if counted else (block, ())
                found = self._remember(known, line, self._line(line))
            written.append(found[0])
            if found[1]:
                codes.append(found[1])
        masked = "".join(codes)
        if not masked:
            return block, ()
        kinds = self._counted.get(masked)
        if kinds is None:
            if len(self._counted) >= MAX_CACHED:
                self._counted.clear()
            kinds = self._counted[masked] = tuple(
                (what, masked.count(code)) for code, what in _CODES.items() if code in masked
            )
        return b"\n".join(written), kinds

    def _unfolded(self, lines: list[bytes]) -> list[bytes]:
        """A folded line goes on with the value before it, and what it means hangs on that (RFC 9112 section 5.2)."""
        whole: list[bytes] = []
        for line in lines:
            if line[:1] in (b" ", b"\t") and line.strip() and whole and whole[-1].strip():
                end = b"\r" if whole[-1].endswith(b"\r") else b""
                whole[-1] = whole[-1].rstrip() + b" " + line.strip() + end
            else:
                whole.append(line)
        return whole

    def _count(self, what: str) -> None:
        self._counts[what] = self._counts.get(what, 0) + 1

    @staticmethod
    def _remember(cache: dict[bytes, _Line], line: bytes, made: _Line) -> _Line:
        new, what = made
        made = (line, "") if new == line else (new, _CODE_OF[what])
        if len(line) <= MAX_CACHED_LENGTH and line[:1] not in _BLANKS:
            if len(cache) >= MAX_CACHED:
                cache.clear()
            cache[line] = made
        return made

    # -- lines

    def _start_line(self, line: bytes) -> tuple[bytes, str]:
        bare = line.rstrip(b"\r")
        status = _STATUS_LINE.match(line)
        if status is not None:
            reason = status.group(2) or b""
            if _REASON.match(reason):
                return line, ""
            token = _bytes(self._values.tokens.token(_text(reason)))
            return status.group(1) + b" " + token + line[len(bare) :], "header"
        method, space, rest = bare.partition(b" ")
        target, gap, version = rest.rstrip().rpartition(b" ")
        if not gap or not _VERSION.match(version):
            target, version = rest.strip(), b""
        if not space or not _METHOD.match(method) or _CONTROL.search(bare):
            return self._token_line(line)
        if method == b"CONNECT" or target == b"*":
            return line, ""
        masked = self.target(target)
        if masked == target:
            return line, ""
        return b" ".join((method, masked, version)).rstrip() + line[len(bare) :], "target"

    def _line(self, line: bytes) -> tuple[bytes, str]:
        bare = line.rstrip(b"\r")
        name, colon, value = bare.partition(b":")
        value = value.strip()
        if not value:
            return (line, "") if colon or not bare.strip() else self._token_line(line)
        end = line[len(bare) :]
        if _CONTROL.search(value):
            return name + b": " + _bytes(self._values.tokens.token(_text(value))) + end, "header"
        low = name.strip().lower()
        if low in self._allowed:
            return line, ""
        if low == b"cookie":
            return name + b": " + b";".join(self._cookie(part) for part in value.split(b";")) + end, "cookie"
        if low == b"set-cookie":
            pair, *attributes = value.split(b";")
            written = [
                part if part.partition(b"=")[0].strip().lower() in _COOKIE_ATTRIBUTES else self._cookie(part)
                for part in attributes
            ]
            return name + b": " + b";".join((self._cookie(pair), *written)) + end, "cookie"
        if low in URL_HEADERS:
            return name + b": " + self.target(value) + end, "target"
        prefix, credential = split_scheme(low, _text(value))
        if prefix:
            return name + b": " + _bytes(self._values.credential(prefix, credential)) + end, "header"
        return name + b": " + _bytes(self._values.tokens.token(_text(value))) + end, "header"

    def _token_line(self, line: bytes) -> tuple[bytes, str]:
        bare = line.rstrip(b"\r")
        text = bare.strip()
        token = _bytes(self._values.tokens.token(_text(text))) if text else b""
        return bare[: len(bare) - len(bare.lstrip())] + token + line[len(bare) :], "malformed_line"

    def _cookie(self, part: bytes) -> bytes:
        before, equals, raw = part.partition(b"=")
        if not equals:
            bare = part.strip()
            return part.replace(bare, _bytes(self._values.tokens.token(_text(bare)))) if bare else part
        name = _text(before.strip())
        raw = raw.strip()
        in_quotes = len(raw) >= 2 and raw[:1] == raw[-1:] == b'"'
        inner = raw[1:-1] if in_quotes else raw
        value = _unquoted(inner)
        if name in self._allowed_cookies or (_HARMLESS.match(value) and not self._values.names.secret(name)):
            return part
        new = cookie_text(self._values.tokens.token(value), escaped=False)
        return before + b"=" + (b'"' + new + b'"' if in_quotes else new)

    # -- targets

    def target(self, target: bytes) -> bytes:
        """A request's target, or a header that is a URL: segments that look secret, parameters, user information."""
        rest, hash_sign, fragment = target.partition(b"#")
        path, mark, query = rest.partition(b"?")
        scheme, double, after = path.partition(b"://")
        if double:
            authority, slash, inner = after.partition(b"/")
            user, at_sign, host = authority.rpartition(b"@")
            if at_sign:
                authority = (
                    b":".join(_bytes(self._values.tokens.token(_text(p))) for p in user.split(b":")) + b"@" + host
                )
            path = scheme + double + authority + slash + self._segments(inner)
        else:
            path = self._segments(path)
        new = path + mark + self.pairs(query) + hash_sign + self.pairs(fragment)
        return target if new == target else new

    def _segments(self, path: bytes) -> bytes:
        return b"/".join(self._segment(segment) if len(segment) >= 6 else segment for segment in path.split(b"/"))

    def _segment(self, segment: bytes) -> bytes:
        base, semicolon, parameters = segment.partition(b";")
        value = _unquoted(base)
        new = self._values.tokens.token(value) if self._values.looks_secret(value) else value
        if new != value:
            base = quote(new, safe="!$&'()*+,=:@~", errors="surrogateescape").encode()
        if semicolon:
            parameters = b";".join(self.pairs(part) for part in parameters.split(b";"))
        return base + semicolon + parameters

    def pairs(self, text: bytes, cut: bool = False) -> bytes:
        """`a=b&c=d`, of a query or a form. `cut`: the text ends somewhere inside, so its last value is masked."""
        if not text:
            return text
        parts = text.split(b"&")
        for index, part in enumerate(parts):
            key, equals, raw = part.partition(b"=")
            at_cut = cut and index == len(parts) - 1
            value = _unquoted((raw if equals else key).replace(b"+", b" "))
            if not value:
                continue
            if at_cut:
                new = self._values.tokens.token(value)
            elif equals:
                new = self._values.named(_unquoted(key.replace(b"+", b" ")), value)
            else:
                new = self._values.plain(value)
            if new != value:
                parts[index] = (key + b"=" if equals else b"") + quote_plus(
                    new, safe="~@/:", errors="surrogateescape"
                ).encode()
        return b"&".join(parts)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _unquoted(raw: bytes) -> str:
    return _text(unquote_to_bytes(raw) if b"%" in raw else raw)
