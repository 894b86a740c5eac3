"""The memory of a process that reads packets: what it keeps of what is free, and how seldom it looks for cycles."""

from __future__ import annotations

import ctypes
import gc
from typing import Any, Final

_TRIM_THRESHOLD: Final = -1  # mallopt(3), of glibc
_MMAP_THRESHOLD: Final = -3


def _found() -> Any:
    try:
        return ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return None


_call = _found()


def collect_seldom() -> None:
    """Python looks for objects that only know each other after every 700 new ones, and there are none: who reads
    packets takes such circles apart itself (`Connection.release`). With many connections open, looking is half of what
    each of them takes."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def keep_freed(size: int = 16 << 20) -> None:
    """Keep so many bytes, and take blocks of up to half of that from them. Who reads large bodies one after the other
    would get the memory of each anew, page by page: a fifth of what reading them takes. Where there is no such
    setting, nothing happens."""
    if _call is not None:
        _call(_TRIM_THRESHOLD, size)
        _call(_MMAP_THRESHOLD, size // 2)
