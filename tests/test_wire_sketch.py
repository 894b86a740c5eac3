"""The sketch errs by at most 0.6 %, in whatever order its parts are merged."""

from __future__ import annotations

import math
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire import sketch
from wire.records import Sketch
from wire.sketch import SketchBuilder

QUANTILES = [Fraction(text) for text in ("0.01", "0.07", "0.5", "0.55", "0.9", "0.95", "0.99", "0.999", "1")]
VALUES = st.one_of(
    st.integers(0, 2**63 - 1),
    st.integers(0, 62).flatmap(lambda power: st.sampled_from([2**power - 1, 2**power, 2**power + 1])),
    st.integers(0, 300),
)


def exact(values: list[int], q: Fraction) -> int:
    """Nearest rank: the value at rank ceil(q * n), in whole numbers."""
    return sorted(values)[max(math.ceil(q * len(values)), 1) - 1]


def sketch_of(values: list[int]) -> Sketch:
    builder = SketchBuilder()
    for value in values:
        builder.add(value)
    return builder.freeze()


def test_every_bucket_has_an_end() -> None:
    """Latencies of 9 and of 17 minutes lie where the logarithm of a bucket's end is rounded."""
    for index in range(sketch.bucket_of(1), sketch.bucket_of(2**63 - 1)):
        beyond = sketch._bound(index)
        assert sketch.bucket_of(beyond) > index >= sketch.bucket_of(beyond - 1)


def worst_error(values: list[int], found: Sketch) -> float:
    worst = 0.0
    for q in QUANTILES:
        expected, got = exact(values, q), sketch.quantile(found, float(q))
        worst = max(worst, abs(got - expected) / expected if expected else abs(got))
    return worst


@settings(max_examples=50)
@given(st.lists(st.lists(VALUES, max_size=30), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_quantiles_are_within_0_6_percent_at_any_merge_order(parts: list[list[int]], order: object) -> None:
    values = [value for part in parts for value in part]
    whole = sketch_of(values)
    frozen = [sketch_of(part) for part in parts]
    while len(frozen) > 1:  # as a tree of a random shape, through the wire
        one = frozen.pop(order.randrange(len(frozen)))  # type: ignore[attr-defined]
        two = frozen.pop(order.randrange(len(frozen)))  # type: ignore[attr-defined]
        frozen.append(sketch.merged([one, two]))
    if all(value < 2**53 for value in values):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(frozen[0]), type=Sketch) == whole
    assert frozen[0] == whole
    assert sketch.count_of(whole) == len(values) and whole.total == sum(values)
    assert whole.max_value == max(values, default=0)
    if values:
        assert worst_error(values, whole) <= 0.006


def test_the_error_bound_is_tight_and_the_check_sees_a_coarser_sketch() -> None:
    values = [round(1.0007**n) for n in range(10_000, 30_000)]
    fine = sketch_of(values)
    worst = max(abs(sketch.value_of(sketch.bucket_of(value)) - value) / value for value in values)
    assert 0.005 < worst <= sketch.MAX_RELATIVE_ERROR < 0.0055
    coarse = msgspec.structs.replace(fine, indexes=tuple(index | 3 for index in fine.indexes))
    assert worst_error(values, fine) <= 0.006 < worst_error(values, coarse)


@pytest.mark.parametrize("power", range(63))
def test_powers_of_two_close_their_bucket(power: int) -> None:
    assert sketch.bucket_of(2**power) == power * 64 - 1
    if power < 46:  # beyond, the next integer is nearer than a double can tell
        assert sketch.bucket_of(2**power + 1) >= power * 64


def test_zero_and_negative_values_are_zeros() -> None:
    found = sketch_of([0, -5, 0, 7])
    assert found.zero == 3 and sketch.quantile(found, 0.75) == 0.0
    assert sketch.quantile(found, 1.0) == pytest.approx(7, rel=0.006)
    assert found.total == 7


def test_values_can_be_added_many_at_a_time() -> None:
    builder = SketchBuilder()
    builder.add(5, 1000)
    builder.add(0, 10)
    assert builder.count == 1010 and builder.freeze() == sketch_of([5] * 1000 + [0] * 10)
    assert builder.quantile(0.5) == pytest.approx(5, rel=0.006)


@pytest.mark.parametrize(
    ("q", "enough"), [(0.5, 20), (0.9, 100), (0.95, 200), (0.99, 1000), (0.999, 10_000), (0.9999, 100_000), (1.0, 1)]
)
def test_percentiles_are_hidden_below_ten_over_one_minus_p(q: float, enough: int) -> None:
    builder = SketchBuilder()
    assert sketch.shown_quantile(builder.freeze(), q) is None
    if enough > 1:
        builder.add(1000, enough - 1)
        assert sketch.shown_quantile(builder.freeze(), q) is None
    builder.add(1000)
    assert sketch.shown_quantile(builder.freeze(), q) == pytest.approx(1000, rel=0.006)


def test_what_cannot_be_answered_is_refused() -> None:
    empty, one = sketch_of([]), sketch_of([1])
    with pytest.raises(ValueError, match="empty"):
        sketch.quantile(empty, 0.5)
    for q in (0.0, -1.0, 1.1):
        with pytest.raises(ValueError, match="lies in"):
            sketch.quantile(one, q)
    with pytest.raises(ValueError, match="scale 5"):
        SketchBuilder().merge(msgspec.structs.replace(one, scale=5))


@given(st.lists(VALUES, max_size=40))
def test_counting_all_at_once_is_adding_one_by_one(values: list[int]) -> None:
    assert sketch.sketch_of(values) == sketch_of(values)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(-1, 62 * 64), st.integers(-3, 3)), min_size=1, max_size=30))
def test_counting_all_at_once_goes_by_the_same_bounds(near: list[tuple[int, int]]) -> None:
    """Values at, just below and just beyond the bounds of buckets, as a double has them."""
    values = [int(2.0 ** ((index + 1) / 64)) + off * (1 + (int(2.0 ** (index / 64)) >> 52)) for index, off in near]
    assert sketch.sketch_of(values) == sketch_of(values)
