"""Rotary settings of both versions are read alike, and the formulas are those of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from models import rotary
from models.errors import ModelUnsupportedError

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SCALINGS: dict[str, dict[str, Any] | None] = {
    "default": None,
    "linear": {"type": "linear", "factor": 2.5},
    "llama3": LLAMA3,
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn without its first length": {"rope_type": "yarn", "factor": 16.0, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn of two scales": {
        "rope_type": "yarn",
        "factor": 40.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.0,
        "truncate": False,
    },
    "yarn with a temperature": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.25},
}


@pytest.mark.parametrize("theta", [10_000.0, 1_000_000])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_transformers(name: str, theta: float) -> None:
    config = transformers.LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        rope_theta=theta,
        rope_scaling=SCALINGS[name],
        max_position_embeddings=131072,
    )
    expected = LlamaRotaryEmbedding(config)
    frequencies, factor = rotary.frequencies(rotary.read(config.to_dict()), 64)
    assert factor == pytest.approx(expected.attention_scaling)
    torch.testing.assert_close(frequencies, expected.inv_freq, rtol=3e-7, atol=0.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}},
        {"rope_theta": 5e5, "rope_parameters": LLAMA3},
        {"rope_theta": 5e5, "rope_scaling": LLAMA3, "rope_parameters": {"rope_theta": 5e5, **LLAMA3}},
        {"rope_parameters": {kind: {"rope_theta": 5e5, **LLAMA3} for kind in ("full_attention", "sliding_attention")}},
        {"rope_parameters": {"full_attention": {"rope_theta": 5e5, **LLAMA3}, "sliding_attention": None}},
        {"rope_theta": 500_000, "rope_scaling": {"type": "llama3", **LLAMA3}, "max_position_embeddings": 131072},
    ],
    ids=range(7),
)
def test_both_spellings_mean_the_same(settings: dict[str, Any]) -> None:
    assert rotary.read(settings) == {"rope_theta": 5e5, **LLAMA3}


def test_what_is_written_for_version_4_is_read_back() -> None:
    for settings in ({"rope_parameters": {"rope_theta": 5e5, **LLAMA3}}, {"rope_theta": 2e4}, {}):
        read = rotary.read(settings)
        assert rotary.read(rotary.written_for_transformers_4(read)) == read


def test_the_first_length_is_the_longest_one_where_it_is_not_said() -> None:
    read = rotary.read({"rope_scaling": {"type": "yarn", "factor": 2.0}, "max_position_embeddings": 4096})
    assert read["original_max_position_embeddings"] == 4096


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}},
            "rope_parameters.rope_theta = 500000.0 and rope_theta",
        ),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "linear", "factor": 4.0},
            },
            "rope_parameters.factor = 4.0 and rope_scaling.factor = 2.0",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}},
            "full_attention.rope_theta = 1000000.0 and rope_parameters.sliding_attention.rope_theta = 10000.0",
        ),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}}, "remove one"),
        ({"rope_scaling": {"rope_type": "su", "factor": 2.0}}, "type 'su' are not supported; known: default, linear"),
        ({"rope_scaling": {"rope_type": "linear"}}, "lack factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor = 0, expected a finite number above 0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": float("nan")}}, "factor = nan"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor = '2'"),
        ({"rope_theta": 1}, "rope_theta = 1, expected a finite number above 1"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 0.5}}, "high_freq_factor = 0.5, expected more than"),
        ({"rope_scaling": [1, 2]}, "expected an object"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mscale": 1.0}}, "rope_scaling.mscale = 1.0, which"),
    ],
    ids=range(13),
)
def test_what_contradicts_itself_or_is_not_computed_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelUnsupportedError) as caught:
        rotary.read(settings)
    assert message in str(caught.value)
