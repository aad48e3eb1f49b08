"""A compact model says what PyTorch says of the merged and pruned model, on the device and in Optimum."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import peft
import pytest
import safetensors
import torch
import transformers
from msgspec import structs
from onnx import numpy_helper
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSequenceClassification

from edge_runtime.formats import names
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.peft_format import write_peft
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.tensors import decode_tensors, encode_tensors
from edge_runtime.inference import CompactModel
from exporter.artifact.export import export_model
from exporter.compact.export import compact_run, compact_source
from exporter.compact.merge import base_model, merged_model
from exporter.compact.rows import quantize_by_row
from exporter.compact.source import CompactSource, read_plan, read_source
from exporter.errors import CompactInputError, CompactParityError
from models.errors import ModelUnsupportedError
from models.registry import family_for
from models.surgery import prune_model
from tests.conftest import save_llama
from tests.exporter.runs import RANK, SCALING, write_run

SPARSITIES = [0.0, 0.25, 0.5]


@pytest.fixture(scope="session")
def long_llama_run(tiny_llama_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with positions for 64 tokens after a prompt; rotary positions need no weights."""
    directory = tmp_path_factory.mktemp("long-llama")
    shutil.copytree(tiny_llama_model, directory / "model")
    config = directory / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 128}))
    export_model(directory / "model", "causal-lm", directory / "artifact")
    return write_run(directory / "run", directory / "artifact")


def reference(source: CompactSource, plan: Plan) -> Any:
    """PyTorch's merged and pruned model."""
    model = merged_model(source)
    prune_model(model, family_for(model.config, source.manifest.task), source.manifest, plan)
    return model


def random_batch(manifest: Manifest) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Three sequences of 11 tokens, the last two padded on the right."""
    ids = np.random.default_rng(77).integers(0, manifest.text.vocab_size, (3, 11), dtype=np.int64)
    mask = np.ones_like(ids)
    mask[1, 8:] = mask[2, 1:] = 0
    return np.where(mask == 1, ids, manifest.text.pad_token_id), mask


def torch_logits(model: Any, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits
    out: npt.NDArray[np.float32] = logits.numpy()
    return out if out.ndim == 2 else out[mask == 1]


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_logits_are_those_of_pytorch(run_dir: Path, sparsity: float, tmp_path: Path) -> None:
    source = read_source(run_dir)
    plan = read_plan(run_dir, source.manifest, sparsity)

    info = compact_run(run_dir, sparsity, tmp_path / "compact")

    ids, mask = random_batch(source.manifest)
    got = CompactModel.open(tmp_path / "compact", num_threads=1).logits(ids, mask)
    expected = torch_logits(reference(source, plan), ids, mask)
    assert np.abs((got if got.ndim == 2 else got[mask == 1]) - expected).max() <= 1e-4
    assert (info.pruning_ratio, info.plan) == (sparsity, plan.packed)
    assert info.sparsity == pytest.approx(plan.sparsity(source.manifest))


def test_surgery_removes_exactly_what_zeroed_units_would(run_dir: Path) -> None:
    """The reference of this test knows no surgery: in the whole model, what leaves a removed unit is set to zero."""
    source = read_source(run_dir)
    plan = read_plan(run_dir, source.manifest, 0.5)
    whole = merged_model(source)
    for spec in source.manifest.tensors:
        for prune in spec.prune:
            if prune.axis == 1 and spec.layer is not None:
                gone = np.setdiff1d(np.arange(spec.shape[1]), plan.indices(spec.layer, prune))
                whole.get_parameter(spec.name).data[:, gone] = 0.0

    ids, mask = random_batch(source.manifest)
    np.testing.assert_allclose(
        torch_logits(reference(source, plan), ids, mask), torch_logits(whole, ids, mask), atol=1e-5
    )


def test_merging_adds_scaled_products_and_replaces_dense_tensors(run_dir: Path) -> None:
    source = read_source(run_dir)
    base, merged = base_model(source.artifact_dir, source.manifest), merged_model(source)

    for target in source.manifest.targets:
        a, b = source.adapter[names.lora_a(target.module)], source.adapter[names.lora_b(target.module)]
        difference = merged.get_parameter(f"{target.module}.weight") - base.get_parameter(f"{target.module}.weight")
        np.testing.assert_allclose(difference.detach().numpy(), SCALING * (b @ a), atol=1e-5)
    for dense in source.manifest.dense:
        np.testing.assert_array_equal(merged.get_parameter(dense.name).detach().numpy(), source.adapter[dense.name])


@pytest.fixture(params=["bert", "llama"])
def merging_run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A run whose rule of aggregation folds factors into the frozen weights, of another rank in each target."""
    run = tmp_path / "merging"
    shutil.copytree(request.getfixturevalue(f"{request.param}_run"), run)
    source, rng = read_source(run), np.random.default_rng(6)
    tensors = dict(source.adapter)
    for index, target in enumerate(source.manifest.targets[1:]):
        num = 1 + index % 5
        tensors[names.merged_a(target.module)] = rng.normal(0.0, 0.2, (num, target.in_features)).astype(np.float32)
        tensors[names.merged_b(target.module)] = rng.normal(0.0, 0.2, (target.out_features, num)).astype(np.float32)
    metadata = {
        "artifact_digest": source.digest,
        "rank": str(RANK),
        "lora_scaling": str(SCALING),
        "round_number": "11",
    }
    (run / "adapters" / "round-0011.safetensors").write_bytes(encode_tensors(tensors, metadata=metadata))
    return run


