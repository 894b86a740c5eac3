"""Runs on this machine: `runs/<run_id>/`, each a folder of log files, panes and a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from wire.config import ConfigError
from wire.ids import ulid_ms


def all_runs(root: Path) -> list[str]:
    """Run ids, oldest first (a ULID sorts by time)."""
    found: list[str] = []
    for entry in root.iterdir() if root.is_dir() else ():
        try:
            ulid_ms(entry.name)
        except ValueError:
            continue
        if entry.is_dir():
            found.append(entry.name)
    return sorted(found)


def find(root: Path, wanted: str | None) -> Path:
    """The folder of a run: the latest, or the one whose id begins or ends with `wanted`. Raises ConfigError."""
    if wanted and (Path(wanted) / "run.json").is_file():
        return Path(wanted)
    runs = all_runs(root)
    if not runs:
        raise ConfigError(f"{root}: no run yet; make one: livefire replay, livefire drill, or livefire demo")
    if wanted is None:
        return root / runs[-1]
    near = [run for run in runs if run.startswith(wanted.upper()) or run.endswith(wanted.upper())]
    if len(near) == 1:
        return root / near[0]
    if len(near) > 1:
        raise ConfigError(f"{wanted!r} names {len(near)} runs: {', '.join(near[:4])}")
    raise ConfigError(f"{root}: no run {wanted!r}; the latest is {runs[-1]}")


def read_json(path: Path) -> dict[str, Any]:
    """A plain JSON file of a run, {} when it is absent."""
    try:
        return dict(msgspec.json.decode(path.read_bytes()))
    except FileNotFoundError:
        return {}
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}: damaged: {error}") from None
