"""Files of other tools into one recording: which importer reads which file, and what is said of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from capture import access_log, alb, goreplay, har
from capture.assembler import Assembler
from capture.combined import is_combined
from capture.entry import Entry, Reject, checked
from capture.imported import Imported
from capture.lines import BOM, Input
from capture.log_format import LogFormat
from capture.output import Output
from wire.account import Account
from wire.config import ConfigError

_PUMP_EVERY: Final = 512  # entries
_SAID: Final = 3  # rejects that are told of one by one; all are counted
_CAPTURES: Final = (
    b"\xa1\xb2\xc3\xd4", b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\xcd\x34",
    b"\x34\xcd\xb2\xa1", b"\x0a\x0d\x0d\x0a",
)  # fmt: skip
#: What `--format` may name; nginx and apache write the same two formats.
FORMATS: Final = ("auto", "capture", "goreplay", "har", "nginx", "apache", "alb")

Say = Callable[[str], None]


class Choice(msgspec.Struct, frozen=True):
    """How files are read, beside their format."""

    format: str  # of FORMATS, not auto
    log_format: str = ""
    host: str = ""  # the Host of requests of which a log tells none


def detect(path: Path | str) -> str:
    """The format of a file, by what is in it: one of FORMATS, never auto. Raises ConfigError when it is none."""
    file = Input(path)
    try:
        start = file.read(1 << 16)
    finally:
        file.close()
    if not start:
        raise ConfigError(f"{path}: cannot be unpacked: it is damaged, or cut off" if file.cut else f"{path}: is empty")
    start = start.removeprefix(BOM)
    if start.startswith(_CAPTURES):
        return "capture"
    if start[:4] == b"LIVE":
        raise ConfigError(f"{path}: is a Livefire file already: livefire show, cleanse")
    if goreplay.is_gor(start):
        return "goreplay"
    lines = [line for line in start.split(b"\n")[:20] if line.strip()]
    if any(alb.is_alb(line) for line in lines):
        return "alb"
    if any(is_combined(line) for line in lines):
        return "nginx"
    if har.is_har(start) or (start.lstrip(b" \r\n\t")[:1] == b"{" and b'"entries"' in start):
        return "har"
    if lines and lines[0].lstrip()[:1] == b"{":
        raise ConfigError(f"{path}: holds JSON, but no HAR; a log of JSON lines is read with --log-format")
    raise ConfigError(
        f"{path}: is none of the formats that are known by their content (captures, GoReplay, HAR, combined, ALB); "
        "a log of another format is read with --log-format"
    )


def entries_of(file: Input, choice: Choice) -> Iterator[Entry | Reject]:
    """Entries of a HAR or log. Raises ConfigError for a file that is not of its kind."""
    if choice.format == "har":
        found = har.entries(file)
    elif choice.format == "alb":
        found = alb.entries(file, host=choice.host)
    else:
        format = LogFormat(choice.log_format) if choice.log_format else None
        found = access_log.entries(file, format, host=choice.host)
    return map(checked, found)


def check(path: Path | str, choice: Choice) -> None:
    """Raises ConfigError when a file is not of the chosen format at all, before anything is written."""
    file = Input(path)
    try:
        if choice.format == "goreplay":
            start = file.read(1 << 16)
            if not goreplay.is_gor(start):
                raise ConfigError(f"{path}: is none of GoReplay's files: line 1 is not: type id time")
            return
        first: Reject | None = None
        for found in entries_of(file, choice):
            if isinstance(found, Entry) or choice.format == "har":
                return
            first = first or (None if found.intentional else found)
        if first is not None:
            raise ConfigError(f"{path}: line {first.place}: {first.why}{_meant(path, choice)}")
    finally:
        file.close()


def _meant(path: Path | str, choice: Choice) -> str:
    """What the file probably is, where it is not what was said."""
    try:
        found = detect(path)
    except ConfigError:
        return "; no line of the file is of " + (
            "this log format" if choice.log_format else f"the format {choice.format}"
        )
    if choice.log_format:
        return "; no line of the file is of this log format"
    return f"; did you mean --format {found}?" if found != choice.format else "; no line of it tells a request"


def import_entries(
    paths: Sequence[Path | str],
    choice: Choice,
    imported: Imported,
    output: Output,
    say: Say | None,
    progress: Callable[[int, int], None] | None,
) -> int:
    """HARs or logs, one after another; how many entries there were. Raises ConfigError for what is none, BusError."""
    say = say or (lambda line: None)
    count = 0
    for path in paths:
        file = Input(path)
        told = 0
        try:
            for found in entries_of(file, choice):
                imported.add(found, Path(file.name).name)
                count += 1
                if isinstance(found, Reject) and not found.intentional and told < _SAID:
                    what = "entry" if choice.format == "har" else "line"
                    say(f"{file.name}: {what} {found.place}: {found.reason}: {found.why}")
                    told += 1
                if not count % _PUMP_EVERY:
                    output.pump(imported, time.monotonic_ns())
                    if progress is not None:
                        progress(count, output.written_exchanges)
        finally:
            file.close()
            if file.cut:
                imported.account.note("input_cut")
            for line in file.said:
                say(line)
    return count


def gor_values(paths: Iterable[Path | str], account: Account, say: Say | None) -> Iterator[bytes]:
    """The records of GoReplay's files, in the order of their chunks."""
    for path in goreplay.in_order(list(paths)):
        file = Input(path)
        try:
            yield from goreplay.records(file)
        finally:
            file.close()
            if file.cut:
                account.note("input_cut")
            for line in file.said if say is not None else ():
                say(line)  # type: ignore[misc]


def import_gor(
    values: Iterable[bytes],
    assembler: Assembler,
    output: Output,
    feed: Callable[[Iterable[bytes], Assembler], Iterator[int]],
    progress: Callable[[int, int], None] | None,
) -> int:
    """Records of GoReplay, of its files or out of Kafka; how many there were. Raises BusError."""
    count = 0
    for count in feed(values, assembler):
        output.pump(assembler, time.monotonic_ns())
        if progress is not None and not count % _PUMP_EVERY:
            progress(count, output.written_exchanges)
    return count
