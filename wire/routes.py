"""Names of routes: which pattern of a learned table a request belongs to."""

from __future__ import annotations

from typing import Final

from wire import head as heads
from wire.places import segments_of
from wire.records import RouteTable

MAX_CACHED: Final = 8192
_Node = dict[str | None, "_Node | str"]  # None: any segment; "\0": the name of the route that ends here
_END: Final = "\0"


class RouteMatcher:
    """Gives each request the name of its route; the same table gives the same names everywhere."""

    def __init__(self, table: RouteTable) -> None:
        self._roots: dict[str, _Node] = {}
        self._cache: dict[tuple[bytes, bytes], str] = {}
        for route in table.routes:
            node = self._roots.setdefault(route.method, {})
            for segment in route.pattern:
                key = None if is_variable(segment) else segment
                child = node.setdefault(key, {})
                assert isinstance(child, dict)
                node = child
            node[_END] = route.name

    def name(self, method: bytes, target: bytes) -> str:
        """`GET /orders/{id}`; `GET (other)` for what the table does not hold. A literal wins over a variable."""
        path = heads.path_of(target)
        key = (method, path)
        found = self._cache.get(key)
        if found is None:
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            found = self._cache[key] = self._name(method.decode("ascii", "replace"), path)
        return found

    def _name(self, method: str, path: bytes) -> str:
        root = self._roots.get(method)
        name = _walk(root, segments_of(path), 0) if root is not None and path else None
        return name if name is not None else f"{method[:20]} (other)"


def is_variable(segment: str) -> bool:
    """Whether a pattern's segment stands for any one."""
    return segment.startswith("{") and segment.endswith("}") and len(segment) > 1


def _walk(node: _Node, segments: list[str], at: int) -> str | None:
    while at < len(segments):
        segment = segments[at]
        literal = node.get(segment) if segment != _END else None
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
