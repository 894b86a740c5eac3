"""How a long command tells what happens: chapters and lines, with progress in place on a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO


class Story:
    """Prints as it happens. On a terminal the progress line is rewritten; elsewhere it is a line every 5 s.

    Lines of a chapter are indented; a story without chapters stands at the left.
    """

    def __init__(self, stream: TextIO | None = None, every_s: float = 5.0) -> None:
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._every_s = every_s
        self._in_progress = False
        self._shown_at = time.monotonic()
        self._chapter = 0

    def chapter(self, text: str) -> None:
        self._chapter += 1
        self._clear()
        self._write(f"\n{self._chapter}. {text}\n")
        self._shown_at = time.monotonic()

    def line(self, text: str = "") -> None:
        self._clear()
        self._write("".join(f"{self._indent}{part}\n" if part else "\n" for part in text.split("\n")))

    def progress(self, text: str) -> None:
        if self._terminal:
            width = shutil.get_terminal_size((100, 24)).columns - len(self._indent) - 1
            self._write(f"\r\x1b[2K{self._indent}{text[:width]}")
            self._in_progress = True
        elif time.monotonic() - self._shown_at >= self._every_s:
            self._write(f"{self._indent}{text}\n")
            self._shown_at = time.monotonic()

    def done(self) -> None:
        """Take the progress line away."""
        self._clear()

    @property
    def _indent(self) -> str:
        return "   " if self._chapter else ""

    def _clear(self) -> None:
        if self._in_progress:
            self._write("\r\x1b[2K")
            self._in_progress = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
