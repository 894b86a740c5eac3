"""What was made from the same source twice counts once, whoever made it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bus.highwater import HighWater
from wire.records import SourceRange


def made_of(offset: int, source: str = "a.0") -> tuple[SourceRange, ...]:
    return (SourceRange("raw", source, offset, offset + 1),)


@given(
    offsets=st.lists(st.integers(0, 1000), unique=True, max_size=40).map(sorted),
    cuts=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=6),
)
def test_writers_that_go_on_from_behind_give_each_message_once(offsets: list[int], cuts: list[tuple[int, int]]) -> None:
    """Each writer gets to some place and is killed; the next one begins at or before it."""
    written: list[int] = []
    reached = 0
    for back, on in cuts:
        start = max(0, reached - back)
        end = max(start, min(len(offsets), reached + on))
        written += offsets[start:end]
        reached = max(reached, end)
    written += offsets[reached:]
    seen = HighWater()
    kept = [offset for offset in written if seen.is_new("a.0.1", made_of(offset))]
    assert kept == offsets
    assert seen.repeats == len(written) - len(offsets)


def test_partitions_and_sources_are_told_apart() -> None:
    seen = HighWater()
    assert seen.is_new("a.0.1", made_of(5))
    assert seen.is_new("a.0.2", made_of(5))
    assert seen.is_new("a.0.1", made_of(5, "b.0"))
    assert not seen.is_new("a.0.1", made_of(5)) and not seen.is_new("a.0.1", made_of(4))
    assert (seen.repeats, seen.last("a.0.1", "raw", "a.0"), seen.last("a.0.1", "raw", "c.0")) == (2, 6, 0)


def test_what_names_no_source_is_always_new_and_a_part_that_is_new_makes_it_new() -> None:
    seen = HighWater()
    assert seen.is_new("p", ()) and seen.is_new("p", ())
    assert seen.is_new("p", made_of(5))
    assert seen.is_new("p", (*made_of(5), *made_of(1, "b.0")))
    assert not seen.is_new("p", (*made_of(5), *made_of(1, "b.0")))
