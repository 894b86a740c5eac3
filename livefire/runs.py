"""Runs on this machine: `runs/<run_id>/`, each a folder of log files, panes and a result."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import msgspec

from bus.address import open_bus
from bus.logfile import FileBus
from bus.ports import BusAway, BusHeld
from livefire.settings import Settings
from replay.home import Home
from replay.recover import recover, unfinished
from wire import topics
from wire.config import ConfigError
from wire.ids import ulid_ms

_SETTLE_S: Final = 5.0  # a bit longer than the hold of a killed process lasts on a bus
CONDUCTOR: Final = "conductor"  # its partition of the control topic


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


def named(root: Path, wanted: str | None) -> str:
    """A run's id: of a run of this machine, or, written in full, of any. Raises ConfigError."""
    if wanted is not None:
        try:
            ulid_ms(wanted.upper())
            return wanted.upper()
        except ValueError:
            pass
    return find(root, wanted).name


def settle(folder: Path, settings: Settings) -> str:
    """Make unknown what no process will book any more. Of a run on a bus, what it holds is brought home first.

    What could not be done, in one line; "" = all. Raises BusError for a folder that cannot be used.
    """
    address = read_json(folder / "run.json").get("bus", "")
    if not address:
        recover(folder)
        return ""
    bus = open_bus(address, folder.name, settings.kafka_security)
    try:
        deadline = time.monotonic() + _SETTLE_S
        while unfinished(bus):
            recover(bus)
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        home = Home(bus, folder)
        try:
            home.poll()
        finally:
            home.close()
    except (BusAway, BusHeld) as error:
        return f"{folder.name}: what is shown may not be all: {error}"
    finally:
        bus.close()
    return ""


def ended(folder: Path) -> bool:
    """Whether a run's load is over: it has a result, or its conductor wrote the end mark."""
    if (folder / "result.json").exists():
        return True
    return FileBus(folder).whole(topics.CONTROL, CONDUCTOR)


def read_json(path: Path) -> dict[str, Any]:
    """A plain JSON file of a run, {} when it is absent."""
    try:
        return dict(msgspec.json.decode(path.read_bytes()))
    except FileNotFoundError:
        return {}
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}: damaged: {error}") from None
