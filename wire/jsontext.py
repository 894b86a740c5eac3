"""JSON as text: where each value stands, so that one can be changed and every other byte kept.

A scanner, not a parser: it never raises, and it goes on through what is not JSON, because a body that was cut
off, or is malformed, must be searched and masked like any other. Text is UTF-8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

#: A step of a path: a key, or None for any element of an array.
Path = tuple[str | None, ...]

MAX_DEPTH: Final = 200  # deeper values are given the path of their ancestor at this depth

# 1: a string, 2: the colon that makes it a key; 3: a number or word; 4: structure; 5: a string that is cut off
TOKEN: Final = re.compile(
    rb'"([^"\\]*(?:\\.[^"\\]*)*)"(\s*:)?|([^\s"{}\[\],:]+)|([{}\[\]])|"([^"\\]*(?:\\.[^"\\]*)*\\?)\Z', re.DOTALL
)
_INTEGER: Final = re.compile(rb"-?(?:0|[1-9]\d*)\Z")
_NUMBER: Final = re.compile(rb"-?\d+(?:\.\d*)?(?:[eE][+-]?\d*)?\Z")
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_$][\w$-]*\Z", re.ASCII)
_STEP: Final = re.compile(r"\.([A-Za-z_$][\w$-]*)|\[(\*)\]|\[(\"(?:[^\"\\]|\\.)*\")\]", re.ASCII)
WORDS: Final = (b"true", b"false", b"null")


class Scalar(NamedTuple):
    """One value: `text[start:end]` is what stands for it, quotes included."""

    path: Path
    start: int
    end: int
    value: str  # decoded text of a string; a number as it is written
    string: bool
    whole: bool  # False: the text ends inside it


def scalars(text: bytes) -> Iterator[Scalar]:
    """All strings and numbers, in order; true, false and null are passed over. Anything else that stands bare is
    given as if it were a string, since it may be the rest of one."""
    stack: list[str | None] = []  # of the containers around: the step that stands for their present element
    for match in TOKEN.finditer(text):
        kind = match.lastindex
        if kind == 4:
            sign = match.group(4)
            if sign in b"{[":
                stack.append(None if sign == b"[" else "")
            elif stack:
                stack.pop()
            continue
        if kind == 2:
            if stack:
                stack[-1] = unquoted(match.group(1))
            continue
        path = tuple(stack[:MAX_DEPTH])
        if kind == 3:
            word = match.group(3)
            if word in WORDS:
                continue
            end = match.end()
            yield Scalar(path, match.start(), end, word.decode("utf-8", "surrogateescape"), False, end < len(text))
        elif kind == 1:
            yield Scalar(path, match.start(), match.end(), unquoted(match.group(1)), True, True)
        else:
            yield Scalar(path, match.start(), match.end(), unquoted(match.group(5)), True, False)


def unquoted(inner: bytes) -> str:
    """The text of a string, given without its quotes. Escapes that mean nothing are kept as they are written, and so
    is a string with half of a surrogate pair: that is no text, and could be put nowhere else."""
    text = decoded(inner)
    if b"\\" in inner and not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return inner.decode("utf-8", "surrogateescape")
    return text


def decoded(inner: bytes) -> str:
    """The same with halves of surrogate pairs decoded, too: for who looks at it and writes JSON again."""
    if b"\\" not in inner:
        return inner.decode("utf-8", "surrogateescape")
    try:
        return str(json.loads(b'"' + inner + b'"', strict=False))
    except ValueError:
        return inner.decode("utf-8", "surrogateescape")


def quoted(value: str) -> bytes:
    """The JSON string, in UTF-8, of any text."""
    raw = json.dumps(value, ensure_ascii=False)
    try:
        return raw.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return json.dumps(value).encode("ascii")


def changed(text: bytes, change: Callable[[Scalar], bytes | None]) -> bytes:
    """The text with each value replaced by what `change` returns for it (JSON, quotes included); None keeps it."""
    parts: list[bytes] = []
    at = 0
    for scalar in scalars(text):
        new = change(scalar)
        if new is not None:
            parts += (text[at : scalar.start], new)
            at = scalar.end
    if not parts:
        return text
    parts.append(text[at:])
    return b"".join(parts)


def is_number(value: str) -> bool:
    return _NUMBER.match(value.encode("utf-8", "surrogateescape")) is not None


def replacement(scalar: Scalar, new: str) -> bytes:
    """What stands for `new` in the place of `scalar`: a number stays one if `new` is an integer."""
    if not scalar.string:
        raw = new.encode("utf-8", "surrogateescape")
        if _INTEGER.match(raw):
            return raw
    return quoted(new)


def written(path: Path) -> str:
    """`$.items[*].id`; a key that is not a plain name is written `["like this"]`."""
    parts = ["$"]
    for step in path:
        if step is None:
            parts.append("[*]")
        elif _PLAIN_KEY.match(step):
            parts.append(f".{step}")
        else:
            parts.append(f"[{json.dumps(step)}]")
    return "".join(parts)


def read_path(text: str) -> Path:
    """The reverse of `written`. Raises ValueError."""
    if not text.startswith("$"):
        raise ValueError(f"not a JSON path: {text!r} (as in $.items[*].id)")
    steps: list[str | None] = []
    at = 1
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None:
            raise ValueError(f"not a JSON path: {text!r}, from {text[at:]!r}")
        if match.group(1) is not None:
            steps.append(match.group(1))
        elif match.group(2):
            steps.append(None)
        else:
            steps.append(json.loads(match.group(3)))
        at = match.end()
    return tuple(steps)
