"""Plain tables for terminals and pipes."""

from __future__ import annotations

from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1, *, words_last: bool = False) -> str:
    """Columns wide enough for their longest cell; the first `left` columns to the left, numbers to the right.

    `words_last`: the last column holds words, and is to the left, too.
    """
    cells = [[str(head) for head in heads], *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    lines = []
    for row in cells:
        line = "  ".join(
            cell.ljust(width) if column < left or (words_last and column == len(heads) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append(line.rstrip())
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def counted(count: int, one: str, many: str = "") -> str:
    """'1 session', '1,204 sessions'; `many` where an s is not enough."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def milliseconds(ns: float | None) -> str:
    """'1.3 ms', '250 ms', '2.10 s'; '-' where there is none."""
    if ns is None:
        return "-"
    ms = ns / 1e6
    if ms >= 1000:
        return f"{ms / 1000:.2f} s"
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:.1f} ms"


def size(count: float) -> str:
    """'812 B', '1.4 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
