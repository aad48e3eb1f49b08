"""The comparison with transformers sees what a wrong reading of a configuration would do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import transformers

from edge_runtime.formats.manifest import Task
from models.errors import ParityError
from models.parity import check_parity
from models.registry import family_for

LONG_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def source_of(directory: Path, task: Task, **settings: Any) -> Any:
    kind: Any = transformers.AutoModelForCausalLM
    if task == "text-classification":
        kind = transformers.AutoModelForSequenceClassification
    config = transformers.AutoConfig.from_pretrained(directory, **settings)
    return kind.from_pretrained(directory, config=config, attn_implementation="eager")


def compare(source: Any, task: Task, read: Any, exported: Any) -> float:
    return check_parity(family_for(read, task), source.state_dict(), source, exported)


def test_stages_that_agree_are_taken(tiny_llama_model: Path, tiny_bert_model: Path) -> None:
    for directory, task in ((tiny_llama_model, "causal-lm"), (tiny_bert_model, "text-classification")):
        source = source_of(directory, task)  # type: ignore[arg-type]
        assert compare(source, task, source.config, source.config) < 1e-5  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [{"rms_norm_eps": 0.05}, {"rope_theta": 500.0}, {"rope_scaling": LONG_ROPE}, {"hidden_act": "gelu"}],
    ids=str,
)
@pytest.mark.parametrize("where", ["stages", "exported"])
def test_a_setting_of_a_decoder_that_is_read_wrong_is_seen(
    wrong: dict[str, Any], where: str, tiny_llama_model: Path
) -> None:
    source = source_of(tiny_llama_model, "causal-lm")
    config = copy.deepcopy(source.config)
    for name, value in wrong.items():
        setattr(config, name, value)
    read, exported = (config, source.config) if where == "stages" else (source.config, config)
    with pytest.raises(ParityError, match="from those of transformers"):
        compare(source, "causal-lm", read, exported)


def test_scaled_positions_that_only_far_tokens_show_are_seen(tiny_llama_model: Path) -> None:
    far = {**LONG_ROPE, "original_max_position_embeddings": 8192}
    source = source_of(
        tiny_llama_model, "causal-lm", rope_scaling=far, rope_theta=500000.0, max_position_embeddings=131072
    )
    config = copy.deepcopy(source.config)
    config.rope_scaling = None
    with pytest.raises(ParityError, match="rotary positions differ"):
        compare(source, "causal-lm", config, source.config)


@pytest.mark.parametrize("wrong", [{"layer_norm_eps": 0.05}, {"hidden_act": "relu"}], ids=str)
def test_a_setting_of_an_encoder_that_is_read_wrong_is_seen(wrong: dict[str, Any], tiny_bert_model: Path) -> None:
    source = source_of(tiny_bert_model, "text-classification")
    config = copy.deepcopy(source.config)
    for name, value in wrong.items():
        setattr(config, name, value)
    with pytest.raises(ParityError, match="logits of the stages"):
        compare(source, "text-classification", config, source.config)
