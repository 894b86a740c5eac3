"""Learns routes: which segments of paths vary, by their shape and by how many there are.

The order in which paths come does not matter, and the same paths give the same routes. Memory is bounded: of each
level at most MAX_CHILDREN names are told apart; a level that has more is an id.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from mask import shapes, tokens
from wire.config import ConfigError
from wire.places import is_text, segments_of
from wire.records import Route, RouteTable
from wire.routes import is_variable

MAX_CHILDREN: Final = 400  # literal names of one level while learning
MAX_NODES: Final = 100_000
MAX_DEPTH: Final = 16
MANY: Final = 24  # this many names alike at one level are values, not names
ALIKE: Final = 3  # ... and this many that differ in their digits alone
MAX_ROUTES: Final = 1000
VARIABLE: Final = "{id}"

_VERSION: Final = re.compile(r"v\d{1,3}(?:\.\d{1,3})?\Z", re.IGNORECASE)
_NUMBER_LIKE: Final = re.compile(r"-?\d+\Z|.*\d{3}|(?=.*\d)[0-9a-fA-F]{8,}\Z")
_DIGITS: Final = re.compile(r"\d+")


class _Node:
    __slots__ = ("children", "ends", "full", "hits", "lengths", "variable")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.variable: _Node | None = None
        self.ends: dict[str, int] = {}  # method -> requests that end here
        self.hits = 0
        self.lengths: set[int] = set()  # of the names that are values by their shape
        self.full = False  # had more names than are told apart: all further ones are values


class RouteLearner:
    def __init__(self, known: Iterable[str] = (), rename: Mapping[str, str] | None = None) -> None:
        """`known`: patterns such as `GET /shop/{slug}`, which win; `rename`: pattern -> name. Raises ConfigError."""
        self._root = _Node()
        self._nodes = 1
        self._known = [_pattern(text) for text in known]
        self._rename = dict(rename or {})

    def add(self, method: str, path: bytes, count: int = 1) -> None:
        """One request. Paths in other forms than `/...` are passed over."""
        if not path.startswith(b"/"):
            return
        node = self._root
        segments = segments_of(path)
        for segment in segments[:MAX_DEPTH]:
            node = self._child(node, segment)
            node.hits += count
        if len(segments) <= MAX_DEPTH:
            node.ends[method] = node.ends.get(method, 0) + count

    def _child(self, node: _Node, segment: str) -> _Node:
        found = node.children.get(segment)
        if found is not None:
            return found
        if len(node.children) >= MAX_CHILDREN:
            _merge_children(node, list(node.children))
            node.full = True
        if node.full or self._nodes >= MAX_NODES or varies(segment) or is_variable(segment) or not is_text(segment):
            if node.variable is None:
                node.variable = _Node()
            node.lengths.add(len(segment))
            return node.variable
        self._nodes += 1
        found = node.children[segment] = _Node()
        return found

    def table(self, recording_id: str) -> RouteTable:
        """What was learned, the known patterns with it. May be called again after more was added."""
        _collapse(self._root)
        found: dict[tuple[str, tuple[str, ...]], int] = {}
        _collect(self._root, (), found)
        routes = {
            (method, pattern): Route(self._name(method, pattern), method, pattern, count)
            for (method, pattern), count in sorted(found.items(), key=lambda item: (-item[1], item[0]))[:MAX_ROUTES]
        }
        for method, pattern in self._known:
            covered = [key for key in routes if key[0] == method and _covers(pattern, key[1])]
            count = sum(routes.pop(key).count for key in covered)
            routes[method, pattern] = Route(self._name(method, pattern), method, pattern, count)
        return RouteTable(recording_id, tuple(sorted(routes.values(), key=lambda route: (route.pattern, route.method))))

    def _name(self, method: str, pattern: tuple[str, ...]) -> str:
        name = f"{method} /{'/'.join(pattern)}"
        return self._rename.get(name, name)


def varies(segment: str) -> bool:
    """Whether a segment looks like a value by itself: numbers, UUIDs, hex, tokens, e-mails, dates."""
    if not segment or _VERSION.match(segment):
        return False
    if _NUMBER_LIKE.match(segment) or shapes.UUID.match(segment) or shapes.EMAIL.match(segment):
        return True
    if len(segment) >= 8 and tokens.is_token(segment) and not segment.islower():
        return True
    return shapes.is_opaque(segment) or len(segment) > 64


def _merge_children(node: _Node, names: list[str]) -> None:
    if node.variable is None:
        node.variable = _Node()
    for name in names:
        _merge(node.variable, node.children.pop(name))


def _merge(into: _Node, other: _Node) -> None:
    into.hits += other.hits
    for method, count in other.ends.items():
        into.ends[method] = into.ends.get(method, 0) + count
    if other.variable is not None:
        if into.variable is None:
            into.variable = other.variable
        else:
            _merge(into.variable, other.variable)
    for name, child in other.children.items():
        mine = into.children.get(name)
        if mine is None:
            into.children[name] = child
        else:
            _merge(mine, child)


def _collapse(node: _Node) -> None:
    """Find the levels whose names are values; the leaves' shapes decide, so the deepest come last."""
    by_skeleton: dict[str, list[str]] = {}
    for name in node.children:
        if _DIGITS.search(name) and not _VERSION.match(name):
            by_skeleton.setdefault(_DIGITS.sub("0", name), []).append(name)
    for names in by_skeleton.values():
        if len(names) >= ALIKE or node.variable is not None:
            _merge_children(node, names)
    if len(node.children) >= MANY:
        by_form: dict[object, list[str]] = {}
        for name, child in node.children.items():
            form = (frozenset(child.ends), frozenset(child.children), child.variable is not None)
            by_form.setdefault(form, []).append(name)
        for names in by_form.values():
            if len(names) >= MANY:
                _merge_children(node, names)
    if node.variable is not None:
        odd = [name for name, child in node.children.items() if _is_odd(name, child.hits, node)]
        if odd:
            _merge_children(node, odd)
        _collapse(node.variable)
    for child in node.children.values():
        _collapse(child)


def _is_odd(name: str, hits: int, level: _Node) -> bool:
    """Whether a name beside ids is an id that does not look like one: in mixed case, and hardly ever asked for; or of
    letters alone, as long as the ids are."""
    assert level.variable is not None
    if name.islower() or name.isupper() or len(name) < 6:
        return False
    if not name.isalpha():
        return hits <= max(2, level.variable.hits // 50)
    mixed = not name[1:].islower() and sum(map(str.isupper, name)) > 2
    return mixed and len(name) >= 10 and len(name) in level.lengths and hits <= max(4, level.variable.hits // 4)


def _collect(node: _Node, pattern: tuple[str, ...], found: dict[tuple[str, tuple[str, ...]], int]) -> None:
    for method, count in node.ends.items():
        found[method, pattern] = count
    for name, child in node.children.items():
        _collect(child, (*pattern, name), found)
    if node.variable is not None:
        _collect(node.variable, (*pattern, VARIABLE), found)


def _pattern(text: str) -> tuple[str, tuple[str, ...]]:
    method, _, path = text.strip().partition(" ")
    if not method.isalpha() or not method.isupper() or not path.startswith("/"):
        raise ConfigError(f"routes: {text!r} is not a route (as in GET /orders/{{id}})")
    return method, tuple(segments_of(path.encode()))


def _covers(pattern: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return len(pattern) == len(other) and all(
        is_variable(mine) or mine == theirs for mine, theirs in zip(pattern, other, strict=True)
    )
