"""Ids are the same on every machine and in every version: recordings and resumed runs are joined by them."""

from __future__ import annotations

import hashlib
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import ids

SESSION = bytes(range(16))


def test_ids_stay_what_they_have_always_been() -> None:
    connection = ids.connection_id("rec", "10.0.0.1:40000", "10.0.0.2:80", "", 1000)
    assert {
        "recording": ids.recording_id_of([b"a" * 32, b"b" * 32]),
        "connection": connection.hex(),
        "tagged connection": ids.connection_id("rec", "10.0.0.1:40000", "10.0.0.2:80", "vlan 7", 1000).hex(),
        "exchange": ids.exchange_id(connection, 0).hex(),
        "later exchange": ids.exchange_id(connection, 1 << 40).hex(),
        "session": ids.session_id(b"k" * 32, "cookie:sid", b"abc").hex(),
        "shard": ids.shard_of(SESSION, 3, 1000),
        "unit": ids.unit_hash(SESSION, 3, b"shift"),
        "ulid": ids.ulid(1_700_000_000_123_456_789, bytes(range(10))),
    } == {
        "recording": "b522e478f2be38cc9ec69a690958b604",
        "connection": "0ada22071c554a373ce4a07f05868424",
        "tagged connection": "b73d52fb47a575c271c9015f0b96678b",
        "exchange": "5707190beb8edbf9cdbb9a9ada06e478",
        "later exchange": "5d113ab4fd6a71b4e31a38baebdba4de",
        "session": "f196f3c85396f718c694b9a7f9eef7e8",
        "shard": 592,
        "unit": 0.7449574401535742,
        "ulid": "01HF7YAT3V000G40R40M30E209",
    }


def test_the_shard_can_be_computed_from_the_description_alone() -> None:
    # As docs/record-format.md says it, for programs in other languages.
    digest = hashlib.blake2b(SESSION + (3).to_bytes(4, "big"), digest_size=8, person=b"lf-shard").digest()
    assert ids.shard_of(SESSION, 3, 7) == int.from_bytes(digest, "big") % 7


@given(st.integers(0, (1 << 48) - 1), st.integers(0, (1 << 48) - 1), st.binary(min_size=10, max_size=10))
def test_ulids_sort_by_time_and_give_it_back(first: int, second: int, entropy: bytes) -> None:
    one, two = ids.ulid(first * 1_000_000, entropy), ids.ulid(second * 1_000_000 + 999_999)
    assert ids.ulid_ms(one) == first and ids.ulid_ms(two) == second
    assert len(one) == 26
    if first != second:
        assert (one < two) == (first < second)


@pytest.mark.parametrize("text", ["", "0" * 25, "0" * 27, "8" + "0" * 25, "0" * 25 + "U", "0" * 25 + "a", "é" * 26])
def test_what_is_no_ulid_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a ULID"):
        ids.ulid_ms(text)
    with pytest.raises(ValueError, match="10 bytes"):
        ids.ulid(0, b"short")


def test_every_part_of_an_id_matters() -> None:
    base = ("rec", "a:1", "b:2", "", 5)
    others = [("rec2", *base[1:]), ("rec", "a:2", *base[2:]), ("rec", "a:1", "b:3", "", 5)]
    others += [("rec", "a:1", "b:2", "vlan", 5), ("rec", "a:1", "b:2", "", 6)]
    found = {ids.connection_id(*parts) for parts in [base, *others]}  # type: ignore[arg-type]
    assert len(found) == 6
    assert ids.connection_id("rec", "a:1", "b:2", "", 5 + (1 << 32)) in found  # sequence numbers are modulo 2**32
    assert ids.session_id(b"k1", "cookie", b"v") != ids.session_id(b"k2", "cookie", b"v")
    assert ids.session_id(b"k1", "cookie", b"v") != ids.session_id(b"k1", "cooki", b"ev")


@pytest.mark.parametrize("shards", [2, 3, 8])
def test_shards_are_balanced_over_sessions_and_over_copies(shards: int) -> None:
    for pairs in (
        [(n.to_bytes(16, "big"), 0) for n in range(4000)],
        [(n.to_bytes(16, "big"), copy) for n in range(40) for copy in range(100)],
    ):
        counts = [0] * shards
        for session, copy in pairs:
            counts[ids.shard_of(session, copy, shards)] += 1
        expected = len(pairs) / shards
        assert max(abs(count - expected) for count in counts) < 5 * expected**0.5


def test_unit_hashes_are_uniform_and_purposes_independent() -> None:
    one = [ids.unit_hash(n.to_bytes(16, "big"), 0, b"shift") for n in range(4000)]
    two = [ids.unit_hash(n.to_bytes(16, "big"), 0, b"copies") for n in range(4000)]
    assert all(0 <= value < 1 for value in one)
    assert abs(statistics.mean(one) - 0.5) < 0.02
    assert abs(statistics.correlation(one, two)) < 0.06
    assert statistics.correlation(one, one) > 0.99  # negative control
