"""Keys: one that masks values, and those that sign markers. A file of mode 0600.

Agents that record the same system share the masking key, or the same value gets different tokens.
A service under test gets marker keys as LIVEFIRE_SHADOW_KEYS=id:hex[,id:hex].
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

import msgspec

from livefire.errors import words_of
from wire.config import ConfigError


class MarkerKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    key: str  # hex


class Keyring(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of a key file. The first marker key signs; all of them verify."""

    masking: str  # hex, 32 bytes
    markers: tuple[MarkerKey, ...]

    @property
    def masking_key(self) -> bytes:
        return bytes.fromhex(self.masking)

    @property
    def marker(self) -> MarkerKey:
        return self.markers[0]

    def shadow_keys(self) -> str:
        """The value of LIVEFIRE_SHADOW_KEYS."""
        return ",".join(f"{key.id}:{key.key}" for key in self.markers)


def fingerprint(key: str) -> str:
    """What may be shown of a key: 8 hex characters of its hash."""
    return hashlib.blake2b(bytes.fromhex(key), digest_size=4, person=b"lf-fingerprint").hexdigest()


def new_marker_key() -> MarkerKey:
    return MarkerKey("k" + secrets.token_hex(3), secrets.token_hex(32))


def new() -> Keyring:
    return Keyring(secrets.token_hex(32), (new_marker_key(),))


def load(path: Path) -> Keyring:
    """Raises ConfigError: no file, readable by others, not a key file."""
    try:
        status = path.stat()
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no key file; make one: livefire keys new") from None
    except OSError as error:
        raise ConfigError(f"{path}: {os.strerror(error.errno or 0).lower()}") from None
    if status.st_mode & 0o077:
        raise ConfigError(f"{path}: others can read this key file; mend it: chmod 600 {path}")
    try:
        ring = msgspec.json.decode(data, type=Keyring)
        if len(ring.masking_key) < 16 or not ring.markers or any(len(bytes.fromhex(k.key)) < 16 for k in ring.markers):
            raise ValueError("a key is too short")
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigError(f"{path}: not a key file: {error}") from None
    return ring


def save(path: Path, ring: Keyring) -> None:
    """Write the file whole or not at all, mode 0600. Raises ConfigError when it cannot be."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(ring)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise ConfigError(f"{path}: keys cannot be written: {words_of(error)}") from None


def load_or_make(path: Path) -> tuple[Keyring, bool]:
    """The keys, and whether they were made just now."""
    if path.exists():
        return load(path), False
    ring = new()
    save(path, ring)
    return ring, True
