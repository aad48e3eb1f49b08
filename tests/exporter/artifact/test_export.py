"""The artifact is whole, consistent, the same every time, and enough to build the model again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
import transformers
from tokenizers import Tokenizer

from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import decode_manifest, digest_of
from edge_runtime.formats.plan import Plan
from exporter.artifact.base import Base
from exporter.artifact.export import export_model
from exporter.artifact.files import describe, write_model_files
from exporter.artifact.trace import Traced, Tracer
from exporter.errors import OutputExistsError
from models.errors import ModelNotFoundError
from models.loading import load_model
from tests.conftest import save_bert, save_llama, save_tokenizer
from tests.exporter.reference import arms, graph_gradients, manifest_of, random_adapter, random_batch
from tests.models.checkpoints.seeded import WORDS

GRAPHS = [names.TRAINING_GRAPH, names.EVALUATION_GRAPH, names.OPTIMIZER_GRAPH]


@pytest.fixture(params=["bert", "llama"])
def artifact(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(f"tiny_{request.param}_artifact")
    return found


def test_a_device_opens_it(artifact: Path) -> None:
    opened = Artifact.open(artifact, verify=True)
    assert opened.digest == digest_of((artifact / names.MANIFEST_FILE).read_bytes())
    assert set(opened.manifest.files) == {path.name for path in artifact.iterdir()} - {names.MANIFEST_FILE}


def test_every_tensor_of_the_manifest_is_in_the_base_and_is_an_input(artifact: Path) -> None:
    manifest = manifest_of(artifact)
    base = safetensors.numpy.load_file(artifact / names.BASE_FILE)
    assert {t.name: (t.shape, t.dtype) for t in manifest.tensors} == {
        name: (value.shape, str(value.dtype)) for name, value in base.items()
    }
    initial = safetensors.numpy.load_file(artifact / names.INITIAL_FILE)
    assert {d.name: d.shape for d in manifest.dense} == {name: value.shape for name, value in initial.items()}
    for graph in (names.TRAINING_GRAPH, names.EVALUATION_GRAPH):
        inputs = {v.name for v in onnx.load(artifact / graph).graph.input}
        assert set(base) < inputs
        assert not inputs & set(initial)


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_are_valid_small_and_hold_no_weights(artifact: Path, graph: str) -> None:
    model = onnx.load(artifact / graph)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert all(np.prod(c.dims) <= 64 for c in model.graph.initializer)


def test_the_graph_splits_what_the_layout_lists(artifact: Path) -> None:
    manifest = manifest_of(artifact)
    layout = AdapterLayout.of(manifest, Plan.full(manifest), 2)
    for name in (names.TRAINING_GRAPH, names.EVALUATION_GRAPH):
        (split,) = [n for n in onnx.load(artifact / name).graph.node if names.SPLIT_SIZES in n.input]
        assert len(split.output) == len(layout.shapes)


def test_no_two_nodes_compute_the_same(artifact: Path) -> None:
    """The forward that a block's backward contains is merged with the first."""
    nodes = onnx.load(artifact / names.TRAINING_GRAPH).graph.node
    keys = [(n.op_type, tuple(n.input), tuple(a.SerializeToString() for a in n.attribute)) for n in nodes]
    assert len(keys) == len(set(keys))
    evaluation = onnx.load(artifact / names.EVALUATION_GRAPH).graph.node
    for kind in ("Softmax", "LayerNormalization", "Sigmoid", "Gelu"):
        assert sum(n.op_type == kind for n in nodes) == sum(n.op_type == kind for n in evaluation)


def test_nothing_is_computed_that_no_output_needs(artifact: Path) -> None:
    """In particular not the gradient with respect to the embedding's output."""
    graph = onnx.load(artifact / names.TRAINING_GRAPH).graph
    used = {value for node in graph.node for value in node.input} | {value.name for value in graph.output}
    assert all(used.intersection(node.output) for node in graph.node)


def test_sizes_that_shrink_together_share_a_name(tiny_llama_artifact: Path) -> None:
    graph = onnx.load(tiny_llama_artifact / names.TRAINING_GRAPH).graph
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    assert shapes["model.layers.1.self_attn.q_proj.weight"] == ["layer1_heads_x16", 32]
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == ["layer1_heads_x8", 32]
    assert shapes["model.layers.1.self_attn.o_proj.weight"] == [32, "layer1_heads_x16"]
    assert shapes["model.layers.1.mlp.down_proj.weight"] == [32, "layer1_channels"]


def test_the_same_export_gives_the_same_digest(
    tiny_llama_model: Path, tiny_llama_artifact: Path, tmp_path: Path
) -> None:
    _, digest = export_model(tiny_llama_model, "causal-lm", tmp_path / "again")
    assert digest == digest_of((tiny_llama_artifact / names.MANIFEST_FILE).read_bytes())


