"""A run that starts from an adapter that was trained before: the model it begins with is the one that was left."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from broker_server.errors import ConfigError
from broker_server.experiments.run.starting import check_rank, read_adapter, start_from
from broker_server.methods.aggregation import Aggregated
from broker_server.serving.storage.adapters import GlobalAdapters
from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats import names
from edge_runtime.formats.adapter import initial
from edge_runtime.formats.seed_pool import SeedPool


@pytest.fixture
def llama(tiny_llama_artifact: Path) -> Artifact:
    return Artifact.open(tiny_llama_artifact)


@pytest.fixture
def bert(tiny_bert_artifact: Path) -> Artifact:
    return Artifact.open(tiny_bert_artifact)


def trained(artifact: Artifact, root: Path, *, rank: int = 4, scaling: float = 2.0) -> GlobalAdapters:
    """Return the adapters of another run: a random one after round 1."""
    rng = np.random.default_rng(7)
    adapter = initial(artifact.manifest, artifact.initial(), rank, rng)
    adapter = {name: rng.normal(0, 0.1, value.shape).astype(np.float32) for name, value in adapter.items()}
    adapters = GlobalAdapters(root, artifact.manifest, artifact.digest, rank=rank, lora_scaling=scaling)
    adapters.write(1, Aggregated(adapter=adapter, memory={"log": np.arange(9, dtype=np.uint8)}))
    return adapters


def deltas(artifact: Artifact, adapter: Any, scaling: float) -> dict[str, Any]:
    """Return the change that an adapter makes to each weight."""
    return {
        target.module: scaling * adapter[names.lora_b(target.module)] @ adapter[names.lora_a(target.module)]
        for target in artifact.manifest.targets
    }


def started(
    artifact: Artifact, path: Path, root: Path, *, rank: int = 4, scaling: float = 2.0
) -> tuple[Any, list[str]]:
    """Adapter of round 0 of a run that starts from ``path``, and what was noted."""
    notes = start_from(read_adapter(path), artifact, root, rank, scaling, 0)
    run = GlobalAdapters(root, artifact.manifest, artifact.digest, rank=rank, lora_scaling=scaling)
    return run.read(0).adapter, notes


@pytest.mark.parametrize("form", ["adapters/round-0001.safetensors", "adapters/peft", "."])
@pytest.mark.parametrize(("rank", "scaling"), [(4, 2.0), (8, 0.5)], ids=str)
def test_the_model_is_the_same_whatever_the_runs_rank_and_scaling(
    form: str, rank: int, scaling: float, bert: Artifact, tmp_path: Path
) -> None:
    before = trained(bert, tmp_path / "one").read(1).adapter

    after, notes = started(bert, tmp_path / "one" / form, tmp_path / "two", rank=rank, scaling=scaling)

    for module, delta in deltas(bert, before, 2.0).items():
        np.testing.assert_allclose(deltas(bert, after, scaling)[module], delta, rtol=1e-5, atol=1e-6)
        assert (after[names.lora_a(module)] != 0).any(axis=1).all(), "a component of zeros would never be trained"
    for dense in bert.manifest.dense:
        np.testing.assert_array_equal(after[dense.name], before[dense.name])
    assert f"of rank 4 on {len(bert.manifest.targets)} layers" in notes[0]
    assert len(notes) == 1


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}], ids=str)
def test_what_peft_itself_writes_counts_as_peft_counts_it(
    options: dict[str, Any], llama: Artifact, tiny_llama_model: Path, tmp_path: Path
) -> None:
    import peft
    import torch
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama_model)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **options
    )
    model = peft.get_peft_model(base, config).to(torch.bfloat16)
    model.save_pretrained(str(tmp_path / "peft"))
    wanted = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach().float().numpy()
        for name, module in model.to(torch.float32).named_modules()
        if hasattr(module, "get_delta_weight")
    }

    after, notes = started(llama, tmp_path / "peft", tmp_path / "run", rank=8)

    found = deltas(llama, after, 2.0)
    assert len(wanted) == 2 * llama.manifest.num_layers
    for module, delta in wanted.items():
        np.testing.assert_allclose(found[module], delta, rtol=1e-4, atol=1e-5)
    assert all(not found[module].any() for module in set(found) - set(wanted))
    assert f"the run tunes {len(found) - len(wanted)} layers more than that adapter has" in notes[1]


def test_a_classifier_is_put_into_the_runs_order_of_classes(bert: Artifact, tmp_path: Path) -> None:
    before = trained(bert, tmp_path / "one").read(1).adapter
    folder = tmp_path / "one" / "adapters" / "peft"
    labels = bert.manifest.labels
    (folder / "config.json").write_text(json.dumps({"id2label": dict(enumerate(reversed(labels)))}))

    after, _ = started(bert, folder, tmp_path / "two")

    np.testing.assert_array_equal(after["classifier.weight"], before["classifier.weight"][::-1])
    (folder / "config.json").write_text(json.dumps({"id2label": {0: "a", 1: "b", 2: "c"}}))
    with pytest.raises(ConfigError, match=r"is of the classes \['a', 'b', 'c'\], but the data has"):
        started(bert, folder, tmp_path / "three")


def test_a_larger_rank_names_the_arm_that_it_needs(bert: Artifact, tmp_path: Path) -> None:
    trained(bert, tmp_path, rank=8)
    with pytest.raises(
        ConfigError, match=r"^--adapter .* has rank 8, but the largest of --arms is 4: give an arm of rank 8"
    ):
        check_rank(read_adapter(tmp_path), 4)


def test_an_adapter_of_another_model_is_refused(bert: Artifact, llama: Artifact, tmp_path: Path) -> None:
    trained(bert, tmp_path / "bert")
    with pytest.raises(ConfigError, match=r"tunes 'bert\..*', which this run does not \(it tunes .*q_proj"):
        started(llama, tmp_path / "bert", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "has peft_type = 'IA3'"),
        ({"use_dora": True}, "has use_dora = True"),
        ({"bias": "all"}, "has bias = 'all'"),
        ({"lora_alpha": "16"}, "has lora_alpha '16'"),
        ({"lora_alpha": float("nan")}, "has lora_alpha nan"),
        ({"alpha_pattern": {"(": 3}}, "is not a regular expression"),
    ],
    ids=str,
)
def test_what_a_run_cannot_go_on_with_is_named(
    change: dict[str, object], said: str, bert: Artifact, tmp_path: Path
) -> None:
    trained(bert, tmp_path)
    config = tmp_path / "adapters" / "peft" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ConfigError) as caught:
        read_adapter(tmp_path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"--adapter {config.parent} ")


def _damage(folder: Path, kind: str) -> Path:
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = safetensors.numpy.load_file(weights)
    first_a, first_b = (next(n for n in tensors if n.endswith(end)) for end in ("lora_A.weight", "lora_B.weight"))
    if kind == "cut":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif kind == "pickle":
        weights.rename(folder / "adapter_model.bin")
    elif kind == "no JSON":
        config.write_text("{")
    elif kind == "a list":
        config.write_text("[]")
    else:
        changes: Any = {
            "half": {first_b: None},
            "nan": {first_a: np.full_like(tensors[first_a], np.nan)},
            "integers": {first_a: tensors[first_a].astype(np.int32)},
            "shape": {first_a: tensors[first_a][:, :-1].copy()},
            "flat": {first_a: tensors[first_a].reshape(-1)},
            "stranger": {"base_model.model.lm_head.weight": np.ones((2, 2), np.float32)},
            "nothing": dict.fromkeys(tensors),
        }[kind]
        kept = {name: value for name, value in {**tensors, **changes}.items() if value is not None}
        safetensors.numpy.save_file(kept, weights)
    return folder


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("cut", "is not a safetensors file"),
        ("pickle", "adapter_model.bin is not read, it can run code"),
        ("no JSON", "that is not JSON"),
        ("a list", "that is not an object"),
        ("half", "without"),
        ("nan", "not finite"),
        ("integers", "as I32, expected F32, F16 or BF16"),
        ("shape", "is of another model"),
        ("flat", "not matrices"),
        ("stranger", "holds lm_head.weight, which no adapter of this run has"),
        ("nothing", "holds no LoRA factors"),
    ],
)
def test_a_damaged_adapter_is_refused_and_nothing_is_left(kind: str, said: str, bert: Artifact, tmp_path: Path) -> None:
    trained(bert, tmp_path / "one")
    folder = _damage(shutil.copytree(tmp_path / "one" / "adapters" / "peft", tmp_path / "peft"), kind)
    with pytest.raises(ConfigError, match=said):
        started(bert, folder, tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_a_frozen_weight_in_an_adapter_must_be_the_models(bert: Artifact, tmp_path: Path) -> None:
    trained(bert, tmp_path / "one")
    weights = tmp_path / "one" / "adapters" / "peft" / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    spec = next(spec for spec in bert.manifest.tensors if "pooler" in spec.name and len(spec.shape) == 2)
    name = f"base_model.model.{spec.name}"
    own = np.asarray(bert.weight(spec), np.float32)

    safetensors.numpy.save_file(tensors | {name: own}, weights)
    started(bert, tmp_path / "one", tmp_path / "two")

    safetensors.numpy.save_file(tensors | {name: own + 1}, weights)
    with pytest.raises(ConfigError, match="which is not what this model has"):
        started(bert, tmp_path / "one", tmp_path / "three")


def test_a_run_that_tuned_all_weights_has_no_adapter_to_start_from(bert: Artifact, tmp_path: Path) -> None:
    adapters = trained(bert, tmp_path)
    pool = SeedPool(seed=1, coefficients=np.array([0.5], "<f4").tobytes())
    adapters.write(2, dataclasses.replace(adapters.read(1), pool=pool))
    with pytest.raises(ConfigError, match=r"0002\.safetensors is of a run that tuned all weights"):
        read_adapter(tmp_path / "adapters" / "round-0002.safetensors")
    (tmp_path / "adapters" / "whole").mkdir()
    with pytest.raises(ConfigError, match=r"is a run that tuned all weights, and has no adapter: give --model .*whole"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(("name", "said"), [("none", "is not an adapter"), ("empty", "is not an adapter")])
def test_what_is_no_adapter_is_said_so(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=said):
        read_adapter(tmp_path / name)
