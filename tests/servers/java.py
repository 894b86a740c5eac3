"""Which Java serves which server."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from servers.process import Missing

_INSTALLED = ("/usr/lib/jvm", "/Library/Java/JavaVirtualMachines", "/opt/java")


def _version(home: Path) -> int:
    """The major version of the Java at `home`, 0 when there is none."""
    try:
        found = re.search(r'JAVA_VERSION="(?:1\.)?(\d+)', (home / "release").read_text())
    except OSError:
        return 0
    return int(found[1]) if found and (home / "bin/java").exists() else 0


def _homes(variables: tuple[str, ...]) -> Iterator[Path]:
    for variable in variables:
        if value := os.environ.get(variable):
            yield Path(value)
    if on_path := shutil.which("java"):
        yield Path(on_path).resolve().parent.parent
    for folder in map(Path, _INSTALLED):
        if folder.is_dir():
            for home in sorted(folder.iterdir()):
                yield home
                yield home / "Contents/Home"


def java_home(at_least: int, what: str, *variables: str) -> Path:
    """The first Java that is new enough: of `variables`, of the path, of the usual folders.

    Raises Missing, with one line.
    """
    seen: dict[Path, int] = {}
    for home in _homes((*variables, "JAVA_HOME")):
        version = _version(home)
        if version >= at_least:
            return home
        if version:
            seen[home.resolve()] = version
    found = ", ".join(f"{version} in {home}" for home, version in seen.items())
    raise Missing(
        f"{what} needs Java {at_least} or newer (found: {found or 'none'}): install one, and name its folder in "
        f"{variables[0]}"
    )