def test_the_model_can_be_built_from_the_artifact_alone(artifact: Path) -> None:
    manifest = manifest_of(artifact)
    config = transformers.AutoConfig.from_pretrained(artifact)
    kind = {
        "text-classification": transformers.AutoModelForSequenceClassification,
        "causal-lm": transformers.AutoModelForCausalLM,
    }[manifest.task]
    model = kind.from_config(config)
    state = {n: torch.from_numpy(v) for n, v in safetensors.numpy.load_file(artifact / names.BASE_FILE).items()}
    state |= {n: torch.from_numpy(v) for n, v in safetensors.numpy.load_file(artifact / names.INITIAL_FILE).items()}
    result = model.load_state_dict(state, strict=False)
    model.tie_weights()
    assert not result.unexpected_keys
    assert set(result.missing_keys) <= {"lm_head.weight"}
    assert [type(model).__name__] == config.architectures
    tokenizer = transformers.AutoTokenizer.from_pretrained(artifact)
    assert (
        tokenizer("the cat").input_ids
        == Tokenizer.from_file(str(artifact / names.TOKENIZER_FILE)).encode("the cat").ids
    )


def test_no_path_of_this_machine_is_in_it(artifact: Path, tmp_path: Path) -> None:
    for path in artifact.iterdir():
        assert str(tmp_path.parent.parent).encode() not in path.read_bytes(), path.name


def test_padding_and_truncation_of_the_tokenizer_are_dropped(tmp_path: Path) -> None:
    source = save_bert(tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(max_length=4)
    tokenizer.save(str(source / "tokenizer.json"))
    loaded = load_model(source, "text-classification", labels=None, num_labels=2, seed=0)
    write_model_files(tmp_path, loaded, Base(loaded, "stored"))
    exported = Tokenizer.from_file(str(tmp_path / names.TOKENIZER_FILE))
    assert len(exported.encode("the cat").ids) == 4
    assert len(exported.encode("the cat sings and the dog runs").ids) == 9


# ---- the output directory ----


def test_an_artifact_is_replaced_only_when_forced(
    tiny_llama_model: Path, tiny_llama_artifact: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_llama_artifact, tmp_path / "artifact")
    (out / "config.json").unlink()
    with pytest.raises(OutputExistsError, match="--force"):
        export_model(tiny_llama_model, "causal-lm", out)
    export_model(tiny_llama_model, "causal-lm", out, force=True)
    assert (out / "config.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_what_is_no_artifact_is_never_replaced(tiny_llama_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter.txt").write_text("years of work")
    with pytest.raises(OutputExistsError, match="no artifact"):
        export_model(tiny_llama_model, "causal-lm", out, force=True)
    assert (out / "chapter.txt").exists()


def test_a_refused_model_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        export_model("./nowhere", "causal-lm", tmp_path / "out" / "artifact")
    assert not (tmp_path / "out").exists()


def test_a_failing_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_llama(tmp_path / "model")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("exporter.artifact.files.write_manifest", fail)
    with pytest.raises(Exception, match="disk full"):
        export_model(source, "causal-lm", tmp_path / "artifact")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# ---- cost ----


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_depth_does_not_make_export_slow(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """24 layers are traced no more than 6, and take at most 1.5 times as long; the shorter of two counts, because
    other work disturbs.
    """
    traces = []

    def trace(self: Tracer, *arguments: Any, trace: Callable[..., Traced] = Tracer.trace) -> Traced:
        traces.append(self)
        return trace(self, *arguments)

    monkeypatch.setattr(Tracer, "trace", trace)
    seconds = {}
    for num_layers in (6, 24):
        save = save_bert if family == "bert" else save_llama
        source = save(tmp_path / f"model{num_layers}", num_hidden_layers=num_layers)
        task, options = ("text-classification", {"num_labels": 2}) if family == "bert" else ("causal-lm", {})
        times = []
        for number in range(2):
            start = time.process_time()
            manifest, _ = export_model(source, task, tmp_path / f"artifact{num_layers}.{number}", **options)  # type: ignore[arg-type]
            times.append(time.process_time() - start)
            assert len(traces) == (4 if family == "bert" else 3)
            traces.clear()
        seconds[num_layers] = min(times)
        assert manifest.num_layers == num_layers
    assert seconds[24] <= 1.5 * seconds[6]


def test_text_settings(tiny_bert_artifact: Path, tiny_llama_artifact: Path) -> None:
    bert, llama = manifest_of(tiny_bert_artifact).text, manifest_of(tiny_llama_artifact).text
    assert (bert.pad_token_id, bert.append_eos, bert.max_length) == (0, False, 64)
    assert (llama.pad_token_id, llama.eos_token_id, llama.append_eos) == (0, 3, True)
    assert bert.vocab_size == llama.vocab_size == len(WORDS) + 4


def test_a_tokenizer_that_ends_texts_itself_is_left_to_it(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model")
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    save_tokenizer(source, special, "<s> $A </s>")
    loaded = load_model(source, "causal-lm", labels=None, num_labels=None, seed=0)
    assert not describe(loaded, Base(loaded, "stored")).text.append_eos


def test_a_copied_artifact_is_the_same_artifact(artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(artifact, tmp_path / "copy")
    manifest = decode_manifest((tmp_path / "copy" / names.MANIFEST_FILE).read_bytes())
    arm = arms(manifest)["0.5:3"]
    adapter, batch = random_adapter(manifest, arm), random_batch(manifest, 2, 5)
    first, _ = graph_gradients(artifact, arm, adapter, batch)
    second, _ = graph_gradients(tmp_path / "copy", arm, adapter, batch)
    assert first == second
