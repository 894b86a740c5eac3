"""Names of routes: which pattern of a learned table a request belongs to."""

from __future__ import annotations

from typing import Final

from wire import head as heads
from wire.places import segments_of
from wire.records import RouteTable

MAX_CACHED: Final = 8192
_Node = dict[str | int | None, "_Node | str"]  # None: any segment; _END: the name of the route that ends here
_END: Final = 0  # no segment is a number
#: What is left to tell when all but the last segment is known: names by that one's bytes, and that of all others.
_Last = tuple[dict[bytes, str], str]


class RouteMatcher:
    """Gives each request the name of its route; the same table gives the same names everywhere."""

    def __init__(self, table: RouteTable) -> None:
        self._roots: dict[str, _Node] = {}
        self._cache: dict[tuple[bytes, bytes], _Last] = {}  # (method, path up to its last slash)
        self._lasts: dict[tuple[int, ...], _Last] = {}  # by the nodes that such a path leads to
        for route in table.routes:
            node = self._roots.setdefault(route.method, {})
            for segment in route.pattern:
                key = None if is_variable(segment) else segment
                child = node.setdefault(key, {})
                assert isinstance(child, dict)
                node = child
            node.setdefault(_END, route.name)

    def name(self, method: bytes, target: bytes) -> str:
        """`GET /orders/{id}`; `GET (other)` for what the table does not hold. A literal wins over a variable."""
        return self.of_path(method, heads.path_of(target))

    def of_path(self, method: bytes, path: bytes) -> str:
        """The same of a path, which begins with a slash, or is empty."""
        if b"%" in path or len(path) < 2:
            return self._name(method, path)
        front, _, last = path.rpartition(b"/")
        # Most paths end in an id that does not come again: what is kept is what stands before it.
        found = self._cache.get((method, front))
        if found is None:
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            found = self._cache[method, front] = self._last(method, segments_of(path)[:-1])
        return found[0].get(last, found[1])

    def _name(self, method: bytes, path: bytes) -> str:
        known = method.decode("ascii", "replace")
        root = self._roots.get(known)
        name = _walk(root, segments_of(path), 0) if root is not None and path else None
        return name if name is not None else _other(known)

    def _last(self, method: bytes, segments: list[str]) -> _Last:
        known = method.decode("ascii", "replace")
        root = self._roots.get(known)
        if root is None:
            return {}, _other(known)
        nodes = [root]
        for segment in segments:
            nodes = [
                child for node in nodes for child in (node.get(segment), node.get(None)) if isinstance(child, dict)
            ]
        if not nodes:
            return {}, _other(known)
        # A table has few such places, however many paths lead there.
        places = tuple(map(id, nodes))
        found = self._lasts.get(places)
        if found is None:
            if len(self._lasts) >= MAX_CACHED:
                self._lasts.clear()
            other = _other(known)
            literals = {key for node in nodes for key in node if isinstance(key, str)}
            names = {text: _ending(nodes, key, other) for key in literals if (text := _bytes_of(key)) is not None}
            found = self._lasts[places] = names, _ending(nodes, None, other)
        return found


def is_variable(segment: str) -> bool:
    """Whether a pattern's segment stands for any one."""
    return segment.startswith("{") and segment.endswith("}") and len(segment) > 1


def _other(method: str) -> str:
    return f"{method[:20]} (other)"


def _bytes_of(segment: str) -> bytes | None:
    """As it stands in a path where nothing is written as %XX; None for what cannot stand there so."""
    try:
        text = segment.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None
    return text if text.decode("utf-8", "surrogateescape") == segment else None


def _ending(nodes: list[_Node], segment: str | None, other: str) -> str:
    """The name of a path that leads to these nodes and ends in this segment; None = one that no node knows."""
    for node in nodes:
        for child in (node.get(segment), node.get(None)):
            if isinstance(child, dict) and isinstance(name := child.get(_END), str):
                return name
    return other


def _walk(node: _Node, segments: list[str], at: int) -> str | None:
    while at < len(segments):
        segment = segments[at]
        literal = node.get(segment)
        variable = node.get(None)
        at += 1
        if literal is not None and variable is not None:
            assert isinstance(literal, dict)
            found = _walk(literal, segments, at)
            if found is not None:
                return found
            literal = None
        child = variable if literal is None else literal
        if not isinstance(child, dict):
            return None
        node = child
    name = node.get(_END)
    return name if isinstance(name, str) else None
