"""docs/record-format.md is a contract: it lists each record and each field in order, and its example runs."""

from __future__ import annotations

import enum
import re
import sys
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest

from bus import frames
from wire import codec, records
from wire.codec import TYPE_OF, RecordType
from wire.records import Record

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "record-format.md").read_text("utf-8")
ALL = [cls for cls in vars(records).values() if isinstance(cls, type) and issubclass(cls, Record) and cls is not Record]
SETS = [
    cls
    for cls in vars(records).values()
    if isinstance(cls, type) and issubclass(cls, enum.StrEnum) and cls is not enum.StrEnum
]


def documented(text: str) -> dict[str, tuple[str | None, list[tuple[str, str, bool]]]]:
    """Record -> (its number, its fields as (name, type, has a default)), in the order of the document."""
    found: dict[str, tuple[str | None, list[tuple[str, str, bool]]]] = {}
    for section in re.split(r"^(?=####? )", text, flags=re.MULTILINE):
        heading = re.match(r"####? (\w+)(?: \((\d+)\))?\n", section)
        if heading:
            rows = re.findall(r"^\| `(\w+)`(\*?) \| ([^|]+) \| [^|]+ \|$", section, flags=re.MULTILINE)
            found[heading[1]] = (heading[2], [(name, kind, bool(star)) for name, star, kind in rows])
    return found


def type_name(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return "any"
    if origin is tuple:
        return f"[{type_name(args[0])}]"
    if origin is dict:
        return f"map {type_name(args[0])} -> {type_name(args[1])}"
    if origin in (Union, types.UnionType):
        return " or ".join("nil" if arg is type(None) else type_name(arg) for arg in args)
    return str(hint.__name__)


def fields_of(cls: type[Record]) -> list[tuple[str, str, bool]]:
    hints = get_type_hints(cls)
    required = len(cls.__struct_fields__) - len(cls.__struct_defaults__)
    return [(name, type_name(hints[name]), index >= required) for index, name in enumerate(cls.__struct_fields__)]


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_each_record_is_listed_with_each_field_in_order(cls: type[Record]) -> None:
    number, fields = documented(TEXT)[cls.__name__]
    assert fields == fields_of(cls)
    assert number == (str(TYPE_OF[cls].value) if cls in TYPE_OF else None)


def test_nothing_is_listed_that_does_not_exist() -> None:
    assert set(documented(TEXT)) == {cls.__name__ for cls in ALL}


def test_each_set_of_values_is_listed() -> None:
    for cls in SETS:
        values = ", ".join(f"`{member.value}`" if member.value else "empty" for member in cls)
        assert f"| {cls.__name__} | {values} |" in TEXT


def test_a_field_that_is_missing_or_moved_is_noticed() -> None:
    cls = records.Lease
    rows = [line for line in TEXT.splitlines() if line.startswith(("| `issued_ns` |", "| `expires_ns` |"))]
    without = TEXT.replace(rows[0] + "\n", "")
    moved = TEXT.replace("\n".join(rows), "\n".join(reversed(rows)))
    for changed in (without, moved):
        assert changed != TEXT
        assert documented(changed)["Lease"][1] != fields_of(cls)


def test_the_figures_in_the_text_are_those_of_the_code() -> None:
    assert f"at most {frames.MAX_FRAME_BYTES >> 20} MiB" in TEXT
    assert f"at most {codec.MAX_BODY_BYTES >> 20} MiB for the types" in TEXT
    assert f"{codec.MAX_SMALL_BODY_BYTES >> 20} MiB for\nall others" in TEXT
    large = [kind for kind in RecordType if codec.max_body_bytes(kind) == codec.MAX_BODY_BYTES]
    names = [next(cls.__name__ for cls, number in TYPE_OF.items() if number == kind) for kind in large]
    assert f"for the types {', '.join(names[:-1])} and {names[-1]}, and" in " ".join(TEXT.split())


def test_the_example_in_the_text_reads_golden_files(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(code) == 1
    stand_in = types.ModuleType("msgpack")  # any msgpack library does
    stand_in.unpackb = lambda data, raw: msgspec.msgpack.decode(data)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "msgpack", stand_in)
    scope: dict[str, Any] = {}
    exec(code[0], scope)
    for kind, cls in ((RecordType.EXCHANGE, records.Exchange), (RecordType.PANE, records.Pane)):
        found = list(scope["records"](ROOT / "tests" / "golden" / f"{kind.name.lower()}.lf", kind.value))
        assert found and all(len(fields) == len(cls.__struct_fields__) for fields in found)
        assert msgspec.convert(found, tuple[cls, ...], strict=True)  # type: ignore[valid-type]
