"""A setting that changes the model and that the stages do not compute is refused by its name; all others do no harm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from edge_runtime.errors import ExitCode
from edge_runtime.formats.manifest import Task
from models.configuration import read_configuration
from models.errors import LabelsError, ModelUnsupportedError
from models.family import Family
from models.loading import PretrainedModel, load_model
from models.registry import family_for
from tests.conftest import save_bert, save_bert_classifier, save_llama


def edited(directory: Path, **changes: object) -> Path:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory


def read(source: Path, directory: Path, task: Task, **changes: object) -> Family:
    """The family of a checkpoint's configuration with some settings changed; weights are not looked at."""
    shutil.copyfile(source / "config.json", directory / "config.json")
    return family_for(read_configuration(edited(directory, **changes), task).config, task)


def load_decoder(directory: Path) -> PretrainedModel:
    return load_model(directory, "causal-lm", labels=None, num_labels=None, seed=0)


def load_encoder(directory: Path) -> PretrainedModel:
    return load_model(directory, "text-classification", labels=["a", "b"], num_labels=None, seed=0)


DECODER: list[dict[str, Any]] = [
    {"partial_rotary_factor": 0.5},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}},
    {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}},
    {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "attention_factor": 1.5}},
    {"rope_scaling": {"rope_type": "default", "factor": 2.0}},
    {"rope_interleaved": True},
    {"attn_logit_softcapping": 50.0},
    {"final_logit_softcapping": 30.0},
    {"logit_scale": 0.0625},
    {"logits_scaling": 8.0},
    {"embedding_multiplier": 12.0},
    {"residual_multiplier": 0.22},
    {"attention_multiplier": 0.0078125},
    {"query_pre_attn_scalar": 256},
    {"use_qk_norm": True},
    {"qk_layernorm": True},
    {"clip_qkv": 8.0},
    {"no_rope_layers": [0, 1]},
    {"num_local_experts": 8},
    {"layer_types": ["full_attention", "chunked_attention"]},
    {"is_causal": False},
    {"use_bidirectional_attention": True},
    {"is_decoder": True},
    {"pruned_heads": {"0": [1]}},
    {"per_layer_config": {"0": {"intermediate_size": 8}}},
    {"auto_map": {"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}},
    {"norm_type": "layernorm"},
    {"use_mrope": True},
]
ENCODER: list[dict[str, Any]] = [
    {"position_embedding_type": "relative_key"},
    {"position_embedding_type": "alibi"},
    {"is_decoder": True},
    {"add_cross_attention": True},
    {"pooler_type": "mean"},
    {"embedding_size": 16},
    {"pruned_heads": {"1": [0]}},
    {"rope_theta": 500000.0},
    {"attention_window": [32, 32]},
    {"layer_norm_type": "rms"},
]


def key_of(changes: dict[str, Any]) -> str:
    return next(iter(changes))


@pytest.mark.parametrize("changes", DECODER, ids=key_of)
def test_a_setting_of_a_decoder_that_is_not_computed_is_refused(
    changes: dict[str, Any], tiny_llama_model: Path, tmp_path: Path
) -> None:
    assert read(tiny_llama_model, tmp_path, "causal-lm").num_layers == 2
    with pytest.raises(ModelUnsupportedError) as caught:
        read(tiny_llama_model, tmp_path, "causal-lm", **changes)
    (key, value) = next(iter(changes.items()))
    named = {key, *(value if isinstance(value, dict) else ())}
    assert any(name in str(caught.value) for name in named) or "rotary positions of type" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code is ExitCode.MODEL_UNSUPPORTED


@pytest.mark.parametrize("changes", ENCODER, ids=key_of)
def test_a_setting_of_an_encoder_that_is_not_computed_is_refused(
    changes: dict[str, Any], tiny_bert_model: Path, tmp_path: Path
) -> None:
    assert read(tiny_bert_model, tmp_path, "text-classification").num_layers == 2
    with pytest.raises(ModelUnsupportedError, match=f"config.json says {key_of(changes)} = "):
        read(tiny_bert_model, tmp_path, "text-classification", **changes)


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias"])
def test_biases_that_an_architecture_has_no_choice_of_are_refused(
    kind: str, key: str, tiny_llama_model: Path, tmp_path: Path
) -> None:
    settings = {"model_type": kind, "attention_bias": False, "mlp_bias": False}
    assert read(tiny_llama_model, tmp_path, "causal-lm", **settings).num_layers == 2
    with pytest.raises(ModelUnsupportedError, match=f"{key} = True"):
        read(tiny_llama_model, tmp_path, "causal-lm", **settings | {key: True})


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_a_classifier_for_another_problem_is_refused_unless_a_new_one_is_made(problem: str, tmp_path: Path) -> None:
    source = edited(save_bert_classifier(tmp_path / "model", ("a", "b")), problem_type=problem)
    with pytest.raises(ModelUnsupportedError, match=f"trained for {problem}.*--new-head"):
        load_encoder(source)
    made = load_model(source, "text-classification", labels=["c", "d"], num_labels=None, seed=0, new_head=True)
    assert (made.labels, made.config.problem_type) == (("c", "d"), None)


@pytest.mark.parametrize("names", [{"1": "a", "2": "b"}, {"0": "a", "1": "a"}, {"0": "a", "1": ""}], ids=str)
def test_classes_without_names_of_their_own_are_refused_unless_a_new_classifier_is_made(
    names: dict[str, str], tmp_path: Path
) -> None:
    source = edited(save_bert_classifier(tmp_path / "model", ("a", "b")), id2label=names)
    with pytest.raises(LabelsError, match=r"id2label = .*--new-head"):
        load_encoder(source)
    assert load_model(source, "text-classification", labels=["c", "d"], num_labels=None, seed=0, new_head=True).labels


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model_type": "qwen2", "sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}, 16),
        ({"model_type": "qwen2", "sliding_window": 16, "use_sliding_window": False}, 64),
        ({"model_type": "mistral", "sliding_window": 16}, 16),
        ({"model_type": "mistral", "sliding_window": None}, 64),
        ({"model_type": "mistral", "sliding_window": 4096}, 64),
    ],
    ids=range(5),
)
def test_a_window_limits_the_length_where_it_is_used(
    settings: dict[str, Any], expected: int, tiny_llama_model: Path, tmp_path: Path
) -> None:
    none = {"attention_bias": False, "mlp_bias": False}
    assert read(tiny_llama_model, tmp_path, "causal-lm", **none, **settings).max_length == expected


