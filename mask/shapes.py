"""What a secret looks like: patterns of values, whatever the name of the field that they stand in."""

from __future__ import annotations

import re
from typing import Final

UUID: Final = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\Z")
HEX: Final = re.compile(r"(?:[0-9a-f]{16,}|[0-9A-F]{16,})\Z")
JWT: Final = re.compile(r"eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)*\Z")
EMAIL: Final = re.compile(r"[A-Za-z0-9._%+'-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}\Z")
#: With a plus, or in the North American form; bare digits are numbers of anything.
PHONE: Final = re.compile(r"(?:\+\d(?:[ ().-]{0,2}\d){7,14}|\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4})\Z")
DIGITS: Final = re.compile(r"\d+\Z", re.ASCII)
CARD: Final = re.compile(r"\d(?:[ -]?\d){12,18}\Z", re.ASCII)
WORD_CHARACTERS: Final = r"A-Za-z0-9_+/=.~\-"
OPAQUE: Final = re.compile(rf"[{WORD_CHARACTERS}%:!$*]{{16,}}\Z")
MIN_ENTROPY_LENGTH: Final = 16

_VOWELS: Final = frozenset("aeiouyAEIOUY")
_SEPARATORS: Final = re.compile(r"[^A-Za-z0-9]+")
# The class of each character: l(ower), u(pper), d(igit), space for all others.
_CLASSES: Final = {ord(c): "l" for c in "abcdefghijklmnopqrstuvwxyz"} | {
    ord(c): "u" for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
} | {ord(c): "d" for c in "0123456789"}  # fmt: skip


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1 annex B)."""
    total = 0
    for index, c in enumerate(reversed(digits)):
        n = ord(c) - 48
        if index & 1:
            n *= 2
            if n > 9:
                n -= 9
        total += n
    return total % 10 == 0


def is_card(value: str) -> bool:
    """13 to 19 digits with a right check digit, perhaps in groups."""
    if not CARD.match(value):
        return False
    digits = value.replace(" ", "").replace("-", "")
    return len(set(digits)) > 1 and luhn(digits)


def is_opaque(value: str) -> bool:
    """Whether a string of at least 16 characters was more likely made by a machine than by a person.

    Random strings change between lower case, upper case and digits all the time (62 % of neighbours in base 62,
    40 % in base 36); words and names, also in CamelCase or with a year, seldom do.
    """
    if len(value) < MIN_ENTROPY_LENGTH or not OPAQUE.match(value):
        return False
    if HEX.match(value):
        return not DIGITS.match(value)
    if UUID.match(value):
        return True
    runs = [run for run in _SEPARATORS.split(value) if run]
    joined = "".join(runs)
    n = len(joined)
    if n < 12:
        return False
    classes = joined.translate(_CLASSES)
    alternations = classes.count("ld") + classes.count("dl") + classes.count("ud") + classes.count("du")
    flips = classes.count("lu") + classes.count("ul")
    if alternations >= 4 or (alternations >= 1 and flips >= 3) or (alternations + flips) >= 0.45 * n:
        return True
    longest = max(runs, key=len)
    if len(longest) < MIN_ENTROPY_LENGTH:
        return False
    of_longest = longest.translate(_CLASSES)
    if sum(of_longest.count(pair) for pair in ("ld", "dl", "ud", "du")) >= 2:
        return True
    if of_longest.count("d") == len(longest):
        return False
    # All of one case: words have vowels.
    letters = sum(c.isalpha() for c in longest)
    vowels = sum(c in _VOWELS for c in longest)
    return letters >= 12 and (vowels < 0.2 * letters or _longest_consonants(longest) >= 6)


def _longest_consonants(text: str) -> int:
    best = here = 0
    for c in text:
        here = here + 1 if c.isalpha() and c not in _VOWELS else 0
        best = max(best, here)
    return best
