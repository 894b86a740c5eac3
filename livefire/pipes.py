"""Output that nobody reads any more, as of `livefire record ... 2>&1 | head -1`, or that cannot be written."""

from __future__ import annotations

import os
import sys
from typing import IO, Any


class _Patient:
    """A text stream that goes on into nothing when its reader is gone, and leaves out what cannot be written: the disk
    of a log is full, the terminal is gone. It may have room again."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._failed(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is buffered still goes there
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_what_is_closed() -> None:
    """For who was started with `>&-` or `2>&-`: else a file that is opened next would be standard output."""
    for number, how in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, how)  # the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def outlive_readers() -> None:
    """For commands that do something: who reads what they print must not end it, nor change what they end with."""
    if not isinstance(sys.stdout, _Patient):
        sys.stdout, sys.stderr = _Patient(sys.stdout), _Patient(sys.stderr)
