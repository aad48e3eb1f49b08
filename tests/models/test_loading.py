"""Models are loaded whole, with the classes that are meant, or refused in one line that names what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification

from edge_runtime.errors import ExitCode
from edge_runtime.formats.manifest import Task
from models.errors import LabelsError, ModelError, ModelNotFoundError, ModelUnsupportedError
from models.loading import PretrainedModel, load_model
from tests.conftest import save_bert, save_llama

LABELS = ["red", "green", "blue"]


def load(
    source: Path | str,
    task: Task,
    *,
    labels: list[str] | None = None,
    num_labels: int | None = None,
    seed: int = 0,
) -> PretrainedModel:
    return load_model(source, task, labels=labels, num_labels=num_labels, seed=seed)


# ---- labels ----


def save_classifier(directory: Path, id2label: dict[int, str] | None) -> Path:
    save_bert(directory)
    settings: dict[str, Any] = {"id2label": id2label} if id2label else {"num_labels": 3}
    config = BertConfig.from_pretrained(directory, **settings)
    BertForSequenceClassification(config).save_pretrained(directory)
    return directory


def test_a_trained_classifier_keeps_its_classes_and_values(tmp_path: Path) -> None:
    source = save_classifier(tmp_path / "model", {0: "x", 1: "y", 2: "z"})
    model = load(source, "text-classification")
    assert model.labels == ("x", "y", "z")
    expected = BertForSequenceClassification.from_pretrained(source).state_dict()
    assert torch.equal(model.dense["classifier.weight"], expected["classifier.weight"])
    assert not set(model.dense) & set(model.frozen)


def test_classes_without_names_can_be_named(tmp_path: Path) -> None:
    source = save_classifier(tmp_path / "model", None)
    assert load(source, "text-classification", labels=LABELS).labels == tuple(LABELS)


def test_labels_may_be_a_mere_number(tiny_bert_model: Path) -> None:
    model = load(tiny_bert_model, "text-classification", num_labels=3)
    assert model.labels == ("0", "1", "2")
    assert model.config.id2label == {0: "0", 1: "1", 2: "2"}
    assert model.dense["classifier.weight"].shape == (3, 32)


def test_the_order_of_the_checkpoints_classes_is_kept(tmp_path: Path) -> None:
    source = save_classifier(tmp_path / "model", {0: "z", 1: "x", 2: "y"})
    model = load(source, "text-classification", labels=["x", "y", "z"])
    assert model.labels == ("z", "x", "y")
    assert model.config.id2label == {0: "z", 1: "x", 2: "y"}
    expected = BertForSequenceClassification.from_pretrained(source).state_dict()
    assert torch.equal(model.dense["classifier.weight"], expected["classifier.weight"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"labels": ["one"]},
        {"labels": ["same", "same"]},
        {"labels": ["one", " "]},
        {"num_labels": 1},
        {"labels": ["a", "b"], "num_labels": 2},
    ],
    ids=str,
)
def test_labels_must_be_given_and_make_sense(options: dict[str, Any], tiny_bert_model: Path) -> None:
    with pytest.raises(LabelsError):
        load(tiny_bert_model, "text-classification", **options)


def test_labels_are_not_for_causal_lm(tiny_llama_model: Path) -> None:
    with pytest.raises(LabelsError, match="causal-lm"):
        load(tiny_llama_model, "causal-lm", num_labels=2)


def test_a_new_classifier_follows_the_seed(tiny_bert_model: Path) -> None:
    found = [load(tiny_bert_model, "text-classification", num_labels=9, seed=seed).dense for seed in (0, 0, 1)]
    first, second, third = (dense["classifier.weight"] for dense in found)
    assert torch.equal(first, second)
    assert not torch.equal(second, third)
    assert first.std().item() == pytest.approx(0.02, rel=0.3)
    assert not found[0]["classifier.bias"].any()


# ---- refusals ----


def break_config(directory: Path, **changes: object) -> Path:
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "'mamba' is not supported; known architectures: bert, llama, mistral, qwen2"),
        ({"model_type": "never-heard-of"}, "'never-heard-of' is not supported"),
        ({"model_type": "bert"}, "'bert' cannot do causal-lm"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "type 'dynamic' are not supported"),
        ({"vocab_size": 99}, "size mismatch"),
    ],
    ids=["other architecture", "unknown architecture", "other task", "positions", "contradiction"],
)
def test_what_is_not_supported_is_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = break_config(save_llama(tmp_path / "model"), **changes)
    with pytest.raises((ModelUnsupportedError, ModelNotFoundError), match=message) as caught:
        load(source, "causal-lm")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code in {ExitCode.MODEL_UNSUPPORTED, ExitCode.MODEL_NOT_FOUND}


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_directory_without_a_file_is_refused(lost: str, tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model")
    (source / lost).unlink()
    with pytest.raises(ModelNotFoundError):
        load(source, "causal-lm")


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe garbage", b'{"model_type": 7}'], ids=range(4))
def test_a_broken_file_is_one_clear_line(broken: str, content: bytes, tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model")
    (source / broken).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load(source, "causal-lm")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model")
    weights = safetensors.numpy.load_file(source / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    safetensors.numpy.save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotFoundError, match="up_proj"):
        load(source, "causal-lm")


def with_weights(directory: Path, **added: Any) -> Path:
    path = directory / "model.safetensors"
    weights = safetensors.numpy.load_file(path) | added
    safetensors.numpy.save_file(weights, path, metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.2.mlp.up_proj.weight",
    ],
)
def test_weights_that_the_configuration_has_no_place_for_are_refused(name: str, tmp_path: Path) -> None:
    source = with_weights(save_llama(tmp_path / "model"), **{name: np.ones(8, np.float32)})
    with pytest.raises(ModelUnsupportedError, match=f"1 weights that its config.json has no place for.*{name}"):
        load(source, "causal-lm")


def test_heads_of_other_tasks_and_tables_of_positions_are_left_alone(tmp_path: Path) -> None:
    added = {
        "cls.predictions.bias": np.ones(24, np.float32),
        "embeddings.position_ids": np.arange(64)[None],
    }
    source = with_weights(save_bert(tmp_path / "model"), **added)
    assert load(source, "text-classification", labels=LABELS).labels == tuple(LABELS)


def test_an_output_matrix_that_is_tied_and_another_one_is_refused(tmp_path: Path) -> None:
    source = with_weights(save_llama(tmp_path / "model"), **{"lm_head.weight": np.ones((24, 32), np.float32)})
    with pytest.raises(ModelUnsupportedError, match="tie_word_embeddings = True, but the checkpoint holds lm_head"):
        load(source, "causal-lm")


def test_an_output_matrix_that_is_stored_although_it_is_tied_does_no_harm(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model")
    table = safetensors.numpy.load_file(source / "model.safetensors")["model.embed_tokens.weight"]
    assert "lm_head.weight" not in load(with_weights(source, **{"lm_head.weight": table}), "causal-lm").frozen


def test_a_missing_pooler_is_told(tmp_path: Path) -> None:
    source = save_bert(tmp_path / "model")
    transformers.BertModel.from_pretrained(source, add_pooling_layer=False).save_pretrained(source)
    first, second = (load(source, "text-classification", num_labels=2) for _ in range(2))
    assert any("pooler" in note for note in first.notes)
    assert torch.equal(first.frozen["bert.pooler.dense.weight"], second.frozen["bert.pooler.dense.weight"])


@pytest.mark.parametrize("model", ["no/such/dir/here", "./nowhere", "/nowhere/at/all"])
def test_a_directory_that_is_not_there_is_refused(model: str) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        load(model, "causal-lm")


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match="Hugging Face hub") as caught:
        load("nobody/nothing", "causal-lm")
    assert "\n" not in str(caught.value)


def test_half_precision_is_kept_and_the_rest_is_float32(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model")
    transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(source)
    assert {value.dtype for value in load(source, "causal-lm").frozen.values()} == {torch.float16}


def test_bfloat16_beyond_the_range_of_float16_becomes_float32(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.model.norm.weight.data[0] = 1e6
    model.save_pretrained(source)
    frozen = load(source, "causal-lm").frozen
    assert {name for name, value in frozen.items() if value.dtype == torch.float32} == {"model.norm.weight"}


def test_tied_weights_are_there_once(tmp_path: Path, tiny_llama_model: Path) -> None:
    assert "lm_head.weight" not in load(tiny_llama_model, "causal-lm").frozen
    untied = load(save_llama(tmp_path / "model", tie_word_embeddings=False), "causal-lm").frozen
    assert not torch.equal(untied["lm_head.weight"], untied["model.embed_tokens.weight"])


def test_a_sliding_window_limits_the_length(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model", "mistral", sliding_window=16)
    assert load(source, "causal-lm").family.max_length == 16
