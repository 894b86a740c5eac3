"""The values of a JSON text with their places. The hot loop of learning flows: `jsontext.scalars`, made to be fast.

Paths repeat, so each is made once and remembered as a tree of steps; trees are bounded.
"""

from __future__ import annotations

import re
from typing import Final

from wire import jsontext
from wire.records import Place, PlaceKind

MAX_STEPS: Final = 8192
#: `jsontext.TOKEN`, with a key and the string or number that follows it as one: 6: that key, 7: string, 8: number.
_TOKEN: Final = re.compile(
    rb'"(?P<key>[^"\\]*)"\s*:\s*(?:"(?P<string>[^"\\]*)"(?!\s*:)|(?P<bare>[^\s"{}\[\],:]+))|' + jsontext.TOKEN.pattern,
    re.DOTALL,
)
_KEY, _STRING, _BARE = (_TOKEN.groupindex[name] for name in ("key", "string", "bare"))
#: What stands for the element of a container before its first key.
_ELEMENT: Final[dict[bytes, bytes | None]] = {b"[": None, b"{": b""}


class _Step:
    """A place, and what is below it."""

    __slots__ = ("below", "path", "place")

    def __init__(self, path: jsontext.Path) -> None:
        self.path = path
        self.place: Place | None = None
        self.below: dict[bytes | None, _Step] = {}  # by key as it is written; None: elements of an array


class _Tree:
    __slots__ = ("root", "steps")

    def __init__(self) -> None:
        self.root = _Step(())
        self.steps = 0

    def below(self, step: _Step, raw: bytes | None) -> _Step:
        if len(step.path) < jsontext.MAX_DEPTH:
            path = (*step.path, None if raw is None else jsontext.unquoted(raw))
        else:
            path = step.path
        self.steps += 1
        made = step.below[raw] = _Step(path)
        return made


_tree = _Tree()


def json_values(text: bytes) -> list[tuple[Place, str]]:
    """The strings and numbers that `jsontext.scalars` gives, but for one that is cut off, each with its place."""
    global _tree
    if _tree.steps > MAX_STEPS:
        _tree = _Tree()
    make = _tree.below
    values: list[tuple[Place, str]] = []
    around: list[_Step] = []
    container = here = _tree.root  # the innermost container, and its present element
    size = len(text)
    for match in _TOKEN.finditer(text):
        kind = match.lastindex
        if kind in (_STRING, _BARE):
            key, raw = match.group(_KEY, kind)
            if around:
                here = container.below.get(key) or make(container, key)
            if kind == _BARE and (raw in jsontext.WORDS or match.end() == size):
                continue
        elif kind == _BARE + 1:
            raw = match.group(kind)
            if b"\\" in raw:
                values.append((_place(here), jsontext.unquoted(raw)))
                continue
        elif kind == _BARE + 2:
            if around:
                key = match.group(_BARE + 1)
                here = container.below.get(key) or make(container, key)
            continue
        elif kind == _BARE + 3:
            raw = match.group(kind)
            if raw in jsontext.WORDS or match.end() == size:
                continue
        elif kind == _BARE + 4:
            sign = match.group(kind)
            if sign in b"{[":
                around.append(container)
                container = here
                element = _ELEMENT[sign]
                here = container.below.get(element) or make(container, element)
            elif around:
                here = container
                container = around.pop()
            continue
        else:
            continue
        values.append((here.place or _place(here), raw.decode("utf-8", "surrogateescape")))
    return values


def _place(step: _Step) -> Place:
    if step.place is None:
        step.place = Place(PlaceKind.JSON, jsontext.written(step.path))
    return step.place
