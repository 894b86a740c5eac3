"""The reassembler: whatever the network does to segments, the stream comes out, or says what is missing."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from capture.reassemble import Piece, Stream

MASK = 0xFFFFFFFF


class Drops(dict[str, int]):
    def __call__(self, reason: str, count: int) -> None:
        self[reason] = self.get(reason, 0) + count


def stream(isn: int = 0, *, max_waiting: int = 1 << 20) -> tuple[Stream, Drops]:
    drops = Drops()
    made = Stream(drops, max_waiting, 1 << 20)
    made.start(isn, syn=True)
    return made, drops


def joined(pieces: list[Piece]) -> bytes:
    assert all(data is not None and len(data) == length for _, data, length, _, _ in pieces)
    return b"".join(data or b"" for _, data, _, _, _ in pieces)


def contiguous(pieces: list[Piece], start: int = 0) -> None:
    for offset, _, length, _, _ in pieces:
        assert offset == start
        start += length


@st.composite
def segmentations(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, bytes]]]:
    data = bytes(random.Random(draw(st.integers(0, 1 << 30))).randbytes(draw(st.integers(1, 400))))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=20)))
    bounds = [0, *[c for c in cuts if c < len(data)], len(data)]
    return data, [(a, data[a:b]) for a, b in itertools.pairwise(bounds)]


@given(segmentations(), st.integers(0, MASK), st.randoms(use_true_random=False), st.integers(1, 8))
@settings(max_examples=150, deadline=None)
def test_any_order_any_wrap_with_duplicates(
    made: tuple[bytes, list[tuple[int, bytes]]], isn: int, rng: random.Random, window: int
) -> None:
    data, parts = made
    sent = sum(len(part) for _, part in parts)
    extra = [rng.choice(parts) for _ in range(rng.randrange(4))]
    order = sorted(enumerate([*parts, *extra]), key=lambda item: item[0] + rng.random() * window)
    s, drops = stream(isn)
    out: list[Piece] = []
    for _, (offset, part) in order:
        out += s.segment((isn + 1 + offset) & MASK, part, len(part), 5, -1)
    contiguous(out)
    assert joined(out) == data
    assert s.waiting_bytes == 0
    assert not s.conflicts
    offered = sent + sum(len(part) for _, part in extra)
    assert sum(drops.values()) == offered - len(data)


@given(segmentations(), st.integers(MASK - 300, MASK), st.data())
@settings(max_examples=100, deadline=None)
def test_lost_segments_are_exact_gaps(
    made: tuple[bytes, list[tuple[int, bytes]]], isn: int, draw: st.DataObject
) -> None:
    data, parts = made
    lost = draw.draw(st.sets(st.integers(0, len(parts) - 1), max_size=3))
    s, _ = stream(isn)
    out: list[Piece] = []
    for index, (offset, part) in enumerate(parts):
        if index not in lost:
            out += s.segment((isn + 1 + offset) & MASK, part, len(part), 5, -1)
    out += s.flush()
    contiguous(out)
    after = max((i for i in range(len(parts)) if i not in lost), default=-1)
    expected = sum(len(parts[i][1]) for i in lost if i < after)
    assert sum(length for _, piece, length, _, _ in out if piece is None) == expected
    for offset, piece, length, _, _ in out:
        if piece is not None:
            assert data[offset : offset + length] == piece


def test_overlap_with_other_bytes_is_a_conflict_and_the_first_holds() -> None:
    s, drops = stream()
    assert joined(s.segment(1, b"abcdef", 6, 1, -1)) == b"abcdef"
    assert joined(s.segment(4, b"XXXghi", 6, 2, -1)) == b"ghi"
    assert s.conflicts == [(3, 6)] and s.conflicting(5, 6)
    assert not s.conflicting(0, 3) and not s.conflicting(6, 9)
    assert drops == {"duplicate": 3}


def test_same_bytes_again_are_no_conflict() -> None:
    s, _ = stream()
    s.segment(1, b"abcdef", 6, 1, -1)
    s.segment(1, b"abcdefghi", 9, 2, -1)
    assert not s.conflicts


def test_conflict_between_segments_that_wait() -> None:
    s, _ = stream()
    assert s.segment(5, b"efgh", 4, 1, -1) == []
    assert s.segment(3, b"cdEFgh", 6, 1, -1) == []
    assert joined(s.segment(1, b"ab", 2, 1, -1)) == b"abcdefgh"
    assert s.conflicting(4, 6)
    assert not s.conflicting(6, 8)


def test_keepalive_probe_with_a_garbage_byte() -> None:
    s, drops = stream()
    s.segment(1, b"abc", 3, 1, -1)
    assert s.segment(3, b"\0", 1, 2, -1) == []
    assert not s.conflicts
    assert drops == {"keepalive": 1}


def test_cut_by_snaplen_is_a_gap_of_exactly_the_rest() -> None:
    s, drops = stream()
    out = s.segment(1, b"abc", 10, 1, -1) + s.segment(11, b"xyz", 3, 2, -1)
    assert [(o, d, n) for o, d, n, _, _ in out] == [(0, b"abc", 3), (3, None, 7), (10, b"xyz", 3)]
    assert drops == {"snaplen": 7}


def test_what_waits_is_bounded_and_the_hole_is_given_up() -> None:
    s, _ = stream(max_waiting=100)
    out: list[Piece] = []
    for index in range(20):
        out += s.segment(11 + index * 10, bytes([index]) * 10, 10, 1, -1)
    assert s.waiting_bytes <= 100
    assert out[0][:3] == (0, None, 10)


def test_bytes_after_fin_are_counted_apart() -> None:
    s, drops = stream()
    s.segment(1, b"abc", 3, 1, -1)
    s.end = 3
    assert s.segment(4, b"zz", 2, 1, -1) == []
    assert drops == {"after_close": 2}


def test_midstream_start_counts_from_the_sequence_number() -> None:
    drops = Drops()
    s = Stream(drops, 1000, 1000)
    s.start(MASK - 1, syn=False)
    first = s.segment(MASK - 1, b"abcd", 4, 1, -1)
    second = s.segment(2, b"ef", 2, 1, -1)
    assert first[0][0] == MASK - 1
    assert second[0][0] == MASK + 3
    late = s.segment(MASK - 4, b"xyzab", 5, 1, -1)  # of which three bytes were sent before what was met first
    assert late == [] and drops == {"midstream": 3, "duplicate": 2}
    drops.clear()
    early = s.segment(6, b"ij", 2, 1, -1)  # ahead of its turn, beyond 4 GiB
    third = s.segment(4, b"gh", 2, 1, -1)
    again = s.segment(2, b"efghij", 6, 1, -1)
    assert (early, [piece[0] for piece in third], again) == ([], [MASK + 5, MASK + 7], [])
    assert drops == {"duplicate": 6} and not s.conflicts


def test_what_comes_when_it_has_been_given_up_is_no_duplicate() -> None:
    made, drops = stream()
    assert joined(made.segment(1, b"one", 3, 0, -1)) == b"one"
    assert made.segment(7, b"three", 5, 0, -1) == []
    assert [piece[1] for piece in made.give_up()] == [None, b"three"]
    assert made.segment(2, b"netwoth", 7, 0, -1) == []
    assert drops == {"too_late": 3, "duplicate": 4}
