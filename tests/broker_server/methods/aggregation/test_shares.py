"""One device's share of an aggregate has a ceiling, which leaves honest fleets alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.methods.aggregation import with_ceiling

Counts = list[int]


many = st.lists(st.integers(1, 2**31 - 1), min_size=3, max_size=8)


@given(many)
def test_no_device_has_more_than_half(counts: Counts) -> None:
    after = with_ceiling(counts)
    assert max(after) * 2 <= sum(after)


@given(many)
def test_only_what_is_beyond_half_changes(counts: Counts) -> None:
    for before, after in zip(counts, with_ceiling(counts), strict=True):
        others = sum(counts) - before
        assert after == (min(before, others))


@given(st.lists(st.integers(10, 20), min_size=3, max_size=8), st.integers(0, 7))
def test_honest_fleets_are_left_alone(counts: Counts, place: int) -> None:
    """One device of twice the data, or a device with all that the others have together: both count in full."""
    counts[place % len(counts)] = sum(counts) - counts[place % len(counts)]
    assert with_ceiling(counts) == counts


@given(many, st.randoms())
def test_the_order_does_not_matter(counts: Counts, random: object) -> None:
    order = list(range(len(counts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    after = with_ceiling(counts)
    assert with_ceiling([counts[i] for i in order]) == [after[i] for i in order]


@pytest.mark.parametrize("counts", [[], [7], [1, 10**9], [1, 10**9, 0], [0, 0, 0]])
def test_fewer_than_three_devices_are_left_alone(counts: Counts) -> None:
    assert with_ceiling(counts) == counts


def test_a_liar_among_three() -> None:
    assert with_ceiling([10, 10, 2**31 - 1]) == [10, 10, 20]


@given(many, st.floats(0.5, 1.0))
def test_the_share_may_be_larger(counts: Counts, max_share: float) -> None:
    after = with_ceiling(counts, max_share)
    assert max(after) <= max_share * sum(after) + 1e-6 * sum(after)
    assert all(
        now == before or before > max_share * sum(counts) * (1 - 1e-9)
        for now, before in zip(after, counts, strict=True)
    )


def test_without_a_ceiling_nothing_changes() -> None:
    assert with_ceiling([1, 1, 2**31 - 1], 1.0) == [1, 1, 2**31 - 1]
