"""The signed header that makes a request stress traffic.

The contract, for any language, is docs/marker.md:

    Livefire-Marker: v1;run=<run id>;exp=<unix seconds>;kid=<key id>;sig=<32 hex digits>

`sig` is the first 16 bytes of HMAC-SHA256 over everything before `;sig=`. There is one spelling of
each value (lower-case hex, no leading zeros, no blanks), so changing any bit makes it invalid.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

HEADER = "Livefire-Marker"
MAX_LENGTH = 192
# A marker is made when the request is fired; one that lives longer than this was not made for it.
MAX_AHEAD_S = 3600
MIN_KEY_BYTES = 16

Reason = Literal["malformed", "version", "unknown_key", "signature", "expired", "too_far"]

_RUN = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,32}", re.ASCII)
_VALUE = re.compile(
    r"(?P<signed>(?P<version>v[1-9][0-9]?);run=(?P<run>[A-Za-z0-9._-]{1,64});exp=(?P<exp>[1-9][0-9]{0,11})"
    r";kid=(?P<kid>[A-Za-z0-9._-]{1,32}));sig=(?P<sig>[0-9a-f]{32})",
    re.ASCII,
)
_OTHER_VERSION = re.compile(r"v(?!1;)[1-9][0-9]?;", re.ASCII)


@dataclass(frozen=True, slots=True)
class Marker:
    """A marker that verified: the run it belongs to, when it ends (unix seconds), the key that signed it."""

    run_id: str
    expires_s: int
    key_id: str


class BadMarker(ValueError):
    """A marker that does not verify. `reason` is one of `Reason`; the value itself is not repeated in it."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(f"marker refused: {reason}")
        self.reason: Reason = reason


def sign(run_id: str, expires_s: int, key_id: str, key: bytes) -> str:
    """The header value for `run_id`, valid until `expires_s` (unix seconds).

    Raises ValueError when an id has characters or a length that the contract does not allow, or
    when the key is shorter than 16 bytes.
    """
    if not _RUN.fullmatch(run_id):
        raise ValueError(f"run id {run_id!r}: 1 to 64 of A-Z a-z 0-9 . _ -")
    if not _KEY_ID.fullmatch(key_id):
        raise ValueError(f"key id {key_id!r}: 1 to 32 of A-Z a-z 0-9 . _ -")
    if not 0 < expires_s < 10**12:
        raise ValueError(f"expiry {expires_s}: unix seconds, above 0")
    if len(key) < MIN_KEY_BYTES:
        raise ValueError(f"key {key_id!r} has {len(key)} bytes, at least {MIN_KEY_BYTES} are needed")
    signed = f"v1;run={run_id};exp={expires_s};kid={key_id}"
    return f"{signed};sig={_signature(signed, key)}"


def verify(value: str, keys: Mapping[str, bytes], now_s: float) -> Marker:
    """The marker in a header's `value`, checked with the key it names. Raises BadMarker.

    `now_s` is unix time in seconds. The signature is checked before the expiry, so that a forger
    learns nothing about clocks.
    """
    if len(value) > MAX_LENGTH:
        raise BadMarker("malformed")
    match = _VALUE.fullmatch(value)
    if match is None:
        raise BadMarker("version" if _OTHER_VERSION.match(value) else "malformed")
    if match["version"] != "v1":
        raise BadMarker("version")
    key = keys.get(match["kid"])
    if key is None or len(key) < MIN_KEY_BYTES:
        raise BadMarker("unknown_key")
    if not hmac.compare_digest(match["sig"], _signature(match["signed"], key)):
        raise BadMarker("signature")
    expires_s = int(match["exp"])
    if expires_s <= now_s:
        raise BadMarker("expired")
    if expires_s > now_s + MAX_AHEAD_S:
        raise BadMarker("too_far")
    return Marker(match["run"], expires_s, match["kid"])


def verify_headers(values: Sequence[str], keys: Mapping[str, bytes], now_s: float) -> tuple[Marker, str] | None:
    """The marker and its value from all `Livefire-Marker` headers of one request; None when there is none.

    Only a request without any is production: an empty header, or two of them, is malformed. Raises BadMarker.
    """
    if not values:
        return None
    if len(values) != 1:
        raise BadMarker("malformed")
    return verify(values[0], keys, now_s), values[0]


def _signature(signed: str, key: bytes) -> str:
    return hmac.digest(key, signed.encode("ascii"), hashlib.sha256)[:16].hex()
