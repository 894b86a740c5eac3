"""Latency sketch: a base-2 exponential histogram (as in OpenTelemetry) at scale 6.

Bucket i holds the values in (2**(i/64), 2**((i+1)/64)]. The value reported for a bucket is the one whose
relative error is the same at both ends: 2*low*high/(low+high), so the error is at most
(2**(1/64) - 1) / (2**(1/64) + 1) = 0.542 %. Merging adds counts, so it is exact in any order.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final

from wire.records import Sketch

SCALE: Final = 6
MAX_RELATIVE_ERROR: Final = (2 ** (1 / 64) - 1) / (2 ** (1 / 64) + 1)
_FACTOR: Final = float(1 << SCALE)


def bucket_of(value: int) -> int:
    """Index of the bucket that holds a value >= 1."""
    return math.ceil(math.log2(value) * _FACTOR) - 1


def value_of(index: int) -> float:
    """What is reported for a value in that bucket."""
    low = math.exp2(index / _FACTOR)
    high = math.exp2((index + 1) / _FACTOR)
    return 2.0 * low * high / (low + high)


class SketchBuilder:
    """Counts int64 values. Values below 1 are counted as zero."""

    __slots__ = ("counts", "max_value", "total", "zero")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.zero = 0
        self.max_value = 0
        self.total = 0

    def add(self, value: int, count: int = 1) -> None:
        if value < 1:
            self.zero += count
            return
        index = math.ceil(math.log2(value) * _FACTOR) - 1
        self.counts[index] = self.counts.get(index, 0) + count
        self.total += value * count
        if value > self.max_value:
            self.max_value = value

    def merge(self, sketch: Sketch) -> None:
        """Add all that another sketch counted. Raises ValueError for another scale."""
        if sketch.scale != SCALE:
            raise ValueError(f"a sketch of scale {sketch.scale} cannot be added to one of scale {SCALE}")
        self.zero += sketch.zero
        for index, count in zip(sketch.indexes, sketch.counts, strict=True):
            self.counts[index] = self.counts.get(index, 0) + count
        self.total += sketch.total
        self.max_value = max(self.max_value, sketch.max_value)

    @property
    def count(self) -> int:
        return self.zero + sum(self.counts.values())

    def freeze(self) -> Sketch:
        indexes = tuple(sorted(self.counts))
        return Sketch(SCALE, self.zero, indexes, tuple(self.counts[i] for i in indexes), self.max_value, self.total)

    def quantile(self, q: float) -> float:
        """The nearest-rank quantile (0 < q <= 1), within MAX_RELATIVE_ERROR. Raises ValueError when empty."""
        return quantile(self.freeze(), q)


_first_after: Final[dict[int, int]] = {}  # bucket -> the least value beyond it, as far as it was asked for


def _bound(index: int) -> int:
    """The least value beyond a bucket, as `bucket_of` has it: not where the power lies, but where its rounding does."""
    near = int(2.0 ** ((index + 1) / _FACTOR))
    around = range(max(1, near - (near >> 40) - 2), near + (near >> 40) + 3)
    found = _first_after[index] = around[bisect_left(around, index + 1, key=bucket_of)]
    return found


def sketch_of(values: Sequence[int]) -> Sketch:
    """The sketch of all these values, as adding them one by one would make it."""
    # Sorted, those of a bucket stand together: a logarithm a bucket in place of one a value, half of the cost.
    held = sorted(values)
    at = zero = bisect_left(held, 1)
    above, counts = [], []
    while at < len(held):
        index = bucket_of(held[at])
        end = bisect_left(held, _first_after.get(index) or _bound(index), at)
        above.append(index)
        counts.append(end - at)
        at = end
    positive = held[zero:] if zero else held
    return Sketch(SCALE, zero, tuple(above), tuple(counts), positive[-1] if positive else 0, sum(positive))


def merged(sketches: Iterable[Sketch]) -> Sketch:
    builder = SketchBuilder()
    for sketch in sketches:
        builder.merge(sketch)
    return builder.freeze()


def count_of(sketch: Sketch) -> int:
    return sketch.zero + sum(sketch.counts)


def quantile(sketch: Sketch, q: float) -> float:
    """The nearest-rank quantile: the value at rank ceil(q * n), 0 < q <= 1."""
    if not 0 < q <= 1:
        raise ValueError(f"a quantile lies in (0, 1], not {q}")
    n = count_of(sketch)
    if n == 0:
        raise ValueError("an empty sketch has no quantiles")
    # 0.55 * 100 is 55.00000000000001: without the correction the rank would be one too high.
    rank = math.ceil(q * n * (1 - 1e-15))
    if rank <= sketch.zero:
        return 0.0
    seen = sketch.zero
    for index, count in zip(sketch.indexes, sketch.counts, strict=True):
        seen += count
        if seen >= rank:
            return min(value_of(index), float(sketch.max_value)) if sketch.max_value else value_of(index)
    raise AssertionError("counts of a sketch do not add up to its count")


def shown_quantile(sketch: Sketch, q: float) -> float | None:
    """The quantile, or None where there are fewer than 10 / (1 - q) samples and the figure would be noise."""
    n = count_of(sketch)
    # 1 - 0.9999 is 0.00009999999999998899: the bound needs some room, a ten-thousandth of a sample.
    if n == 0 or (q < 1 and n < 10 / (1 - q) * (1 - 1e-9)):
        return None
    return quantile(sketch, q)
