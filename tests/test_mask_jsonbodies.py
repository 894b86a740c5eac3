"""JSON is masked in two ways, a quick one where little is in it and a general one: they give the same bytes."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mask import jsonbodies
from mask.masker import Masker

KEY = b"a masking key of 32 bytes, yes.."
TEXTS = (
    "", "paid", "sku-00017", "4111 1111 1111 1111", "4111111111111111", "anna@mail.example", "+49 170 1234567",
    "a1b2c3d4e5f60718", "Bearer 0123456789abcdef", '{"password": "hunter22"}', "eyJhbGciOi.eyJzdWIi.x", "eyJabcd.e",
    "ring twice, please", "\\ \" / \n \u2028 é", "basic dXNlcjpwYXNz", "555-123-4567", "token=abcdef1234", "x" * 200,
    "Zm9vYmFyQmF6UXV4MTIz", "1f1f00112233445566", "(555) 123-4567", "12345-67890", "a:b", "AbCdEfGhIjKlMnOp",
    ":password", ":a: secret=b", "ab%12!XY$99*zZ1:q", "+12345678", "{ring}", "[ring]", "BASIC dXNlcjpwYXN3MQ",
    "\u017f\u212a 1", "ba\u017fic dXNlcjpwYXN3MQ", "\u0664\u0665\u0666 1234567 890", "2026-11-20T12:30:00Z",
)  # fmt: skip
NAMES = ("id", "password", "user_pin", "items", "Session-Id", "name", "anna@mail.example", "note", "", "token", ":pin")
NUMBERS = (0, -1, 17.25, 1e300, 4111111111111111, 123456789012, 1234567890123, True, False, None)


def value(rng: random.Random, depth: int) -> Any:
    kind = rng.random()
    if depth and kind < 0.25:
        return {rng.choice(NAMES): value(rng, depth - 1) for _ in range(rng.randrange(5))}
    if depth and kind < 0.4:
        return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind < 0.55:
        return rng.choice(NUMBERS)
    if kind < 0.6:
        return "".join(rng.choice('abcXYZ019-_.@ =:/+(\\"{[') for _ in range(rng.randrange(24)))
    return rng.choice(TEXTS)


def text(rng: random.Random) -> bytes:
    made = json.dumps(value(rng, 4), indent=rng.choice([None, 1]), ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.2:
        made += "\n" + json.dumps(value(rng, 2))
    raw = made.encode()
    if rng.random() < 0.1:
        at = rng.randrange(len(raw))
        raw = raw[:at] + rng.choice([b"", b'"', b"{", b"\\"]) + raw[at + 1 :]
    return raw


def masked(raw: bytes, *, general: bool) -> bytes:
    bodies = Masker(KEY)._bodies._json
    if general:
        bodies._simple = lambda text: None  # type: ignore[method-assign]
    return bodies.masked(raw, cut=False)


@pytest.mark.patches
@given(st.integers(0, 1 << 40))
@settings(max_examples=300, deadline=None)
def test_both_ways_give_the_same_bytes(seed: int) -> None:
    raw = text(random.Random(seed))
    assert masked(raw, general=False) == masked(raw, general=True)


@pytest.mark.patches
def test_the_quick_way_is_taken_and_masks() -> None:
    raw = b'{"id": 17, "password": "hunter22", "mail": "anna@mail.example", "lines": [{"sku": "sku-00017"}]}'
    found = Masker(KEY)._bodies._json._simple(raw)
    assert found is not None
    assert found == masked(raw, general=True)
    assert b"hunter22" not in found
    assert b"anna" not in found
    assert found.startswith(b'{"id": 17, "password": "')
    assert found.endswith(b'"lines": [{"sku": "sku-00017"}]}')


@pytest.mark.parametrize("raw", [
    b'{"mail" : "a"}', b'{"pin": 17}', b'{"pin": {"a": "b"}}', b'["pin", {"key": ["a"]}]', b"[4111111111111111]",
    b'[4111111111111111, "a"]', b'{"a": 4111111111111111}',
])  # fmt: skip
def test_what_the_quick_way_leaves_to_the_general_one(raw: bytes) -> None:
    assert Masker(KEY)._bodies._json._simple(raw) is None


@pytest.mark.patches
@pytest.mark.parametrize(
    "name", ["_WORDS", "_NUMBERS", "_LONG_WORD", "_LONG_NUMBER", "_SCHEMES", "_BARE", "_LONG_BARE"]
)
def test_a_quick_way_that_is_wrong_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old = getattr(jsonbodies, name)
    monkeypatch.setattr(jsonbodies, name, () if name == "_SCHEMES" else bytes(256) if len(old) == 256 else old * 4)
    with pytest.raises(AssertionError):
        for seed in range(4000):
            raw = text(random.Random(seed))
            assert masked(raw, general=False) == masked(raw, general=True)


@given(st.text(st.sampled_from("abcXYZ0189_-+/=.~%:!$* ()@>{}[],'é٤ſK\n"), min_size=1, max_size=40))
@settings(max_examples=2000, deadline=None)
def test_what_is_no_suspect_is_no_secret(word: str) -> None:
    """What the quick way passes over unseen, the general way leaves as it is."""
    values = Masker(KEY).values
    joined = b'"'.join((b"x", word.encode(), b"y"))
    if jsonbodies._suspects(joined) == []:
        assert values.plain(word) == word
    assert set(jsonbodies._suspects(joined)) <= {1}


def test_each_suspect_is_told_by_its_place() -> None:
    rng = random.Random(3)
    for _ in range(300):
        kinds = [rng.random() < 0.3 for _ in range(rng.randrange(1, 12))]
        bad = (b"a@b", b"x" * 16, b"555 123 4567", b"Basic ", b"a: b")
        strings = [rng.choice(bad) if kind else rng.choice((b"", b"ring", b"12345", b"x" * 15)) for kind in kinds]
        assert jsonbodies._suspects(b'"'.join(strings)) == [at for at, kind in enumerate(kinds) if kind]