def test_what_was_merged_in_training_is_in_the_model(merging_run: Path, tmp_path: Path) -> None:
    source = read_source(merging_run)
    base, whole = base_model(source.artifact_dir, source.manifest), merged_model(source)
    for target in source.manifest.targets:
        a, b = source.adapter[names.lora_a(target.module)], source.adapter[names.lora_b(target.module)]
        expected = b @ a
        if target.module in source.merged:
            more_a, more_b = source.merged[target.module]
            expected = expected + more_b @ more_a
        difference = whole.get_parameter(f"{target.module}.weight") - base.get_parameter(f"{target.module}.weight")
        np.testing.assert_allclose(difference.detach().numpy(), SCALING * expected, atol=1e-5)

    plan = read_plan(merging_run, source.manifest, 0.25)
    compact_run(merging_run, 0.25, tmp_path / "compact")
    ids, mask = random_batch(source.manifest)
    got = CompactModel.open(tmp_path / "compact", num_threads=1).logits(ids, mask)
    expected = torch_logits(reference(source, plan), ids, mask)
    assert np.abs((got if got.ndim == 2 else got[mask == 1]) - expected).max() <= 1e-4


def test_merged_factors_of_another_model_are_refused(merging_run: Path, tmp_path: Path) -> None:
    path = merging_run / "adapters" / "round-0011.safetensors"
    tensors = decode_tensors(path.read_bytes())
    key = next(key for key in tensors if key.endswith(names.merged_a("")))
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    path.write_bytes(encode_tensors({**tensors, key: tensors[key][:, 1:]}, metadata=metadata))

    with pytest.raises(CompactInputError, match="merged factors"):
        compact_run(merging_run, 0.25, tmp_path / "compact")


@pytest.mark.parametrize("rounds", [(0,), (0, 1), (0, 1, 2)])
def test_untrained_adapter_is_refused_unless_it_is_asked_for(
    llama_run: Path, tmp_path: Path, rounds: tuple[int, ...]
) -> None:
    shutil.copytree(llama_run, run := tmp_path / "run")
    first = (run / "adapters" / "round-0000.safetensors").read_bytes()
    for path in (run / "adapters").iterdir():
        path.unlink()
    for number in rounds:
        (run / "adapters" / f"round-{number:04d}.safetensors").write_bytes(first)
    with pytest.raises(CompactInputError, match=r"round-000\d.safetensors is still that of before training: .*--round"):
        read_source(run)
    assert read_source(run, round_number=0).round_number == 0


def test_peft_format_loads_and_gives_the_merged_logits(run_dir: Path, tmp_path: Path) -> None:
    source = read_source(run_dir)

    write_peft(tmp_path / "peft", source.manifest, source.adapter, source.rank, source.lora_scaling)
    model = peft.PeftModel.from_pretrained(base_model(source.artifact_dir, source.manifest), tmp_path / "peft").eval()

    ids, mask = random_batch(source.manifest)
    np.testing.assert_allclose(torch_logits(model, ids, mask), torch_logits(merged_model(source), ids, mask), atol=1e-4)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_same_greedy_tokens_in_pytorch_optimum_and_on_the_device(
    long_llama_run: Path, sparsity: float, tmp_path: Path
) -> None:
    """None of the three may stop at the end-of-text token, so that all 64 are compared."""
    source = read_source(long_llama_run)
    model = reference(source, read_plan(long_llama_run, source.manifest, sparsity))
    compact_run(long_llama_run, sparsity, tmp_path / "compact")
    optimum = ORTModelForCausalLM.from_pretrained(tmp_path / "compact")
    device = CompactModel.open(tmp_path / "compact", num_threads=1)
    model.generation_config.eos_token_id = optimum.generation_config.eos_token_id = None
    device.info = structs.replace(device.info, text=structs.replace(device.info.text, eos_token_id=None))
    prompt = [2, 7, 9, 4, 20]
    inputs = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, 5, dtype=torch.int64)}

    with_torch = model.generate(**inputs, max_new_tokens=64, do_sample=False)[0].tolist()
    with_optimum = optimum.generate(**inputs, max_new_tokens=64, do_sample=False, use_cache=True)[0].tolist()
    on_device = [*prompt, *device.generate_ids(prompt, max_new_tokens=64)]

    assert len(with_torch) == 69
    assert on_device == with_torch
    assert with_optimum == with_torch


