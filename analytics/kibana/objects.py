"""The envelope that every saved object travels in, and the file of them.

Versions are those with which Kibana 8.9 and later take an import: each says which shape the attributes have, and
without one every migration since 7 would run and trip over today's shape.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

CORE_VERSION: Final = "8.8.0"
TYPE_VERSIONS: Final = {
    "index-pattern": "8.0.0",
    "lens": "8.9.0",
    "visualization": "8.5.0",
    "dashboard": "8.9.0",
}


class Reference(msgspec.Struct, frozen=True):
    """What an object needs: which one (type and id), and the name by which its attributes speak of it."""

    name: str
    type: str
    id: str


class SavedObject(msgspec.Struct, frozen=True):
    """One line of the file. Ids stay the same from release to release, so that importing again overwrites."""

    type: str
    id: str
    attributes: dict[str, Any]
    references: tuple[Reference, ...] = ()

    @property
    def title(self) -> str:
        return str(self.attributes.get("name") or self.attributes["title"])

    def line(self) -> str:
        return text(
            {
                "type": self.type,
                "id": self.id,
                "attributes": self.attributes,
                "references": [{"name": r.name, "type": r.type, "id": r.id} for r in self.references],
                "coreMigrationVersion": CORE_VERSION,
                "typeMigrationVersion": TYPE_VERSIONS[self.type],
                "managed": False,
            }
        )


def text(value: Any) -> str:
    """JSON as the file and the attributes that hold text want it: one line, the same for the same value."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def ndjson(objects: Iterable[SavedObject]) -> str:
    """The file that `_import` takes: an object a line."""
    return "".join(found.line() + "\n" for found in objects)


def search_source(query: str = "") -> Mapping[str, str]:
    """What objects keep of a search: a query in Kibana's language, no filters."""
    return {"searchSourceJSON": text({"query": {"query": query, "language": "kuery"}, "filter": []})}
