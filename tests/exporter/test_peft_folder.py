"""``adapters/peft`` as its page says to load it: by the peft library, from the folder alone, without network."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from broker_server.errors import ConfigError
from broker_server.methods.aggregation import Aggregated
from broker_server.serving.storage.adapters import GlobalAdapters, peft_directory
from broker_server.serving.storage.peft_folder import PeftFolder, base_model
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.dataset import eval_batches
from edge_runtime.engine.evaluator import Evaluator
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Task
from edge_runtime.formats.peft_format import unknown_base
from edge_runtime.formats.plan import Plan
from edge_runtime.inference.scoring import score_batch
from exporter.artifact.export import export_model
from models.hub import is_hub_id
from tests.conftest import save_bert, save_bert_classifier, save_llama

RANK, SCALING = 3, 1.5
LABELS = ["red", "green", "blue"]


def without_pooler(directory: Path) -> Path:
    whole = save_bert(directory)
    transformers.BertModel.from_pretrained(whole, add_pooling_layer=False).save_pretrained(directory)
    return directory


Made = tuple[Callable[[Path], Path], dict[str, Any]]
MODELS: dict[str, Made] = {
    "neither head nor pooler": (without_pooler, {"labels": LABELS}),
    "the checkpoint's head": (lambda directory: save_bert_classifier(directory, tuple(LABELS)), {}),
    "another head": (lambda directory: save_bert_classifier(directory, tuple("abcde")), {"labels": LABELS}),
    "a decoder": (save_llama, {}),
}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **_options: object) -> None:
        pytest.fail(f"the network was asked for {arguments[0]}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def train(run_dir: Path, artifact: Artifact, base: Path) -> dict[str, np.ndarray]:
    """Write the files that a coordinator leaves after a round."""
    layout = AdapterLayout.of(artifact.manifest, Plan.full(artifact.manifest), RANK)
    rng = np.random.default_rng(3)
    adapter = {name: rng.normal(0.0, 0.2, shape).astype(np.float32) for name, shape in layout.shapes.items()}
    folder = PeftFolder(peft_directory(run_dir), artifact.manifest, artifact, base_model(run_dir, str(base)))
    adapters = GlobalAdapters(
        run_dir, artifact.manifest, artifact.digest, rank=RANK, lora_scaling=SCALING, peft_folder=folder
    )
    adapters.write(1, Aggregated(adapter=adapter))
    return adapter


def follow_page(run_dir: Path) -> dict[str, Any]:
    """Return the names that the lines of Python on the page define."""
    match = re.search(r"```python\n(.*?)```", (peft_directory(run_dir) / "README.md").read_text(), re.DOTALL)
    assert match is not None
    defined: dict[str, Any] = {}
    exec(match[1], defined)  # noqa: S102 - our own page
    return defined


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("made", MODELS)
def test_the_page_s_lines_give_what_the_run_evaluates(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, options = MODELS[made]
    task: Task = "causal-lm" if save is save_llama else "text-classification"
    model_dir, run_dir = save(tmp_path / "Modelle" / "für tests"), tmp_path / "run"
    export_model(model_dir, task, tmp_path / "artifact", **options)
    artifact = Artifact.open(tmp_path / "artifact")
    adapter = train(run_dir, artifact, model_dir)
    monkeypatch.chdir(run_dir)

    defined = follow_page(run_dir)

    text = "the old dog runs and the sea sings"
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"text": text} | ({} if task == "causal-lm" else {"label": "blue"})) + "\n")
    examples = load_examples(data, artifact, 24)
    (batch,) = eval_batches(examples, 1)
    assert defined["tokenizer"](text)["input_ids"] == batch.input_ids[0].tolist()[: len(defined["tokenizer"](text)[0])]
    with torch.inference_mode():
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        output = defined["model"].eval()(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    evaluator = Evaluator.load(artifact, Plan.full(artifact.manifest), num_threads=1)
    expected = evaluator.evaluate(adapter, RANK, SCALING, examples, 1)
    assert score_batch(output.logits.numpy(), batch).loss == pytest.approx(expected.loss, rel=1e-4)
    if task == "text-classification":
        assert defined["model"].config.id2label == dict(enumerate(LABELS))


@pytest.mark.usefixtures("no_network")
def test_an_adapter_of_a_folder_that_has_gone_asks_nobody(tmp_path: Path) -> None:
    import peft

    model_dir, run_dir = save_llama(tmp_path / "minilm-l6"), tmp_path / "run"
    export_model(model_dir, "causal-lm", tmp_path / "artifact")
    train(run_dir, Artifact.open(tmp_path / "artifact"), model_dir)
    shutil.rmtree(model_dir)

    with pytest.raises((OSError, ValueError), match="minilm-l6"):
        peft.AutoPeftModelForCausalLM.from_pretrained(peft_directory(run_dir))


@pytest.mark.parametrize(("name", "base"), [("org/model", "org/model"), ("minilm-l6", "./minilm-l6")])
def test_a_bare_name_of_unknown_origin_is_no_hub_id(tiny_bert_artifact: Path, name: str, base: str) -> None:
    from msgspec import structs

    found = unknown_base(structs.replace(Artifact.open(tiny_bert_artifact).manifest, model_name=name))
    assert found == base
    assert is_hub_id(found) == ("/" in name)


def test_a_base_model_is_absolute_or_a_hub_id(tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    assert base_model(tmp_path / "run", "../models/mine") == str(tmp_path / "models" / "mine")
    assert base_model(tmp_path / "run", str(tmp_path / "gone")) == str(tmp_path / "gone")
    assert base_model(tmp_path / "run", "org/model") == "org/model"
    assert base_model(tmp_path / "run", None) is None
    with pytest.raises(ConfigError, match=r"base_model is '\.\./models/lost'"):
        base_model(tmp_path / "run", "../models/lost")
