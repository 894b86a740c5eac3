"""Reads the audits of services (docs/marker.md): what each process did with marked requests since it started."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from livefire_shadow.marker import HEADER, sign
from wire.config import ConfigError

PATH: Final = "/.livefire/audit"
_MAX_BYTES: Final = 4 << 20


class AuditError(Exception):
    """A service whose audit cannot be read: one line."""


class Violation(msgspec.Struct, frozen=True):
    """Work that reached for the wrong store, and was refused."""

    place: str
    store: str = ""
    statement: str = ""
    count: int = 1
    kind: str = ""


class Blocked(msgspec.Struct, frozen=True):
    """A call to a host that stress traffic may not reach, which was not sent."""

    place: str
    host: str
    count: int = 1


class Audit(msgspec.Struct, frozen=True):
    """One service's counters; fields that a newer one adds are passed over."""

    service: str
    marked_requests: int
    pid: int = 0
    since: str = ""
    production_requests: int = 0
    refused: dict[str, int] = {}
    shadow_writes: dict[str, int] = {}
    violations: tuple[Violation, ...] = ()
    violations_elsewhere: int = 0
    blocked_outbound: tuple[Blocked, ...] = ()
    blocked_outbound_elsewhere: int = 0
    mocked: dict[str, int] = {}
    lost_context: int = 0
    lost_places: dict[str, int] = {}

    def same_process(self, other: Audit) -> bool:
        """Whether both are of one process: counters begin anew with each."""
        return (other.pid, other.since) == (self.pid, self.since)

    def since_then(self, before: Audit | None) -> Audit:
        """What was counted since `before`; everything, if the process was started anew in between."""
        if before is None or not self.same_process(before):
            return self
        held = {(v.kind, v.place, v.store, v.statement): v.count for v in before.violations}
        blocked = {(b.place, b.host): b.count for b in before.blocked_outbound}
        grown = (
            msgspec.structs.replace(v, count=v.count - held.get((v.kind, v.place, v.store, v.statement), 0))
            for v in self.violations
        )
        stopped = (
            msgspec.structs.replace(b, count=b.count - blocked.get((b.place, b.host), 0)) for b in self.blocked_outbound
        )
        return msgspec.structs.replace(
            self,
            marked_requests=self.marked_requests - before.marked_requests,
            production_requests=self.production_requests - before.production_requests,
            refused=_growth(self.refused, before.refused),
            shadow_writes=_growth(self.shadow_writes, before.shadow_writes),
            violations=tuple(v for v in grown if v.count > 0),
            violations_elsewhere=self.violations_elsewhere - before.violations_elsewhere,
            blocked_outbound=tuple(b for b in stopped if b.count > 0),
            blocked_outbound_elsewhere=self.blocked_outbound_elsewhere - before.blocked_outbound_elsewhere,
            mocked=_growth(self.mocked, before.mocked),
            lost_context=self.lost_context - before.lost_context,
            lost_places=_growth(self.lost_places, before.lost_places),
        )


class AuditClient:
    """Asks with a marker of the run, made anew each time. `now_s` is unix time in seconds."""

    def __init__(
        self, run_id: str, key_id: str, key: bytes, now_s: Callable[[], float], timeout_s: float = 2.0
    ) -> None:
        self._run_id, self._key_id, self._key = run_id, key_id, key
        self._now_s = now_s
        self._timeout_s = timeout_s

    def read(self, url: str) -> Audit:
        """Raises AuditError: no answer, not 200, or not an audit. Redirects are not followed."""
        try:
            return msgspec.json.decode(self.get(url, PATH), type=Audit)
        except msgspec.MsgspecError as error:
            raise AuditError(f"{url}{PATH} is no audit: {error}") from None

    def read_any(self, url: str) -> dict[str, Any]:
        """The counts of a mock, which are shaped otherwise. Raises AuditError."""
        try:
            return msgspec.json.decode(self.get(url, PATH), type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise AuditError(f"{url}{PATH} is no audit: {error}") from None

    def get(self, url: str, path: str) -> bytes:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"isolation service {url!r} is not a URL, as in http://127.0.0.1:8080")
        make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = make(parts.hostname, parts.port, timeout=self._timeout_s)
        marker = sign(self._run_id, int(self._now_s()) + 60, self._key_id, self._key)
        try:
            connection.request("GET", parts.path.rstrip("/") + path, headers={HEADER: marker, "Connection": "close"})
            answer = connection.getresponse()
            body = answer.read(_MAX_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise AuditError(f"{url} did not answer: {error or type(error).__name__}") from None
        finally:
            connection.close()
        if answer.status != 200:
            hint = " (does it trust this key?)" if answer.status == 403 else ""
            hint = hint or (" (is livefire_shadow installed there?)" if answer.status == 404 else "")
            raise AuditError(f"{url}{path} answered {answer.status}{hint}")
        return body


def _growth(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: count - before.get(name, 0) for name, count in now.items() if count > before.get(name, 0)}
