"""A checkpoint's settings of text reach the compact model: ends, the longest length, rotary positions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from optimum.onnxruntime import ORTModelForSequenceClassification

from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import decode_manifest, digest_of
from edge_runtime.formats.plan import Plan
from edge_runtime.inference import CompactModel
from exporter.artifact.export import export_model
from exporter.compact.export import compact_source
from exporter.compact.source import CompactSource
from tests.conftest import save_bert
from tests.models.checkpoints.assemble import LOGITS, NAMES, assemble
from tests.models.checkpoints.seeded import IDS

RANK = 2


def compact_of(model: Path, work: Path, task: str = "causal-lm", labels: list[str] | None = None) -> Path:
    """A compact model of a checkpoint, with an adapter that changes nothing."""
    export_model(model, "causal-lm" if task == "causal-lm" else "text-classification", work / "artifact", labels=labels)
    data = (work / "artifact" / names.MANIFEST_FILE).read_bytes()
    manifest = decode_manifest(data)
    plan = Plan.full(manifest)
    shapes = AdapterLayout.of(manifest, plan, RANK).shapes
    adapter = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    if manifest.dense:
        initial = transformers.AutoModelForSequenceClassification.from_pretrained(model).state_dict()
        adapter |= {spec.name: initial[spec.name].numpy() for spec in manifest.dense if spec.name in initial}
    source = CompactSource(
        artifact_dir=work / "artifact",
        manifest=manifest,
        digest=digest_of(data),
        adapter=adapter,
        rank=RANK,
        lora_scaling=1.0,
        round_number=1,
    )
    compact_source(source, plan, 0.0, work / "compact")
    return work / "compact"


@pytest.fixture(scope="module")
def yarn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of transformers 5, and its compact model."""
    work = tmp_path_factory.mktemp("yarn")
    source = assemble(work / "model", 5, "yarn")
    return source, compact_of(source, work)


def largest_difference(compact: Path, version: int, name: str) -> float:
    """Of a logit on the device from that of transformers 5, as a share of the largest one."""
    expected = LOGITS[f"by-{version}/{name}"]
    got = CompactModel.open(compact, num_threads=1).logits(IDS, np.ones_like(IDS))
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def test_a_device_gives_the_logits_of_transformers_5(yarn: tuple[Path, Path]) -> None:
    assert largest_difference(yarn[1], 5, "yarn") < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("version", "name"), [(4, "llama3"), *((5, name) for name in NAMES if name != "yarn")])
def test_devices_give_the_logits_of_transformers_5(version: int, name: str, tmp_path: Path) -> None:
    source = assemble(tmp_path / "model", version, name)
    task = "text-classification" if name == "bert" else "causal-lm"
    assert largest_difference(compact_of(source, tmp_path, task), version, name) < 1e-5


def test_a_device_ends_where_transformers_ends(tmp_path: Path) -> None:
    source = assemble(tmp_path / "model", 4, "llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    prompt = [2, 8, 11]
    inputs: dict[str, Any] = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    free = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=None)[0, 3:].tolist()
    end = next(token for token in free[2:] if token not in free[:2])
    generation = source / "generation_config.json"
    generation.write_text(json.dumps({"bos_token_id": 2, "eos_token_id": [3, end], "pad_token_id": 0}))

    compact = compact_of(source, tmp_path)

    expected = transformers.AutoModelForCausalLM.from_pretrained(source).generate(
        **inputs, max_new_tokens=12, do_sample=False
    )
    got = list(CompactModel.open(compact, num_threads=1).generate_ids(prompt, max_new_tokens=12))
    assert [*got, end] == expected[0, 3:].tolist()
    assert json.loads((compact / "generation_config.json").read_text())["eos_token_id"] == [3, end]


def test_no_path_of_this_machine_is_in_it(yarn: tuple[Path, Path]) -> None:
    for path in yarn[1].glob("*.json"):
        assert str(yarn[1].parent) not in path.read_text(), path.name


def test_ends_of_text_of_version_5_reach_device_and_transformers(yarn: tuple[Path, Path]) -> None:
    assert CompactModel.open(yarn[1], num_threads=1).info.text.ends == {3, 9}
    assert transformers.GenerationConfig.from_pretrained(yarn[1]).eos_token_id == [3, 9]


def test_a_pipeline_cuts_a_classifiers_texts_where_the_device_does(tmp_path: Path) -> None:
    source = save_bert(tmp_path / "model")
    config = source / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 10**30}))
    compact = compact_of(source, tmp_path, "text-classification", ["a", "b"])

    pipeline = transformers.pipeline(
        "text-classification",
        model=ORTModelForSequenceClassification.from_pretrained(compact),
        tokenizer=transformers.AutoTokenizer.from_pretrained(compact),
    )
    text = "the sun and the old moon " * 40
    (found,) = pipeline(text, truncation=True)
    (expected,) = CompactModel.open(compact, num_threads=1).classify([text])
    assert found["label"] == expected.label
    assert found["score"] == pytest.approx(expected.score, abs=1e-5)


def test_a_chat_template_is_kept(tmp_path: Path) -> None:
    source = assemble(tmp_path / "model", 5, "llama")
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    export_model(source, "causal-lm", tmp_path / "artifact")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "artifact")
    assert tokenizer.chat_template == "{{ messages[0].content }}"
