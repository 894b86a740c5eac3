"""Output that nobody reads any more, as of `livefire record ... 2>&1 | head -1`."""

from __future__ import annotations

import os
import sys
from typing import IO, Any


class _Patient:
    """A text stream that goes on into nothing when its reader is gone."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._let_go()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._let_go()

    def _let_go(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # what is buffered still goes there
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def outlive_readers() -> None:
    """For commands that do something: who reads what they print must not end it, nor change what they end with."""
    if not isinstance(sys.stdout, _Patient):
        sys.stdout, sys.stderr = _Patient(sys.stdout), _Patient(sys.stderr)
