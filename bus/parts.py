"""The files of one recording: one file, or a folder of them, as recorders leave it that rotate or are several.

A part is `raw-<process>.<number>.lf`, or whatever one writer of the recording wrote there; each balances by itself, so
any of them may be missing, or be read alone.
"""

from __future__ import annotations

from pathlib import Path

from bus.logfile import FileBus, LogReader
from bus.ports import BusError
from wire import topics


def parts_of(path: Path) -> list[Path]:
    """The path itself where it is no folder; else its raw files, in the order of their names.

    Raises BusError for a folder that holds none, or more than one recording.
    """
    if not path.is_dir():
        return [path]
    bus = FileBus(path)
    found = [bus.path(topics.RAW, partition) for partition in bus.partitions(topics.RAW)]
    if not found:
        raise BusError(f"{path}: is a folder without a recording in it (no {topics.RAW}-*.lf)")
    owners: dict[str, Path] = {}
    for part in found:
        with LogReader(part) as reader:
            if reader.manifest is not None:
                owners.setdefault(reader.manifest.owner_id, part)
    if len(owners) > 1:
        names = " and ".join(f"{part.name} ({owner})" for owner, part in sorted(owners.items())[:2])
        raise BusError(f"{path}: holds {len(owners)} recordings, as {names}: give one of the files, or take one out")
    return found
