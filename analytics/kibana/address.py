"""The address under which a run's dashboard opens, with its time range."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, urlsplit

from analytics.fields import NAME
from analytics.kibana.dashboards import dashboard_id
from analytics.kibana.reading import views
from wire.config import ConfigError

_NS: Final = 1_000_000_000
_BEFORE_S: Final = 10  # a window begins up to its length before the first outcome in it
_AFTER_S: Final = 30
_UNQUOTED: Final = "_-./~"


def base_address(kibana_url: str, space: str = "") -> str:
    """Where a space's pages are: `https://kibana:5601/s/ops`, which `kibana_url` may also name itself.

    Raises ConfigError for what is no address, holds a password, or names another space than `space`.
    """
    try:
        parts = urlsplit(kibana_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets, or a port beyond 65535
        usable = False
    if not usable:
        shown = kibana_url.rpartition("@")[2]  # what stands before may be a password
        raise ConfigError(f"kibana {shown!r} is no address; give one like https://kibana.example:5601")
    if parts.username or parts.password:
        raise ConfigError(f"kibana at {parts.hostname}: no user and password in the address; make an API key")
    if parts.query or parts.fragment:
        raise ConfigError(f"kibana {kibana_url!r}: an address without ? and #, as https://kibana.example:5601")
    path = parts.path.rstrip("/")
    named = path.rpartition("/s/")[2] if "/s/" in path else ""
    if space and named and space != named:
        raise ConfigError(f"kibana {kibana_url!r} names the space {named!r}, not {space!r}")
    if space and not named and space != "default":
        path += f"/s/{quote(space, safe='')}"
    return f"{parts.scheme}://{parts.netloc}{path}"


def dashboard_address(
    kibana_url: str, space: str, run_id: str, from_ns: int, to_ns: int | None, *, name: str = NAME
) -> str:
    """The drill's dashboard, of one run. Times since 1970; `to_ns` None = it goes on: up to now, refreshing itself.

    Raises ConfigError as `base_address` does.
    """
    ends = "now" if to_ns is None else _iso(to_ns + _AFTER_S * _NS, up=True)
    shown = {
        "refreshInterval": {"pause": to_ns is not None, "value": 10_000},
        "time": {"from": _iso(from_ns - _BEFORE_S * _NS), "to": ends},
    }
    key = "livefire.run_id"
    chosen = {
        "$state": {"store": "appState"},
        "meta": {
            "alias": None,
            "disabled": False,
            "index": views(name).routes.id,
            "key": key,
            "negate": False,
            "params": {"query": run_id},
            "type": "phrase",
        },
        "query": {"match_phrase": {key: run_id}},
    }
    state = f"_g={_quoted(shown)}&_a={_quoted({'filters': [chosen]})}"
    return f"{base_address(kibana_url, space)}/app/dashboards#/view/{dashboard_id('drill', name)}?{state}"


def rison(value: Any) -> str:
    """Kibana's way to write JSON in an address. Raises TypeError for what JSON does not have."""
    if value is None:
        return "!n"
    if isinstance(value, bool):
        return "!t" if value else "!f"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return "'" + value.replace("!", "!!").replace("'", "!'") + "'"
    if isinstance(value, list):
        return "!(" + ",".join(rison(item) for item in value) + ")"
    if isinstance(value, dict):
        return "(" + ",".join(f"{_key(key)}:{rison(item)}" for key, item in value.items()) + ")"
    raise TypeError(f"{type(value).__name__} cannot be written in an address")


def _key(key: str) -> str:
    plain = key[:1].isalpha() and all(char.isalnum() or char in "._" for char in key)
    return key if plain else rison(key)


def _quoted(value: Any) -> str:
    return quote(rison(value), safe=_UNQUOTED + "!'(),:")


def _iso(at_ns: int, *, up: bool = False) -> str:
    seconds = -(-at_ns // _NS) if up else at_ns // _NS
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
