"""Masks one decoded value, by the name of the field it stands in and by what it looks like."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Final

from mask import shapes
from mask.names import Names
from mask.settings import MaskSettings
from mask.tokens import Tokens
from wire.places import split_scheme

MAX_CACHED: Final = 16384
MAX_CACHED_LENGTH: Final = 128
_MIN_LENGTH: Final = 6  # shorter than any pattern
_W: Final = shapes.WORD_CHARACTERS

# What is looked for in running text, in one pass, so that nothing is masked twice.
_IN_TEXT: Final = re.compile(
    rf"""
      \b(?P<scheme>(?:bearer|basic)\s{{1,3}})(?P<credential>[^\s"'<>,;]+)
    | name=["']?(?P<input>[\w.-]{{1,64}})["']?[^<>]{{0,100}}?value=["']?(?P<of_input>)
    | <(?:[\w.-]{{1,64}}:)?(?P<element>[A-Za-z_][\w.-]{{0,63}})(?:\s[^<>]{{0,1000}})?>\s{{0,3}}
      (?:<!\[CDATA\[)?(?=[^<>\s])(?P<of_element>)
    | (?P<name>[A-Za-z_][\w-]{{0,63}})\\?["']?\s{{0,3}}[:=>]\s{{0,3}}\\?["']?(?=[^"'&,;<>\n(){{}}\\])(?P<value>)
    | (?P<email>[A-Za-z0-9._%+'-]{{1,64}}@[A-Za-z0-9-]{{1,63}}(?:\.[A-Za-z0-9-]{{1,63}}){{1,8}})
    | (?P<phone>\+\d(?:[ ().-]{{0,2}}\d){{7,14}}|(?<!\d)\(?\d{{3}}\)?[ .-]\d{{3}}[ .-]\d{{4}}(?!\d))
    | (?<!\d)(?P<card>\d(?:[ -]?\d){{12,18}})(?!\d)
    | (?P<word>[{_W.replace("=", "")}]{{16,}}={{0,2}})
    """,
    re.VERBOSE | re.IGNORECASE,
)
# What follows a secret name, up to what ends it. Matched only there: names are everywhere, and looking ahead from each
# of them would take time that grows with the square of the text.
_REST: Final = {
    "value": re.compile(r"[^\"'&,;<>\n(){}\\]*"),
    "of_input": re.compile(r"[^\"'<>]*"),
    "of_element": re.compile(r"[^<\]]*"),
}

#: ISO 8601 and RFC 3339, so frequent, and so often new, that they are told before anything is looked up.
_TIME: Final = re.compile(
    r"(?:19|20)\d\d-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?)?\Z", re.ASCII
)

# What all of these have in common with few other strings.
_MAYBE: Final = re.compile(
    rf"[@:=>]|(?:\+\d[\d ().-]{{6}}|\d[\d ().-]{{8}})[\d ().-]*\d|[{_W.replace('=', '')}]{{16}}|(?:bearer|basic)\s",
    re.IGNORECASE,
)


class Values:
    """Masks values; remembers a bounded number of answers."""

    def __init__(self, key: bytes, settings: MaskSettings) -> None:
        self.tokens = Tokens(key)
        self.names = Names(settings.fields, settings.keep_fields)
        self._on = frozenset(settings.patterns)
        self._known: dict[str, str] = {}
        self.nested: Callable[[str], str] | None = None  # masks JSON that stands in a string

    def named(self, name: str, value: str) -> str:
        """The value of a field of that name."""
        return self.secret(value) if self.names.secret(name) else self.plain(value)

    def secret(self, value: str) -> str:
        """A value that is known to be secret. Of `Bearer X` the scheme is kept; of `Basic X`, what is in it."""
        prefix, credential = split_scheme(b"", value)
        if not prefix:
            return self.tokens.token(value)
        return self.credential(prefix, credential)

    def credential(self, scheme: str, credential: str) -> str:
        if scheme.strip().lower() == "basic":
            try:
                user, colon, password = base64.b64decode(credential, validate=True).decode("utf-8").partition(":")
            except ValueError:  # no base64, no UTF-8, not even ASCII
                return scheme + self.tokens.token(credential)
            if colon:
                text = f"{self.tokens.token(user)}:{self.tokens.token(password)}"
                return scheme + base64.b64encode(text.encode()).decode()
        return scheme + self.tokens.token(credential)

    def plain(self, value: str) -> str:
        """A value of which the name tells nothing: masked as far as it looks like a secret."""
        if len(value) < _MIN_LENGTH or (value[:2] in ("19", "20") and _TIME.match(value)):
            return value
        found = self._known.get(value)
        if found is not None:
            return found
        made = self._plain(value)
        # What becomes of JSON in a string hangs on how deep it stands.
        if len(value) <= MAX_CACHED_LENGTH and value[0] not in "{[":
            if len(self._known) >= MAX_CACHED:
                self._known.clear()
            self._known[value] = made
        return made

    def _plain(self, value: str) -> str:
        if len(value) < shapes.MIN_ENTROPY_LENGTH and not _MAYBE.search(value) and value[0] not in "{[":
            return value  # too short for the rest
        if self.looks_secret(value):
            return self.tokens.token(value)
        if value.isalpha():
            return value
        if self.nested is not None and value[0] in "{[":
            return self.nested(value)
        return self.text(value)

    def looks_secret(self, value: str) -> bool:
        """Whether a whole value matches a pattern."""
        on = self._on
        if "email" in on and "@" in value and shapes.EMAIL.match(value):
            return True
        if "uuid" in on and len(value) == 36 and shapes.UUID.match(value):
            return True
        if "jwt" in on and value.startswith("eyJ") and shapes.JWT.match(value):
            return True
        if "card" in on and value[:1].isdigit() and shapes.is_card(value):
            return True
        if "phone" in on and value[:1] in "+(0123456789" and shapes.PHONE.match(value):
            return True
        if "entropy" not in on or len(value) < shapes.MIN_ENTROPY_LENGTH:
            return False
        return "/" not in value.rstrip("/=") and not shapes.UUID.match(value) and shapes.is_opaque(value)

    def text(self, text: str) -> str:
        """Running text: what looks like a secret in it is masked, and what follows a secret name."""
        if not _MAYBE.search(text):
            return text
        parts: list[str] = []
        kept = at = 0
        search = _IN_TEXT.search
        while match := search(text, at):
            group = match.lastgroup
            assert group is not None
            start, end = match.span(group)
            old = match.group(group)
            if group == "value" and not self.names.secret(match.group("name")):
                at = start
                if self.looks_secret(match.group("name")):
                    parts += (text[kept : match.start()], self.tokens.token(match.group("name")))
                    kept = match.end("name")
                continue
            if group in ("of_input", "of_element"):
                named = group.removeprefix("of_")
                if not self.names.secret(match.group(named)):
                    at = match.end(named)
                    continue
            if group in _REST:
                rest = _REST[group].match(text, start)
                assert rest is not None
                end, old = rest.end(), rest.group()
            if group == "of_element":  # what else it says
                parts += (text[kept : match.end("element")], self.text(text[match.end("element") : start]))
                kept = start
            new = self._of_text(group, old, match)
            if new != old:
                parts += (text[kept:start], new)
                kept = end
            at = max(end, match.end(), at + 1)
        if not parts:
            return text
        parts.append(text[kept:])
        return "".join(parts)

    def _of_text(self, group: str, old: str, match: re.Match[str]) -> str:
        if group == "credential":
            scheme = match.group("scheme")
            # "basic training" is prose: a credential has something of a credential.
            if len(old) >= 8 and not old.isalpha():
                return self.credential(scheme, old)[len(scheme) :]
            return old
        if group in _REST:
            return self.secret(old.rstrip()) + old[len(old.rstrip()) :]
        if group != "word":
            return self.tokens.token(old) if self.looks_secret(old) else old
        word = old.rstrip(".")
        if self.looks_secret(word):
            return self.tokens.token(word) + old[len(word) :]
        if "/" not in word:
            return old
        pieces = word.split("/")
        if word[0] != "/" and "entropy" in self._on and shapes.is_opaque(word) and not any(map(str.islower, pieces)):
            return self.tokens.token(word) + old[len(word) :]
        return "/".join(self.tokens.token(p) if self.looks_secret(p) else p for p in pieces) + old[len(word) :]
