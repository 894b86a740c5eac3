"""Masks JSON, in one pass over its text: every byte that needs no masking is kept.

The hot loop of masking. Strings are looked up as the bytes that they are written with, among those seen lately.
"""

from __future__ import annotations

import string
from typing import Final

import msgspec

from mask import shapes
from mask.values import Values
from wire import jsontext

FILLER: Final = b"*"
MAX_CACHED: Final = 16384
MAX_CACHED_LENGTH: Final = 128
_MIN_LENGTH: Final = 6  # shorter than any pattern
_MIN_CARD: Final = 13
#: What no value is masked without: signs that names, addresses and nested JSON are told by, and all that is not ASCII;
#: long words; long numbers, with what stands between their digits; a scheme. As classes of bytes, for `translate`.
_WORD: Final = frozenset((string.ascii_letters + string.digits + "_+/.~-%!$*").encode())
_WORDS: Final = bytes(
    0x40 if c in b"@=>:{[" or c > 127 else 0x77 if c in _WORD else 0x22 if c == 0x22 else 0x20 for c in range(256)
)
_NUMBERS: Final = bytes(0x30 if c in b"0123456789 ().-+" else 0x20 for c in range(256))
_LONG_WORD: Final = b"w" * shapes.MIN_ENTROPY_LENGTH
_LONG_NUMBER: Final = b"0" * 9  # a plus and eight digits
_SCHEMES: Final = (b"bearer", b"basic")
_NESTS: Final = ("{", "[")  # JSON in a string: what becomes of it hangs on how deep it stands, so it is not remembered
#: What stands bare, and is long enough for a card.
_BARE: Final = bytes(0x20 if c in b' \t\n\r\v\f"{}[],:' else 0x78 for c in range(256))
_LONG_BARE: Final = b"x" * _MIN_CARD


