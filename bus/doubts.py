"""What is wrong with a log file that was read, in one line each."""

from __future__ import annotations

from collections.abc import Iterable

from bus.logreader import LogReader


def doubts_of(readers: Iterable[LogReader]) -> list[str]:
    """Of readers that have been read as far as it goes: damage, then what is cut off, then what has no end mark."""
    found, unfinished = [], []
    for reader in readers:
        if reader.corrupt_frames:
            places = "1 damaged place" if reader.corrupt_frames == 1 else f"{reader.corrupt_frames} damaged places"
            found.append(f"{reader.path}: {places}, {reader.corrupt_bytes} bytes skipped; all else was read")
        if reader.waiting_bytes:
            found.append(
                f"{reader.path}: the last {reader.waiting_bytes} bytes are no whole frame "
                "(cut off, or still being written)"
            )
        if not reader.ended:
            unfinished.append(f"{reader.path}: has no end mark: still being written, cut off, or its writer was killed")
    return found + unfinished
