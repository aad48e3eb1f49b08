"""The next token: greedy, or drawn from the likeliest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_runtime.inference.errors import SamplingError
from edge_runtime.inference.sampling import Sampling, choose

LOGITS = arrays.arrays(np.float32, st.integers(1, 30), elements=st.floats(-1e4, 1e4, width=32))


@given(logits=LOGITS, seed=st.integers(0, 9))
def test_greedy_is_the_likeliest_whatever_the_generator(logits: np.ndarray, seed: int) -> None:
    assert choose(logits, Sampling(), np.random.default_rng(seed)) == int(logits.argmax())


@given(logits=LOGITS, top_k=st.integers(1, 40), temperature=st.floats(1e-3, 100.0))
def test_drawn_token_is_among_the_top_k(logits: np.ndarray, top_k: int, temperature: float) -> None:
    chosen = choose(logits, Sampling(temperature=temperature, top_k=top_k), np.random.default_rng(0))

    assert (logits > logits[chosen]).sum() < top_k


def test_frequencies_follow_the_softmax_at_the_temperature() -> None:
    logits, rng = np.array([0.0, 1.0, 2.0], np.float32), np.random.default_rng(0)

    drawn = np.bincount([choose(logits, Sampling(temperature=2.0), rng) for _ in range(4000)], minlength=3) / 4000

    weights = np.exp(logits / 2.0)
    np.testing.assert_allclose(drawn, weights / weights.sum(), atol=0.03)


@pytest.mark.parametrize("temperature", [-0.1, float("inf"), float("nan")])
def test_impossible_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(SamplingError, match=r"temperature is .* expected 0"):
        Sampling(temperature=temperature)


def test_negative_top_k_is_refused() -> None:
    with pytest.raises(SamplingError, match="top_k is -1"):
        Sampling(top_k=-1)