class JsonBodies:
    def __init__(self, values: Values) -> None:
        self._values = values
        self._plain: dict[bytes, bytes | None] = {}  # string without quotes -> what is written, quotes included
        self._keys: dict[bytes, tuple[bool, bytes | None]] = {}  # key -> (secret, what is written for itself)

    def masked(self, text: bytes, cut: bool) -> bytes:
        """The text with secrets masked: what stands under a secret name, at any depth, and what looks like one.

        `cut`: the text ends early, so its last value, which cannot be told whole, is masked. Text that is not JSON
        is malformed somewhere, and names cannot be trusted after that: all its strings are masked.
        """
        if b"\0" in text:  # UTF-16 or 32, or nothing like JSON
            return FILLER * len(text)
        malformed = not cut and not is_valid(text)
        if not cut and not malformed and b"\\" not in text:
            found = self._simple(text)
            if found is not None:
                return found
        parts: list[bytes] = []
        at = 0
        stack: list[bool] = []  # of the containers around: do they stand under a secret name
        under = False  # the present container does
        secret = False  # the present member does
        keys, plain = self._keys, self._plain
        for match in jsontext.TOKEN.finditer(text):
            kind = match.lastindex
            if kind == 4:
                sign = match.group(4)
                if sign in b"{[":
                    stack.append(under)
                    under = secret
                else:
                    if stack:
                        under = stack.pop()
                    secret = under
                continue
            if kind == 2:
                raw = match.group(1)
                key = keys.get(raw)
                if key is None:
                    key = self._key(raw)
                secret = under or key[0]
                new = key[1]
            elif kind == 1:
                raw = match.group(1)
                if secret or malformed:
                    new = self._secret(raw)
                elif len(raw) < _MIN_LENGTH:
                    continue
                else:
                    new = plain.get(raw, b"")
                    if new == b"":
                        new = self._string(raw)
            elif kind == 3:
                raw = match.group(3)
                if len(raw) < _MIN_CARD and not secret and not malformed and not cut:
                    continue  # a number, since the text is JSON
                new = self._bare(raw, secret, malformed, cut and match.end() == len(text))
            else:
                new = self._secret(match.group(5))
            if new is None:
                continue
            start = match.start()
            parts += (text[at:start], new)
            at = match.end(1) + 1 if kind == 2 else match.end()
        if not parts:
            return text
        parts.append(text[at:])
        return b"".join(parts)

    def _simple(self, text: bytes) -> bytes | None:
        """The same for JSON without escapes, in which nothing but single strings stands under secret names, and no
        number is long: None where that is not so.

        What quotes part are strings and what is between them, in turn. All strings are searched at once for what every
        pattern has in it, so that only those in which it is found cost more than a step each."""
        pieces = text.split(b'"')
        strings, between = pieces[1::2], pieces[2::2]
        rest = b",".join(pieces[::2])
        if _LONG_BARE in rest.translate(_BARE):
            return None
        names = [raw for raw, after in zip(strings, between, strict=True) if after[:1] == b":"]
        if rest.count(b":") != len(names):
            return None  # one stands behind a blank
        keys = self._keys
        secret: set[bytes] = set()
        for raw in set(names):
            if (keys.get(raw) or self._key(raw))[0]:
                secret.add(raw)
        changed: dict[int, bytes] = {}
        if secret:
            last = len(strings) - 1
            for at, raw in enumerate(strings):
                if raw in secret and between[at][:1] == b":":
                    if at == last or len(between[at].strip()) > 1:
                        return None  # no string follows
                    new = self._secret(strings[at + 1])
                    if new is not None:
                        changed[at + 1] = new
        for at in _suspects(b'"'.join(strings)):
            raw = strings[at]
            if at in changed or len(raw) < _MIN_LENGTH:
                continue
            if between[at][:1] == b":":
                found = (keys.get(raw) or self._key(raw))[1]
            else:
                found = self._plain.get(raw, b"")
                if found == b"":
                    found = self._string(raw)
            if found is not None:
                changed[at] = found
        if not changed:
            return text
        for at, new in changed.items():
            pieces[2 * at + 1] = new[1:-1]
        return b'"'.join(pieces)

    def _key(self, raw: bytes) -> tuple[bool, bytes | None]:
        name = jsontext.decoded(raw)
        new = self._values.plain(name)
        made = (self._values.names.secret(name), None if new == name else jsontext.quoted(new))
        if len(raw) <= MAX_CACHED_LENGTH and name[:1] not in _NESTS:
            if len(self._keys) >= MAX_CACHED:
                self._keys.clear()
            self._keys[raw] = made
        return made

    def _string(self, raw: bytes) -> bytes | None:
        value = jsontext.decoded(raw)
        new = self._values.plain(value)
        made = None if new == value else jsontext.quoted(new)
        if len(raw) <= MAX_CACHED_LENGTH and value[:1] not in _NESTS:
            if len(self._plain) >= MAX_CACHED:
                self._plain.clear()
            self._plain[raw] = made
        return made

    def _secret(self, raw: bytes) -> bytes | None:
        return jsontext.quoted(self._values.secret(jsontext.decoded(raw))) if raw else None

    def _bare(self, raw: bytes, secret: bool, malformed: bool, at_cut: bool) -> bytes | None:
        """A number; or what is no JSON, such as the rest of a string whose beginning is lost."""
        if raw in jsontext.WORDS:
            return None
        value = raw.decode("utf-8", "surrogateescape")
        number = jsontext.is_number(value)
        if secret or at_cut or (malformed and not number):
            new = self._values.secret(value)
        elif number and len(raw) < _MIN_CARD:
            return None
        else:
            new = self._values.plain(value)
        if new == value:
            return None
        return new.encode() if number and jsontext.is_number(new) else jsontext.quoted(new)


def _suspects(joined: bytes) -> list[int]:
    """Which of the strings, joined by quotes, hold something that a pattern of `Values.plain` may match; in order."""
    low = joined.lower()
    found: set[int] = set()
    words = joined.translate(_WORDS)
    for where, sign in (
        (words, b"@"),
        (words, _LONG_WORD),
        (joined.translate(_NUMBERS), _LONG_NUMBER),
        *((low, scheme) for scheme in _SCHEMES),
    ):
        number = begin = 0
        at = where.find(sign)
        while at >= 0:
            number += joined.count(b'"', begin, at)
            found.add(number)
            begin = joined.find(b'"', at)
            if begin < 0:
                break
            at = where.find(sign, begin)
    return sorted(found)


def is_valid(text: bytes) -> bool:
    """Whether it is JSON, or one JSON text a line. Deeper than a parser goes is not."""
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except RecursionError:
        return False
    except msgspec.MsgspecError:
        pass
    else:
        return True
    try:
        for line in text.split(b"\n"):
            if line.strip():
                msgspec.json.decode(line, type=msgspec.Raw)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True
