"""Having the kernel begin to bring to the disk what was written to a file, without waiting for it."""

from __future__ import annotations

import ctypes
from typing import Any, Final

_WRITE: Final = 2  # SYNC_FILE_RANGE_WRITE of sync_file_range(2)


def _found() -> Any:
    try:
        call = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):  # not Linux
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call


_call = _found()


def begin(fd: int, offset: int, size: int) -> None:
    """A hint: where it is not known, or not taken, nothing happens, and the kernel writes when it likes."""
    if _call is not None and size > 0:
        _call(fd, offset, size, _WRITE)
