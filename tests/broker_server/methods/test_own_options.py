"""Options of a package's method: text and table say the same, and what is wrong is one line."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from broker_server.errors import ConfigError
from broker_server.methods.own_options import as_text, declared, given, made, method_option, text_of
from broker_server.options import option


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Some:
    share: Annotated[float, msgspec.Meta(ge=0, lt=1)] = method_option("a share", 0.5)
    count: Annotated[int, msgspec.Meta(ge=1)] = method_option("a count", 3)
    is_fast: bool = method_option("whether it is fast", default=False)
    rule: Literal["mean", "median"] = method_option("a rule", "mean")
    note: str = method_option("a note", "")


WORDS = st.text(st.characters(codec="utf-8", exclude_characters=","), max_size=20).filter(
    lambda text: text == text.strip() and text.isprintable()
)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "share": st.floats(0, 1, exclude_max=True),
        "count": st.integers(1, 2**63 - 1),
        "is_fast": st.booleans(),
        "rule": st.sampled_from(["mean", "median"]),
        "note": WORDS,
    },
)


@drawn(VALUES)
def test_one_text_says_what_a_table_says(values: dict[str, Any]) -> None:
    assert given(Some, as_text(values)) == given(Some, values) == values
    options = made(Some, values)
    assert options == Some(**values)
    assert made(Some, given(Some, text_of(options))) == options


def test_spaces_between_options_do_not_matter() -> None:
    assert given(Some, " share = 0.25 , is_fast=true ") == {"share": 0.25, "is_fast": True}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("shore=1", "'shore' is not known; did you mean 'share'?"),
        ({"count": 1, "counts": 1}, "'counts' is not known; did you mean 'count'?"),
        ("share=1", "share is 1.0, expected a finite number from 0 to below 1"),
        ("share=nan", "share is nan, expected a finite number from 0 to below 1"),
        ("count=0", "count is 0, expected a whole number from 1"),
        ("count=1.5", "count is '1.5', expected a whole number from 1"),
        ({"count": True}, "count is True, expected a whole number from 1"),
        ({"share": "0.5"}, "share is '0.5', expected a finite number from 0 to below 1"),
        ("is_fast=1", "is_fast is '1', expected true or false"),
        ({"is_fast": 1}, "is_fast is 1, expected true or false"),
        ("rule=max", "rule is 'max', expected 'mean' or 'median'"),
        ({"note": 5}, "note is 5, expected text"),
        ({"note": "a,count=9"}, "note is 'a,count=9', expected text without a comma, and without spaces at its ends"),
        ({"note": " a"}, "note is ' a', expected text without a comma, and without spaces at its ends"),
        ({"note": "a\nb"}, r"note is 'a\nb', expected text without a comma, and without spaces at its ends"),
        ("count", "'count' has no value, expected NAME=VALUE,..."),
        ("count=1,", "'' has no value, expected NAME=VALUE,..."),
        ("count=1,count=2", "'count' is given twice: leave one of them out"),
        (5, "method_options is 5, expected text"),
    ],
)
def test_what_is_wrong_is_named(values: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        given(Some, values)
    assert str(caught.value) == message


class NoDataclass:
    pass


@dataclasses.dataclass(frozen=True)
class WithoutMeaning:
    known: int = method_option("known", 1)
    other: int = 1


@dataclasses.dataclass(frozen=True)
class OfManyValues:
    many: tuple[int, ...] = option("", "many", (1, 2))


@dataclasses.dataclass(frozen=True)
class WithoutDefault:
    needed: int = option("", "needed")


@dataclasses.dataclass(frozen=True)
class OfAnotherDefault:
    count: Annotated[int, msgspec.Meta(ge=1)] = method_option("a count", 0)


@dataclasses.dataclass(frozen=True)
class ThatFails:
    count: int = method_option("a count", 0)

    def __post_init__(self) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (NoDataclass, "cannot be used (TypeError: "),
        (WithoutMeaning, "other of .*WithoutMeaning is no method_option"),
        (OfManyValues, "many of .*OfManyValues is no method_option"),
        (WithoutDefault, "cannot be used (ConfigError: needed is "),
        (OfAnotherDefault, "cannot be used (ConfigError: count is 0, expected a whole number from 1)"),
        (ThatFails, "cannot be used (ZeroDivisionError"),
    ],
)
def test_a_package_that_declares_what_no_option_can_be_is_told(kind: type, message: str) -> None:
    pattern = message.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ConfigError, match=pattern) as caught:
        declared(kind)
    assert kind.__name__ in str(caught.value)
    assert str(caught.value).endswith("fix its package")