@pytest.mark.parametrize(("model_type", "tied"), [("mistral", True), ("qwen2", False)])
def test_relatives_of_llama_generate_in_optimum_and_on_the_device(
    tiny_llama_model: Path, tmp_path: Path, model_type: str, *, tied: bool
) -> None:
    shutil.copytree(tiny_llama_model, tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    for name in ("model_type", "architectures", "head_dim"):
        settings.pop(name)
    settings["tie_word_embeddings"] = tied
    settings["eos_token_id"] = None  # random weights may well begin with it
    config = transformers.AutoConfig.for_model(model_type, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    export_model(tmp_path / "model", "causal-lm", tmp_path / "artifact")
    run_dir = write_run(tmp_path / "run", tmp_path / "artifact")

    compact_run(run_dir, 0.25, tmp_path / "compact")

    device = CompactModel.open(tmp_path / "compact", num_threads=1)
    answer = [7, 8, *device.generate_ids([7, 8], max_new_tokens=12)]
    optimum = ORTModelForCausalLM.from_pretrained(tmp_path / "compact")
    inputs = {"input_ids": torch.tensor([[7, 8]]), "attention_mask": torch.ones(1, 2, dtype=torch.int64)}
    assert optimum.generate(**inputs, max_new_tokens=12, do_sample=False)[0].tolist() == answer
    assert len(answer) == 14


SHAPES: dict[str, dict[str, Any]] = {
    "head width that does not divide": {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 12},
    "head wider than the model": {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 40},
    "one key/value head, odd width": {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 14},
    "qwen2, odd width": {"model_type": "qwen2", "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 10},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_heads_of_any_width_give_the_same_logits_in_pytorch_optimum_and_on_the_device(
    shape: str, tmp_path: Path
) -> None:
    """Whole and cut down as far as can be: one key/value head a layer."""
    export_model(save_llama(tmp_path / "model", **SHAPES[shape]), "causal-lm", tmp_path / "artifact")
    source = read_source(write_run(tmp_path / "run", tmp_path / "artifact"))
    for sparsity in (0.0, 0.9):
        plan = read_plan(tmp_path / "run", source.manifest, sparsity)
        out = tmp_path / f"compact-{sparsity}"
        compact_source(source, plan, sparsity, out)

        ids, mask = torch.arange(4, 20)[None], torch.ones(1, 16, dtype=torch.int64)
        with torch.inference_mode():
            expected = reference(source, plan)(input_ids=ids, attention_mask=mask).logits.numpy()
            optimum = ORTModelForCausalLM.from_pretrained(out)
            got = optimum(input_ids=ids, attention_mask=mask).logits.numpy()
        device = CompactModel.open(out, num_threads=1)
        np.testing.assert_allclose(got, expected, atol=1e-4)
        np.testing.assert_allclose(device.logits(ids.numpy(), mask.numpy()), expected, atol=1e-4)
        assert transformers.AutoConfig.from_pretrained(out).head_dim == SHAPES[shape]["head_dim"]


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_optimum_loads_a_classifier(bert_run: Path, tmp_path: Path, quantize: Any) -> None:
    info = compact_run(bert_run, 0.25, tmp_path / "compact", quantize=quantize)

    model = ORTModelForSequenceClassification.from_pretrained(tmp_path / "compact")
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "compact")
    batch = tokenizer(["one", "another one"], padding=True, return_tensors="pt")
    logits = model(**batch).logits.numpy()

    device = CompactModel.open(tmp_path / "compact", num_threads=1)
    expected = device.logits(batch["input_ids"].numpy(), batch["attention_mask"].numpy())
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert tuple(model.config.id2label.values()) == info.labels


def test_int8_weighs_less_and_is_close(run_dir: Path, tmp_path: Path) -> None:
    manifest = read_source(run_dir).manifest
    full = compact_run(run_dir, 0.25, tmp_path / "full")
    small = compact_run(run_dir, 0.25, tmp_path / "small", quantize="int8")

    assert (small.quantization, full.quantization) == ("int8", None)
    weights = {name: onnx.load(tmp_path / name / "model.onnx").graph.initializer for name in ("full", "small")}
    num_bytes = {name: sum(numpy_helper.to_array(entry).nbytes for entry in weights[name]) for name in weights}
    assert num_bytes["small"] < 0.5 * num_bytes["full"]
    ids, mask = random_batch(manifest)
    expected = CompactModel.open(tmp_path / "full", num_threads=1).logits(ids, mask)
    got = CompactModel.open(tmp_path / "small", num_threads=1).logits(ids, mask)
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_text_s_answer_is_its_own(bert_run: Path, tmp_path: Path, quantize: Any) -> None:
    """Whatever is classified beside it, however much it is padded; on the device and in Optimum."""
    compact_run(bert_run, 0.25, tmp_path / "compact", quantize=quantize)
    device = CompactModel.open(tmp_path / "compact", num_threads=1)
    optimum = ORTModelForSequenceClassification.from_pretrained(tmp_path / "compact")
    rng = np.random.default_rng(4)
    lengths = [3, 5, 20, 1, 8, 2]
    ids, mask = np.zeros((6, 20), np.int64), np.zeros((6, 20), np.int64)
    for row, length in enumerate(lengths):
        ids[row, :length], mask[row, :length] = rng.integers(1, device.info.text.vocab_size, length), 1

    together = device.logits(ids, mask)
    in_optimum = optimum(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()

    alone = [
        device.logits(ids[row : row + 1, :length], mask[row : row + 1, :length])[0]
        for row, length in enumerate(lengths)
    ]
    np.testing.assert_allclose(together, alone, atol=2e-5)
    np.testing.assert_allclose(in_optimum, alone, atol=2e-5)


def test_int8_tokens_do_not_see_what_follows_them(long_llama_run: Path, tmp_path: Path) -> None:
    """Read at once, in steps, with a longer text behind them, or beside another text: the same logits."""
    compact_run(long_llama_run, 0.25, tmp_path / "compact", quantize="int8")
    device = CompactModel.open(tmp_path / "compact", num_threads=1)
    ids = np.random.default_rng(6).integers(0, device.info.text.vocab_size, (2, 40), dtype=np.int64)

    whole = device.logits(ids, np.ones_like(ids))

    np.testing.assert_allclose(device.logits(ids[:1, :9], np.ones((1, 9), np.int64)), whole[:1, :9], atol=1e-4)
    np.testing.assert_allclose(device.logits_in_steps(ids[1:], num_first=7), whole[1:], atol=1e-4)


def test_a_quantised_graph_of_another_form_is_refused() -> None:
    nodes = [
        onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        onnx.helper.make_node("Sqrt", ["s"], ["y"]),
    ]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], []))
    with pytest.raises(CompactParityError, match="Sqrt 'y' where a product of scales belongs"):
        quantize_by_row(model)


