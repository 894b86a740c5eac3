"""Whether the packet path is compiled (`make native`), and of the sources that are there now."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Final

ROOMS: Final = ("capture", "mask", "wire")  # in which modules may be compiled
ROOT: Final = Path(__file__).resolve().parent.parent


def compiled(root: Path = ROOT) -> list[Path]:
    """The compiled modules that this interpreter imports in the place of their sources."""
    return sorted(path for room in ROOMS for path in (root / room).glob(f"*{EXTENSION_SUFFIXES[0]}"))


def stale(root: Path = ROOT) -> list[Path]:
    """The sources that were changed, or removed, since they were compiled."""
    sources = [(path, path.with_name(path.name.partition(".")[0] + ".py")) for path in compiled(root)]
    return [
        source
        for path, source in sources
        if not source.exists() or source.stat().st_mtime > path.stat().st_mtime
    ]  # fmt: skip
