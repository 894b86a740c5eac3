"""Tokens: what stands in a recording for a secret.

A token is a keyed hash of the value alone, so the same secret has the same token wherever it stands (a cookie,
a header, a path, a JSON field), in every recording made with the same key, and cannot be turned back.
It keeps the value's form, so that a service that checks forms still accepts it:

    value                     token
    digits                    digits, the first a 9 (8 at 16 and 19 digits, 1 at 10: it fits where the value did)
    a card number             the same, in the same groups, with a right check digit
    a UUID                    a UUID of version 8
    hex, 16 or more           hex, beginning with 1f1f
    an e-mail                 ...@lf.test, at least 14 characters (no mail reaches .test: RFC 6761)
    a phone number            + and digits, the first nine 999 (no such country)
    anything else             lfx_ and base 62; below 16 characters lf and base 62

It has the value's length from 8 characters on; shorter values have tokens of 8. Where the key is known, short
values can be found by trying: the key is kept like the secrets themselves.
"""

from __future__ import annotations

import hashlib
from typing import Final

from mask import shapes

MAX_CACHED: Final = 16384
MAX_CACHED_LENGTH: Final = 512
_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TEN_DIGITS: Final = 62**10
_PAIRS: Final = [low + high for high in _ALPHABET for low in _ALPHABET]  # the last digit comes first
_MIN: Final = 8


class Tokens:
    """Makes tokens with one key; remembers a bounded number of them."""

    def __init__(self, key: bytes) -> None:
        """`key`: at least 16 bytes, else ValueError."""
        if len(key) < 16:
            raise ValueError(f"a masking key has at least 16 bytes, not {len(key)}")
        of_key = hashlib.blake2b(key, digest_size=32, person=b"lf-mask-key").digest()
        self._keyed = hashlib.blake2b(
            digest_size=64, key=of_key, person=b"lf-mask"
        )  # copied: half the time of a new one
        self._known: dict[str, str] = {}

    def token(self, value: str) -> str:
        """The token of a value; "" of "" (nothing to hide, and its presence is what an application sees)."""
        found = self._known.get(value)
        if found is not None:
            return found
        made = self._made(value)
        if len(value) <= MAX_CACHED_LENGTH:
            if len(self._known) >= MAX_CACHED:
                self._known.clear()
            self._known[value] = made
        return made

    def _made(self, value: str) -> str:
        n = len(value)
        if n == 0:
            return ""
        digest = self._digest(value)
        # A look at the first sign, or for one that must be there, costs less than a pattern.
        if value[0] in "0123456789":
            if shapes.DIGITS.match(value):
                return _digits(int.from_bytes(digest, "big"), max(n, _MIN), check=n >= 13 and shapes.luhn(value))
            if shapes.is_card(value):
                digits = value.replace(" ", "").replace("-", "")
                return _regrouped(value, _digits(self._number(digits), len(digits), check=True))
        if n == 36 and shapes.UUID.match(value):
            text = digest.hex()
            return f"{text[:8]}-{text[8:12]}-8{text[13:16]}-8{text[17:20]}-{text[20:32]}"
        if n >= 16 and shapes.HEX.match(value):
            text = "1f1f" + _stretched(digest.hex(), n - 4)
            return text if value.islower() else text.upper()
        number = int.from_bytes(digest, "big")
        if "@" in value and shapes.EMAIL.match(value):
            return _base62(number, max(n - 8, 6)) + "@lf.test"
        if value[0] in "+(0123456789" and shapes.PHONE.match(value):
            return _regrouped(value, "999" + _digits(number, sum(c.isdigit() for c in value), check=False)[3:])
        n = max(n, _MIN)
        prefix = "lfx_" if n >= 16 else "lf"
        return prefix + _base62(number, n - len(prefix))

    def _number(self, value: str) -> int:
        """The same for a card number in groups as for one without."""
        return int.from_bytes(self._digest(value), "big")

    def _digest(self, value: str) -> bytes:
        keyed = self._keyed.copy()
        keyed.update(value.encode("utf-8", "surrogatepass"))
        return keyed.digest()


def is_token(value: str) -> bool:
    """Whether a value has the form of a token, for people and reports; no proof: anybody can write one."""
    if shapes.UUID.match(value):
        return value[14] == "8" and value[19] == "8"
    if shapes.HEX.match(value) and not shapes.DIGITS.match(value):
        return value[:4].lower() == "1f1f"
    return value.endswith("@lf.test") or (value.startswith("lf") and value[2:].removeprefix("x_").isalnum())


def _digits(number: int, n: int, *, check: bool) -> str:
    # A number goes back to where a number stood: int32 (10 digits), doubles (16), int64 (19) must hold it.
    first = "8" if n in (16, 19) else "1" if n == 10 else "9"
    text = first + _stretched(str(number), n - 1)
    if not check:
        return text
    return next(text[:-1] + last for last in "0123456789" if shapes.luhn(text[:-1] + last))


def _regrouped(value: str, digits: str) -> str:
    left = iter(digits)
    return "".join(next(left) if c.isdigit() else c for c in value)


def _base62(number: int, n: int) -> str:
    pairs: list[str] = []
    for _ in range(0, min(n, 80), 10):  # ten digits at a time: dividing large numbers is what takes the time
        number, ten = divmod(number, _TEN_DIGITS)
        for _ in range(5):
            ten, rest = divmod(ten, 3844)
            pairs.append(_PAIRS[rest])
    return _stretched("".join(pairs)[:80], n)


def _stretched(text: str, n: int) -> str:
    return text[:n] if n <= len(text) else (text * (n // len(text) + 1))[:n]
