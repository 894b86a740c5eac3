"""Ids: stable where they must be recomputed, ULIDs where they name something that happens once."""

from __future__ import annotations

import hashlib
import secrets
import struct

ID_BYTES = 16
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid(now_ns: int, entropy: bytes | None = None) -> str:
    """A ULID (26 characters of Crockford base 32): 48 bits of milliseconds, 80 bits of entropy.

    Sorts by time. `entropy` is 10 bytes and is drawn from the system when absent.
    """
    random = secrets.token_bytes(10) if entropy is None else entropy
    if len(random) != 10:
        raise ValueError("a ULID takes 10 bytes of entropy")
    value = ((now_ns // 1_000_000) & ((1 << 48) - 1)) << 80 | int.from_bytes(random, "big")
    return "".join(_CROCKFORD[(value >> shift) & 31] for shift in range(125, -5, -5))


def ulid_ms(text: str) -> int:
    """Milliseconds since 1970 of a ULID. Raises ValueError for anything else."""
    if len(text) != 26 or text[0] > "7" or any(c not in _CROCKFORD for c in text):
        raise ValueError(f"not a ULID: {text!r}")
    value = 0
    for c in text:
        value = value << 5 | _CROCKFORD.index(c)
    return value >> 80


def recording_id_of(digests: list[bytes]) -> str:
    """The id of an import: made of the files' digests, so that the same files give the same ids."""
    return hashlib.blake2b(b"".join(digests), digest_size=ID_BYTES, person=b"lf-recording").hexdigest()


def connection_id(recording_id: str, client: str, server: str, link: str, first_seq: int) -> bytes:
    """16 bytes. `link` tells apart equal five-tuples (VLAN, VNI); "" where there is none."""
    text = "\0".join((recording_id, client, server, link)).encode()
    return hashlib.blake2b(
        text + struct.pack(">I", first_seq & 0xFFFFFFFF), digest_size=ID_BYTES, person=b"lf-connection"
    ).digest()


def exchange_id(connection: bytes, offset: int) -> bytes:
    """16 bytes, of the connection and the request's offset in the client's stream.

    A lost request or a restart shifts no later id: the offset comes from sequence numbers, not from a count.
    """
    return hashlib.blake2b(
        struct.pack(">Q", offset & 0xFFFFFFFFFFFFFFFF), key=connection, digest_size=ID_BYTES, person=b"lf-exchange"
    ).digest()


class ExchangeIds:
    """`exchange_id` for many exchanges of one connection: the key is taken in once."""

    __slots__ = ("_keyed",)

    def __init__(self, connection: bytes) -> None:
        self._keyed = hashlib.blake2b(key=connection, digest_size=ID_BYTES, person=b"lf-exchange")

    def at(self, offset: int) -> bytes:
        digest = self._keyed.copy()
        digest.update((offset & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "big"))
        return digest.digest()


def session_id(key: bytes, source: str, value: bytes) -> bytes:
    """16 bytes: keyed hash of what identifies a session. `source` says what it was (cookie, header, client)."""
    return hashlib.blake2b(
        source.encode() + b"\0" + value, key=key[:64], digest_size=ID_BYTES, person=b"lf-session"
    ).digest()


def shard_of(session: bytes, copy: int, shards: int) -> int:
    """Which of `shards` workers fires this (session, copy). The same on every worker, in every language."""
    digest = hashlib.blake2b(session + struct.pack(">I", copy), digest_size=8, person=b"lf-shard").digest()
    return int.from_bytes(digest, "big") % shards


def unit_hash(session: bytes, copy: int, purpose: bytes) -> float:
    """A number in [0, 1) that depends on (session, copy, purpose) alone. `purpose` is at most 16 bytes."""
    digest = hashlib.blake2b(session + struct.pack(">I", copy), digest_size=8, person=purpose[:16]).digest()
    return (int.from_bytes(digest, "big") >> 11) / float(1 << 53)
