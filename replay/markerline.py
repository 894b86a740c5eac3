"""The field line that marks a shot, made at fire time."""

from __future__ import annotations

from livefire_shadow import marker


class MarkerLine:
    """Its expiry is counted in seconds, so one line serves all shots of a second."""

    def __init__(self, run_id: str, key_id: str, key: bytes, lifetime_s: int) -> None:
        self._run_id, self._key_id, self._key, self._lifetime_s = run_id, key_id, key, lifetime_s
        self._second = -1
        self._line = b""

    def at(self, now_ns: int) -> bytes:
        second = now_ns // 1_000_000_000
        if second != self._second:
            value = marker.sign(self._run_id, second + self._lifetime_s, self._key_id, self._key)
            self._line = b"%b: %b\r\n" % (marker.HEADER.encode(), value.encode())
            self._second = second
        return self._line
