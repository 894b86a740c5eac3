"""Whether the packet path is taken compiled (`make native`), or as its sources say.

Compiled modules lie beside their sources, and Python takes them first. Here sources are taken in their place where one
is newer than what was compiled of it, so that what is edited is what runs; and where LIVEFIRE_INTERPRETED is set. It is
all or none: compiled modules call each other past their names.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Iterable
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, FileFinder, SourceFileLoader
from pathlib import Path
from typing import Final

ROOMS: Final = ("capture", "mask", "wire")  # in which modules may be compiled; each calls `choose` before any of them
ROOT: Final = Path(__file__).resolve().parent.parent
VARIABLE: Final = "LIVEFIRE_INTERPRETED"
LIBRARY: Final = "livefire__mypyc"  # holds all of them; what lies beside the sources only refers to it


def modules(root: Path = ROOT) -> list[Path]:
    """The compiled modules that this interpreter could import in the place of their sources."""
    return sorted(path for room in ROOMS for path in (root / room).glob(f"*{EXTENSION_SUFFIXES[0]}"))


def stale(root: Path = ROOT) -> list[Path]:
    """The sources that were changed, or removed, since they were compiled. None of a package that is installed: what
    was unpacked first tells nothing."""
    library = root / f"{LIBRARY}{EXTENSION_SUFFIXES[0]}"  # what refers to it stays as it is when it is built again
    if not ((root / "setup.py").exists() and library.exists()):
        return []
    built = library.stat().st_mtime
    sources = [path.with_name(path.name.partition(".")[0] + ".py") for path in modules(root)]
    return [source for source in sources if not source.exists() or source.stat().st_mtime > built]


@functools.cache
def compiled() -> bool:
    """Whether this process takes compiled modules. Asked once: all rooms take the same."""
    there = bool(modules()) and importlib.util.find_spec(LIBRARY) is not None
    return there and not stale() and not os.environ.get(VARIABLE)


def choose(folders: Iterable[str]) -> None:
    """Of a package whose modules lie in these folders (its `__path__`), before any of them is imported."""
    if not compiled():
        for folder in folders:
            sys.path_importer_cache[folder] = FileFinder(folder, (SourceFileLoader, SOURCE_SUFFIXES))
