"""Splits: every example goes to exactly one device, whatever the kind."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.errors import ConfigError
from broker_server.experiments.run.split import MIN_EXAMPLES, SplitSpec, parse_split, split

labels = st.lists(st.sampled_from(["a", "b", "c"]), min_size=6, max_size=120)
specs = st.one_of(
    st.just(SplitSpec(kind="iid")),
    st.floats(0.001, 1000).map(lambda alpha: SplitSpec(kind="dirichlet", alpha=alpha)),
)


def _examples(values: list[str], field: str = "label") -> list[dict[str, object]]:
    return [{"text": f"example {n}", field: value} for n, value in enumerate(values)]


@given(values=labels, spec=specs, num_devices=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_every_example_goes_to_exactly_one_device(
    values: list[str], spec: SplitSpec, num_devices: int, seed: int
) -> None:
    parts = split(_examples(values), num_devices, spec, np.random.default_rng(seed))

    assert len(parts) == num_devices
    assert sorted(index for part in parts for index in part) == list(range(len(values)))


@given(values=labels, spec=specs, num_devices=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_every_device_gets_a_few_examples(values: list[str], spec: SplitSpec, num_devices: int, seed: int) -> None:
    parts = split(_examples(values), num_devices, spec, np.random.default_rng(seed))

    assert min(len(part) for part in parts) >= min(MIN_EXAMPLES, len(values) // num_devices)


@given(values=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=200), num_devices=st.integers(1, 4))
def test_by_key_keeps_a_key_on_one_device(values: list[str], num_devices: int) -> None:
    spec = SplitSpec(kind="by-key", field="site")
    if len(set(values)) < num_devices:
        with pytest.raises(ConfigError, match=r"^--split by-key|^--devices is"):
            split(_examples(values, "site"), num_devices, spec, np.random.default_rng(0))
        return

    parts = split(_examples(values, "site"), num_devices, spec, np.random.default_rng(0))

    assert sorted(index for part in parts for index in part) == list(range(len(values)))
    homes = Counter(value for part in parts for value in {values[index] for index in part})
    assert set(homes.values()) == {1}


def test_a_smaller_alpha_is_more_skewed() -> None:
    examples = _examples(["a", "b", "c", "d"] * 250)

    def skew(alpha: float) -> float:
        parts = split(examples, 5, SplitSpec(kind="dirichlet", alpha=alpha), np.random.default_rng(3))
        shares = [max(Counter(examples[i]["label"] for i in part).values()) / len(part) for part in parts]
        return float(np.mean(shares))

    assert skew(0.1) > skew(1.0) > skew(100.0)


def test_the_same_seed_gives_the_same_split() -> None:
    examples = _examples(["a", "b", "c"] * 40)
    spec = parse_split("dirichlet:0.5")

    assert split(examples, 4, spec, np.random.default_rng(7)) == split(examples, 4, spec, np.random.default_rng(7))


@pytest.mark.parametrize("text", ["", "IID", "dirichlet", "dirichlet:", "dirichlet:0", "dirichlet:nan", "by-keys"])
def test_an_unknown_split_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected iid, dirichlet:A"):
        parse_split(text)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ConfigError, match="needs the field 'label', which example 1 lacks"):
        split([{"text": "x"}] * 4, 2, parse_split("dirichlet:1"), np.random.default_rng(0))


def test_more_devices_than_examples_is_refused() -> None:
    with pytest.raises(ConfigError, match="--devices is 3, but there are only 2 training examples"):
        split(_examples(["a", "b"]), 3, parse_split("iid"), np.random.default_rng(0))
