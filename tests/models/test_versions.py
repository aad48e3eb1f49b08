"""Checkpoints that transformers 4.57 and 5 wrote are the same models here as there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from edge_runtime.formats.manifest import Task
from models.loading import PretrainedModel, load_model
from tests.models.checkpoints.assemble import LOGITS, NAMES, assemble
from tests.models.checkpoints.seeded import IDS

TOLERANCE = 2e-5


def load(directory: Path, version: int, name: str) -> PretrainedModel:
    task: Task = "text-classification" if name == "bert" else "causal-lm"
    return load_model(assemble(directory, version, name), task, labels=None, num_labels=None, seed=0)


def of_stages(model: PretrainedModel) -> torch.Tensor:
    """Logits that the stages compute, ``[1, C]`` or ``[S, C]``."""
    family, weights = model.family, {**model.frozen, **model.dense}
    ids = torch.from_numpy(IDS)
    with torch.inference_mode():
        hidden, context = family.embed(weights, ids, torch.ones_like(ids))
        for layer in range(family.num_layers):
            block = {p.name: weights[family.block_prefix(layer) + p.name] for p in family.block_params}
            hidden, _ = family.block(block, hidden, context)
        return family.logits(weights, hidden[:, 0] if family.dense else hidden[0])


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("name", NAMES)
def test_the_stages_give_the_logits_of_transformers_5(version: int, name: str, tmp_path: Path) -> None:
    got = of_stages(load(tmp_path / "model", version, name)).numpy().ravel()
    expected = LOGITS[f"by-{version}/{name}"].ravel()
    assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
def test_the_stages_give_the_logits_of_the_installed_transformers(name: str, tmp_path: Path) -> None:
    model = load(tmp_path / "model", 4, name)
    kind: Any = transformers.AutoModelForSequenceClassification if name == "bert" else transformers.AutoModelForCausalLM
    with torch.inference_mode():
        expected = kind.from_pretrained(tmp_path / "model").eval()(input_ids=torch.from_numpy(IDS)).logits.ravel()
    assert (of_stages(model).ravel() - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("name", ["llama3", "linear", "yarn", "qwen2", "mistral"])
def test_defaults_in_the_place_of_what_version_5_moved_would_be_seen(name: str, tmp_path: Path) -> None:
    source = assemble(tmp_path / "model", 5, name)
    config = json.loads((source / "config.json").read_text())
    del config["rope_parameters"]
    (source / "config.json").write_text(json.dumps(config))
    model = load_model(source, "causal-lm", labels=None, num_labels=None, seed=0)
    expected = LOGITS[f"by-5/{name}"].ravel()
    assert np.abs(of_stages(model).numpy().ravel() - expected).max() > 1000 * TOLERANCE * np.abs(expected).max()


def test_a_tokenizer_of_a_class_that_version_4_lacks_is_read_from_its_file(tmp_path: Path) -> None:
    ours = load(tmp_path / "model", 5, "llama").tokenizer
    assert ours("the old cat sings")["input_ids"] == [2, 4, 20, 6, 17]
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id, ours.unk_token_id) == (2, 3, 0, 1)
    assert ours.model_max_length == 64
