"""A store by its address.

    clickhouse://[user[:PASSWORD_VARIABLE]@]host[:port]/database
    elasticsearch://[user[:PASSWORD_VARIABLE]@]host[:port][/prefix]      elasticsearchs:// for TLS
    a path: a file holds one run; in a folder (it is there, or the path ends with "/") each run has its own file

What stands behind the user's name is the *name* of an environment variable: everyone on the host can read
a command line. Drivers are imported when an address asks for them.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final, cast
from urllib.parse import unquote, urlsplit

import msgspec

from analytics.store_port import Ahead, PaneReader, Store, StoreError
from analytics.store_sqlite import PaneStore, StoredPanes
from wire.config import suggestion

#: scheme -> (module with `open_at`, extra that installs its driver, default port)
_SCHEMES: Final = {
    "clickhouse": ("analytics.store_clickhouse", "clickhouse", 9000),
    "elasticsearch": ("analytics.store_elasticsearch", "elasticsearch", 9200),
    "elasticsearchs": ("analytics.store_elasticsearch", "elasticsearch", 9200),
}
#: "db:9000", "db:9000/livefire", "clickhouse:db:9000": somebody forgot what stands before a host.
_LIKE_HOST: Final = re.compile(r"[\w.-]+:([\w.-]+:)?\d+(/[\w.-]*)?$")


class StoreAddress(msgspec.Struct, frozen=True):
    scheme: str
    host: str
    port: int
    name: str = ""  # of the database, or the prefix of indices; "" = the backend's own default
    user: str = ""
    password: str = ""

    def __str__(self) -> str:
        """As it may be shown: without the password."""
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{user}{host}:{self.port}" + (f"/{self.name}" if self.name else "")

    def __repr__(self) -> str:
        return f"StoreAddress({self})"


def parse_address(text: str) -> StoreAddress | Path:
    """Raises StoreError in one line for an address that is none, and for a password variable that is not set."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        if not text:
            raise StoreError(
                "the store's address is empty: a path, clickhouse://host:port/database or elasticsearch://host:port"
            )
        if _LIKE_HOST.match(text):
            raise StoreError(
                f"{text}: neither an address nor a path (clickhouse://host:port/database, "
                "elasticsearch://host:port; a file of that name is ./NAME)"
            )
        return Path(text)
    if scheme not in _SCHEMES:
        raise StoreError(f"{scheme}://...: no such kind of store{suggestion(scheme, list(_SCHEMES))}; or give a path")
    shown = f"{scheme}://...{rest.rpartition('@')[2]}" if "@" in rest else text
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise StoreError(f"{shown}: not an address ({scheme}://host:port/name)") from None
    if not parts.hostname or parts.query or parts.fragment:
        raise StoreError(f"{shown}: not an address ({scheme}://host:port/name)")
    password = ""
    if parts.password is not None:
        found = os.environ.get(unquote(parts.password))
        if found is None:  # not named: somebody may have written the password itself
            raise StoreError(
                f"{shown}: behind the user stands the name of the environment variable that holds the password; "
                "there is no such variable"
            )
        password = found
    name = unquote(parts.path).strip("/")
    if "/" in name:
        raise StoreError(f"{shown}: one name behind the host ({scheme}://host:port/name)")
    return StoreAddress(
        scheme, parts.hostname, port or _SCHEMES[scheme][2], name, unquote(parts.username or ""), password
    )


def open_store(address: str, run_id: str) -> Store:
    """The writer of a run's panes. Raises StoreError in one line, StoreAway when it is not there now."""
    where = parse_address(address)
    if isinstance(where, Path):
        return PaneStore(_file(address, where, run_id), run_id)
    return _opened(where, run_id, write=True)


def open_reader(address: str, run_id: str) -> PaneReader:
    """A reader of a run's panes. Raises as `open_store`, and where there are none."""
    where = parse_address(address)
    if isinstance(where, Path):
        return StoredPanes(_file(address, where, run_id))
    return _opened(where, run_id, write=False)


def open_ahead(address: str) -> Ahead | None:
    """Of a store that has something to be made ready; None for others. Raises as `open_store`."""
    where = parse_address(address)
    if isinstance(where, Path):
        return None
    make = getattr(_module(where), "ahead_at", None)
    return None if make is None else cast(Ahead, make(where))


def _file(address: str, path: Path, run_id: str) -> Path:
    return path / f"{run_id}.db" if address.endswith("/") or path.is_dir() else path


def _opened(where: StoreAddress, run_id: str, *, write: bool) -> Store:
    return cast(Store, _module(where).open_at(where, run_id, write=write))


def _module(where: StoreAddress) -> ModuleType:
    module, extra, _ = _SCHEMES[where.scheme]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise StoreError(f"{where}: {error.name} is not installed: pip install 'livefire[{extra}]'") from None
