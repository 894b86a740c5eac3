"""The layout of a log file: a header, then frames, each holding one message (`wire.codec`).

    file  = 8s "LIVEFIRE", u16 file version, u16 check, u32 salt                             (16 bytes)
    frame = 4s f1 "LFr", u32 length, u32 crc of the message, u32 salted crc of the 12 bytes before   (16 bytes)
            message

All integers are big-endian; crc is CRC-32 (zlib). The header of a frame has a checksum of its own: a damaged
length is known to be damaged, and a reader looks for the next frame rather than believing that the file ends
there. That search runs over recorded bodies, which strangers write: the salt, which differs from file to file,
keeps a frame inside a body from being taken for one of this file.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

from isal.isal_zlib import crc32  # that of zlib, ten times as fast

FILE_VERSION: Final = 1
FILE_MAGIC: Final = b"LIVEFIRE"
SYNC: Final = b"\xf1LFr"
MAX_FRAME_BYTES: Final = 128 << 20  # a bound on what a reader must hold before it can check a message
FILE_BYTES: Final = 16
FRAME_BYTES: Final = 16

_FILE = struct.Struct(">8sHHI")
FRAME: Final = struct.Struct(">4sIII")
_FRONT = struct.Struct(">4sII")
_WORD = struct.Struct(">I")
_CAPTURE_MAGICS: Final = (
    b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4", b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x0a\x0d\x0d\x0a",
)  # fmt: skip


def salt_of(first_message: bytes) -> int:
    """The salt of a file: of its first message, so that the file header can be mended from the first frame."""
    return int.from_bytes(hashlib.blake2b(first_message, digest_size=4, person=b"lf-salt").digest(), "big")


def file_header(salt: int) -> bytes:
    """The first 16 bytes of a file."""
    return _FILE.pack(FILE_MAGIC, FILE_VERSION, _check(FILE_VERSION, salt), salt)


def _check(version: int, salt: int) -> int:
    return crc32(_FILE.pack(FILE_MAGIC, version, 0, salt)) & 0xFFFF


def salt_in(head: bytes) -> int | None:
    """The salt in a file header of this version; None when the header is foreign, damaged or of a later version."""
    if len(head) < FILE_BYTES:
        return None
    magic, version, check, salt = _FILE.unpack_from(head)
    whole = magic == FILE_MAGIC and 1 <= version <= FILE_VERSION and check == _check(version, salt)
    return int(salt) if whole else None


def is_later_version(head: bytes) -> bool:
    """True for a whole file header of a version that is not known here: what follows it may be anything."""
    if len(head) < FILE_BYTES:
        return False
    magic, version, check, salt = _FILE.unpack_from(head)
    return bool(magic == FILE_MAGIC and version > FILE_VERSION and check == _check(version, salt))


def may_be_beginning(head: bytes) -> bool:
    """True for what a writer may have got done of a file header."""
    return len(head) < FILE_BYTES and (FILE_MAGIC.startswith(head[:8]))


def problem_of(head: bytes) -> str:
    """Why a file that begins so cannot be read."""
    if head[:4] in _CAPTURE_MAGICS:
        return "not a Livefire file but a capture (use: livefire import)"
    if len(head) < FILE_BYTES:
        return f"not a Livefire file: it has only {len(head)} bytes (was the copy cut off?)"
    magic, version, _, _ = _FILE.unpack_from(head)
    if magic != FILE_MAGIC:
        return "not a Livefire file"
    if is_later_version(head):
        return f"file version {version} is newer than this program reads ({FILE_VERSION}): upgrade livefire"
    return "a Livefire file whose beginning is damaged: neither its header nor its first frame can be read"


def frame_header(message: bytes, salt: int) -> bytes:
    """The 16 bytes that go before a message."""
    front = _FRONT.pack(SYNC, len(message), crc32(message))
    return front + _WORD.pack(crc32(front, salt))


def length_and_crc(head: bytes, salt: int) -> tuple[int, int] | None:
    """What 16 bytes say of the message behind them; None when they are no frame header of this file."""
    sync, length, crc, header_crc = FRAME.unpack(head)
    if sync != SYNC or length > MAX_FRAME_BYTES or crc32(head[:12], salt) != header_crc:
        return None
    return length, crc


def unsalted_length_and_crc(head: bytes) -> tuple[int, int] | None:
    """The same without knowing the salt: its checksum is not looked at."""
    sync, length, crc, _ = FRAME.unpack(head)
    return (length, crc) if sync == SYNC and length <= MAX_FRAME_BYTES else None
