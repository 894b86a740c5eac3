"""The fast list of a JSON text's values against the plain one."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire import jsonplaces, jsontext
from wire.jsonplaces import json_values
from wire.records import Place, PlaceKind

Found = list[tuple[Place, str]]
KEYS = st.text('abc$"\\ é\n', max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


def plainly(text: bytes) -> Found:
    return [
        (Place(PlaceKind.JSON, jsontext.written(found.path)), found.value)
        for found in jsontext.scalars(text)
        if found.whole
    ]


@given(JSON, st.booleans(), st.sampled_from([None, 2]))
@settings(max_examples=200, deadline=None)
def test_values_of_json(data: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(data, ensure_ascii=ascii_only, indent=indent).encode()
    assert json_values(text) == plainly(text)


@given(st.integers(0, 1 << 40))
@settings(max_examples=300, deadline=None)
def test_values_of_what_is_no_json(seed: int) -> None:
    rng = random.Random(seed)
    parts = [
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"a",
        b"12",
        b" ",
        b"\\",
        b"true",
        b'"k":',
        b'"v"',
        b"\n",
        b"\xff",
    ]
    text = b"".join(rng.choice(parts) for _ in range(rng.randrange(40)))
    assert json_values(text) == plainly(text)


def test_depth_is_bounded() -> None:
    for text in (b"[" * 500 + b'"x"', b'{"a":' * 500 + b'"x"' + b"}" * 500):
        assert json_values(text) == plainly(text)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonplaces, "MAX_STEPS", 50)
    for number in range(500):
        text = b'{"k%d": {"a": "x"}}' % number
        assert json_values(text) == plainly(text)
        assert jsonplaces._tree.steps < 60


def test_one_difference_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b'{"a": [{"b": "x"}, {"b": 17}], "c": "y"}'
    assert json_values(text) == plainly(text)
    monkeypatch.setattr(jsonplaces, "_ELEMENT", {b"[": b"", b"{": b""})
    monkeypatch.setattr(jsonplaces, "_tree", jsonplaces._Tree())
    assert json_values(text) != plainly(text)