def test_tied_embeddings_are_stored_once(llama_run: Path, tmp_path: Path) -> None:
    compact_run(llama_run, 0.0, tmp_path / "compact")

    graph = onnx.load(tmp_path / "compact" / "model.onnx").graph
    producers = {name: node for node in graph.node for name in node.output}
    matrix = producers[producers["logits"].input[1]]
    assert (matrix.op_type, list(matrix.input)) == ("Transpose", ["model.embed_tokens.weight"])


def test_an_encoder_may_keep_another_number_in_each_layer(bert_run: Path, tmp_path: Path) -> None:
    source = read_source(bert_run)
    plan = Plan.from_kept(source.manifest, {(0, "heads"): [1], (1, "channels"): [0, 3, 4]})

    compact_source(source, plan, 0.3, tmp_path / "compact")

    ids, mask = random_batch(source.manifest)
    got = CompactModel.open(tmp_path / "compact", num_threads=1).logits(ids, mask)
    assert np.abs(got - torch_logits(reference(source, plan), ids, mask)).max() <= 1e-4


def test_a_decoder_with_caches_of_different_widths_is_refused(llama_run: Path, tmp_path: Path) -> None:
    source = read_source(llama_run)
    plan = Plan.from_kept(source.manifest, {(0, "heads"): [1]})

    with pytest.raises(ModelUnsupportedError, match="key/value heads, but a deployed decoder's cache has one"):
        compact_source(source, plan, 0.3, tmp_path / "compact")

    assert list(tmp_path.iterdir()) == []
