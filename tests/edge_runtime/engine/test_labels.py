"""Classes that labels mean."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.engine.labels import Classes, Label, alike, sort_labels


@pytest.mark.parametrize(
    ("names", "label", "index"),
    [
        (("neg", "pos"), "pos", 1),
        (("neg", "pos"), 1, 1),
        (("neg", "pos"), 2, None),
        (("neg", "pos"), -1, None),
        (("neg", "pos"), "1", 1),
        (("neg", "pos"), "01", None),
        (("neg", "pos"), "1.0", None),
        (("neg", "pos"), 10**30, None),
        (("1", "2", "3"), "0", None),
        (("neg ", "pos"), "neg", 0),
        (("1", "2", "3"), 1, 0),
        (("1", "2", "3"), 0, None),
        (("1.0", "2.0"), 2, 1),
        (("01", "1.0"), 1, None),
        (("1", "1.0"), 1, 0),
        (("5 stars", "4 stars"), 1, 1),
        (("nan", "inf"), 1, 1),
        (("a", "7"), 0, None),
        (("a", "7"), 7, 1),
    ],
)
def test_a_number_is_a_name_where_any_class_is_a_number(
    names: tuple[str, ...], label: Label, index: int | None
) -> None:
    classes = Classes(names)
    named = classes.named(label)
    assert (classes.numbered(label) if named is None else named) == index


def test_a_number_is_no_index_where_the_order_is_not_known() -> None:
    classes = Classes(("neg", "pos"))
    assert classes.named(1) is None
    assert classes.named("pos") == 1
    assert "indices" not in classes.unknown(1, "--data", can_be_index=False)


@pytest.mark.parametrize(("label", "near"), [("NEG", "'neg'"), ("caf\u00e9", "'cafe\\u0301'"), ("7.0", "'7'")])
def test_a_name_that_is_nearly_one_is_said(label: str, near: str) -> None:
    assert f"does not have (but {near})" in Classes(("neg", "cafe\u0301", "7")).unknown(label, "the artifact")


def test_many_and_odd_names_make_one_short_line() -> None:
    text = Classes([f"class {n} \x1b[2J" + "x" * 500 for n in range(1000)]).unknown("y" * 900, "the artifact")
    assert "\x1b" not in text
    assert len(text) < 1200


@given(names=st.lists(st.text(min_size=1, max_size=5), max_size=9, unique=True))
@example(names=["0\x1f"])
def test_every_name_means_its_own_class(names: list[str]) -> None:
    classes = Classes(names)
    assert [classes.named(name) for name in names] == list(range(len(names)))
    assert sorted(sort_labels(names)) == sorted(names)
    assert all(len(group) > 1 for group in alike(names))