HARMLESS: dict[str, Any] = {
    "attention_dropout": 0.1,
    "resid_pdrop": 0.1,
    "initializer_range": 0.5,
    "use_cache": False,
    "torch_dtype": "float16",
    "pretraining_tp": 4,
    "unsloth_version": "2024.9",
    "transformers.js_config": {"dtype": "q4"},
    "_attn_implementation_autoset": True,
    "is_llama_config": True,
    "rope_interleaved": False,
    "partial_rotary_factor": 1.0,
    "attn_logit_softcapping": None,
    "residual_multiplier": 1.0,
    "final_logit_softcapping": 0,
    "max_length": 512,
    "temperature": 0.6,
    "layer_types": ["full_attention", "full_attention"],
    "gradient_checkpointing": True,
}


def test_settings_that_change_nothing_are_taken(tiny_llama_model: Path, tmp_path: Path) -> None:
    expected = load_decoder(tiny_llama_model)
    found = load_decoder(edited(save_llama(tmp_path / "model"), **HARMLESS))
    assert found.frozen.keys() == expected.frozen.keys()
    assert all(torch.equal(found.frozen[name], expected.frozen[name]) for name in found.frozen)
    assert torch.equal(found.family.inverse_frequencies, expected.family.inverse_frequencies)  # type: ignore[attr-defined]


def test_a_key_that_nobody_uses_is_told(tmp_path: Path) -> None:
    source = edited(save_llama(tmp_path / "model"), my_run="seven", unsloth_fixed=True)
    assert [note for note in load_decoder(source).notes if "my_run, unsloth_fixed" in note]


def test_settings_of_original_bert_are_taken(tmp_path: Path) -> None:
    changes = {"directionality": "bidi", "pooler_fc_size": 768, "pooler_type": "first_token_transform"}
    assert load_encoder(edited(save_bert(tmp_path / "model"), **changes)).labels == ("a", "b")
