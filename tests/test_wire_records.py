"""Records travel unchanged, and across versions of this program that know fewer or more fields."""

from __future__ import annotations

import enum
import types
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire import codec, records
from wire.codec import TYPE_OF, RecordType
from wire.records import AnyRecord, Record

TRAVELLING = [cls for cls in TYPE_OF if cls is not Record]
ALL = [cls for cls in vars(records).values() if isinstance(cls, type) and issubclass(cls, Record) and cls is not Record]
INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
FREE = st.recursive(
    st.none() | st.booleans() | INT64 | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
PLAIN: dict[Any, Any] = {
    int: INT64, str: TEXT, bytes: st.binary(max_size=300), bool: st.booleans(), float: st.floats(allow_nan=False),
    Any: FREE,
}  # fmt: skip


@cache
def strategy(hint: Any) -> st.SearchStrategy[Any]:
    origin, args = get_origin(hint), get_args(hint)
    if hint in PLAIN:
        return PLAIN[hint]
    if origin is tuple:
        return st.lists(strategy(args[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(strategy(args[0]), strategy(args[1]), max_size=3)
    if origin in (Union, types.UnionType):
        return st.one_of([st.none() if arg is type(None) else strategy(arg) for arg in args])
    if issubclass(hint, enum.Enum):
        return st.sampled_from(hint)
    hints = get_type_hints(hint)
    return st.builds(hint, *(strategy(hints[name]) for name in hint.__struct_fields__))


def test_every_record_has_a_type_number_and_stands_in_the_union() -> None:
    assert set(get_args(AnyRecord)) == set(TRAVELLING)
    assert {number.value for number in TYPE_OF.values()} == set(range(1, len(RecordType) + 1))


@pytest.mark.parametrize("cls", TRAVELLING, ids=lambda cls: cls.__name__)
def test_every_record_travels_unchanged(cls: type[Record]) -> None:
    @settings(max_examples=20)
    @given(st.lists(strategy(cls), min_size=1, max_size=3))
    def travels(sent: list[Record]) -> None:
        batch = codec.decode(codec.encode(sent))
        assert list(batch.records) == sent
        assert batch.header.type == TYPE_OF[cls]

    travels()


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_records_are_frozen_arrays_whose_later_fields_have_defaults(cls: type[Record]) -> None:
    config = cls.__struct_config__
    assert config.frozen and config.array_like and not config.forbid_unknown_fields
    # A struct's defaults belong to its last fields: what is appended can be left out.
    with_default = len(cls.__struct_defaults__)
    assert with_default <= len(cls.__struct_fields__)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_an_array_of_an_older_or_newer_minor_version_decodes(cls: type[Record], data: st.DataObject) -> None:
    record = data.draw(strategy(cls))
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(record))
    required = len(fields) - len(cls.__struct_defaults__)

    newer = msgspec.msgpack.decode(msgspec.msgpack.encode([*fields, {"a field": ["to come"]}, 7]), type=cls)
    assert newer == record

    kept = data.draw(st.integers(required, len(fields)))
    older = msgspec.msgpack.decode(msgspec.msgpack.encode(fields[:kept]), type=cls)
    names = cls.__struct_fields__
    assert all(getattr(older, name) == getattr(record, name) for name in names[:kept])

    if required:  # the other way round: what was always there must be there
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgspec.msgpack.encode(fields[: required - 1]), type=cls)


def test_defaults_are_not_shared_between_records() -> None:
    first, second = records.Sample(1, "a", 1, 0.0, 0), records.Sample(1, "a", 1, 0.0, 0)
    first.values["x"] = 1.0
    assert second.values == {}
