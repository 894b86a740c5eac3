"""What a service sets: its name and the keys whose markers it trusts."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from livefire_shadow.marker import MIN_KEY_BYTES

KEYS_VARIABLE = "LIVEFIRE_SHADOW_KEYS"


@dataclass(frozen=True, slots=True)
class Settings:
    """The service's name, and keys by id. Without keys every marker is refused, and stress traffic with it."""

    service: str
    keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def from_env(cls, service: str, environ: Mapping[str, str] | None = None) -> "Settings":
        """Reads `LIVEFIRE_SHADOW_KEYS="kid:hex[,kid:hex]"`; unset or empty means no keys.

        Raises ValueError, naming the key's id but never its value, when an entry is not of that
        shape, an id comes twice, or a key is shorter than 16 bytes.
        """
        text = (os.environ if environ is None else environ).get(KEYS_VARIABLE, "").strip()
        keys: dict[str, bytes] = {}
        for number, entry in enumerate(text.split(",") if text else (), start=1):
            key_id, colon, digits = entry.strip().partition(":")
            try:
                key = bytes.fromhex(digits)
            except ValueError:
                raise ValueError(f"{KEYS_VARIABLE}: entry {number} ({key_id!r}) is not hexadecimal") from None
            if not key_id or not colon:
                raise ValueError(f"{KEYS_VARIABLE}: entry {number} is not `key id:hex`")
            if key_id in keys:
                raise ValueError(f"{KEYS_VARIABLE}: key {key_id!r} comes twice")
            if len(key) < MIN_KEY_BYTES:
                raise ValueError(f"{KEYS_VARIABLE}: key {key_id!r} has {len(key)} bytes, needs {MIN_KEY_BYTES}")
            keys[key_id] = key
        return cls(service, keys)


def wall_s() -> float:
    """Unix time in seconds: an expiry is set by another host, so it can only be compared with wall time."""
    return time.time()  # noqa: TID251
