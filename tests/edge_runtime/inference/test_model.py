"""Compact models on the device: classes, text, quality, latency, and one clear line where something is wrong."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.errors import DataInvalidError
from edge_runtime.engine.evaluator import Evaluator
from edge_runtime.errors import ExitCode, FedSpineError
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.plan import Plan
from edge_runtime.inference import CompactModel
from edge_runtime.inference.decoder import PREFILL_TOKENS
from edge_runtime.inference.errors import (
    CompactModelError,
    CompactVersionError,
    PromptError,
    SamplingError,
    WrongTaskError,
)
from edge_runtime.inference.sampling import Sampling

RANK = 2
SCALING = 2.0


@pytest.fixture
def bert(compact_bert: Path) -> CompactModel:
    return CompactModel.open(compact_bert, num_threads=1)


@pytest.fixture
def llama(compact_llama: Path) -> CompactModel:
    return CompactModel.open(compact_llama, num_threads=1)


def test_each_text_gets_the_class_it_gets_alone(bert: CompactModel) -> None:
    texts = ["sun", "the old dog sleeps", "moon " * 30, "", "sea or wind"] * 5

    together = bert.classify(texts)

    alone = [bert.classify([text])[0] for text in texts]
    assert [p.label for p in together] == [p.label for p in alone]
    assert {p.label for p in together} <= set(bert.info.labels)
    np.testing.assert_allclose([p.score for p in together], [p.score for p in alone], atol=1e-5)


def test_folder_and_examples_may_be_named_by_text(compact_bert: Path, bert: CompactModel, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"text": "sun", "label": bert.info.labels[0]}) + "\n")

    named = CompactModel.open(str(compact_bert), num_threads=1)

    assert named.directory == compact_bert
    assert named.evaluate(str(data)) == bert.evaluate(data)


def test_no_text_no_prediction(bert: CompactModel) -> None:
    assert bert.classify([]) == []


def test_a_text_beyond_the_models_positions_is_cut(bert: CompactModel) -> None:
    (prediction,) = bert.classify(["word " * 5000])

    assert 0.0 < prediction.score <= 1.0


def test_pieces_are_the_text_of_the_tokens(llama: CompactModel) -> None:
    prompt_ids = llama._text.encode_prompt("the cat")
    ids = list(llama.generate_ids(prompt_ids, max_new_tokens=20))

    text = "".join(llama.generate("the cat", max_new_tokens=20))

    assert llama._text.decode(prompt_ids) + text == llama._text.decode(prompt_ids + ids)


def test_the_same_seed_draws_the_same_text(llama: CompactModel) -> None:
    def draw(seed: int) -> str:
        rng = np.random.default_rng(seed)
        return "".join(llama.generate("the cat", max_new_tokens=30, temperature=1.5, rng=rng))

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


def test_top_1_is_greedy(llama: CompactModel) -> None:
    drawn = llama.generate("the cat", max_new_tokens=12, temperature=3.0, top_k=1, rng=np.random.default_rng(0))

    assert "".join(drawn) == "".join(llama.generate("the cat", max_new_tokens=12))


def test_generation_ends_at_the_end_of_text_token(llama: CompactModel) -> None:
    free = list(llama.generate_ids([5, 6], max_new_tokens=10))
    llama.info = structs.replace(llama.info, text=structs.replace(llama.info.text, eos_token_id=free[3]))

    assert list(llama.generate_ids([5, 6], max_new_tokens=10)) == free[: free.index(free[3])]


def test_generation_ends_where_the_positions_end(llama: CompactModel) -> None:
    llama.info = structs.replace(llama.info, text=structs.replace(llama.info.text, eos_token_id=None))
    prompt = [5] * (llama.info.max_length - 3)

    assert len(list(llama.generate_ids(prompt, max_new_tokens=10))) == 3


def test_a_prompt_read_in_pieces_gives_the_logits_of_the_whole(llama: CompactModel) -> None:
    ids = np.random.default_rng(0).integers(0, llama.info.text.vocab_size, (2, 30), dtype=np.int64)

    in_steps = llama.logits_in_steps(ids, num_first=7)

    np.testing.assert_allclose(in_steps, llama.logits(ids, np.ones_like(ids)), atol=1e-4)


def test_a_prompt_longer_than_one_piece_continues_as_the_whole_would(
    llama: CompactModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = np.random.default_rng(1).integers(3, llama.info.text.vocab_size, 40).tolist()
    whole = list(llama.generate_ids(prompt, max_new_tokens=8))
    assert len(prompt) < PREFILL_TOKENS

    monkeypatch.setattr("edge_runtime.inference.decoder.PREFILL_TOKENS", 16)

    assert list(llama.generate_ids(prompt, max_new_tokens=8)) == whole


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_quality_is_what_the_evaluation_graph_measures(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    artifact = Artifact.open(request.getfixturevalue(f"tiny_{family}_artifact"))
    model = CompactModel.open(request.getfixturevalue(f"compact_{family}"), num_threads=1)
    data = tmp_path / "test.jsonl"
    labels = itertools.cycle(artifact.manifest.labels or ("none",))
    lines = [json.dumps({"text": "the cat sings " * (i % 7 + 1), "label": next(labels)}) for i in range(20)]
    data.write_text("\n".join(lines))
    rng = np.random.default_rng(3)
    plan = Plan.full(artifact.manifest)
    shapes = AdapterLayout.of(artifact.manifest, plan, RANK).shapes
    adapter = {name: rng.normal(0.0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}

    result = model.evaluate(data, max_length=24, batch_size=4)

    evaluator = Evaluator.load(artifact, plan, num_threads=1)
    expected = evaluator.evaluate(adapter, RANK, SCALING, load_examples(data, artifact, 24), 4)
    assert (result.num_targets, result.num_correct) == (expected.num_targets, expected.num_correct)
    assert math.isclose(result.loss, expected.loss, rel_tol=1e-5)


@pytest.mark.parametrize(("family", "unit"), [("bert", "example"), ("llama", "token")])
def test_latency_is_the_median_of_the_repeats(family: str, unit: str, request: pytest.FixtureRequest) -> None:
    model = CompactModel.open(request.getfixturevalue(f"compact_{family}"), num_threads=1)
    durations = iter([9.0, 9.0, 0.5, 0.25, 1.0])  # two of warm-up
    readings = itertools.chain.from_iterable((0.0, duration) for duration in durations)

    latency = model.latency(length=8, num_repeats=3, clock=lambda: next(readings))

    assert (latency.median_ms, latency.unit, latency.length) == (500.0, unit, 8)


@pytest.mark.parametrize(
    ("call", "error", "line"),
    [
        (lambda m: m.classify(["x"]), WrongTaskError, "fedspine-edge generate"),
        (lambda m: m.generate("\ud800"), PromptError, "half of a surrogate pair"),
        (lambda m: m.generate("long " * 999), PromptError, "change the prompt"),
        (lambda m: m.generate_ids([]), PromptError, "prompt of 0 tokens"),
        (lambda m: m.generate_ids([-1]), PromptError, "vocabulary"),
        (lambda m: m.generate("x", max_new_tokens=0), SamplingError, "1 or more"),
        (lambda m: m.generate("x", temperature=1.0), SamplingError, "no generator"),
        (lambda m: m.generate_ids([5], sampling=Sampling(temperature=1.0)), SamplingError, "no generator"),
    ],
)
def test_what_cannot_be_generated_is_refused_at_once(
    llama: CompactModel, call: Callable[[Any], object], error: type[FedSpineError], line: str
) -> None:
    with pytest.raises(error, match=line) as refusal:
        call(llama)

    assert refusal.value.exit_code is ExitCode.USAGE
    assert "\n" not in str(refusal.value)


def test_a_classifier_does_not_generate(bert: CompactModel) -> None:
    with pytest.raises(WrongTaskError, match="fedspine-edge infer"):
        bert.generate("x")


def _write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_bytes(data)


def _flip_a_weight(directory: Path) -> None:
    data = bytearray((directory / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (directory / "model.onnx").write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "nothing there": shutil.rmtree,
    "no description": lambda directory: (directory / "fedspine.json").unlink(),
    "description is not JSON": _write("fedspine.json", b"{"),
    "description is not UTF-8": _write("fedspine.json", b'{"schema_version": 1, "family": "\xff"}'),
    "description lacks a field": _write("fedspine.json", b'{"schema_version": 1}'),
    "no model": lambda directory: (directory / "model.onnx").unlink(),
    "another model": _write("model.onnx", b"not a graph"),
    "one bit flipped": _flip_a_weight,
    "another tokenizer": _write("tokenizer.json", b"{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_directory_is_refused_in_one_line(compact_bert: Path, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(compact_bert, copy)
    DAMAGE[damage](copy)

    with pytest.raises(CompactModelError) as refusal:
        CompactModel.open(copy)

    assert refusal.value.exit_code is ExitCode.ARTIFACT_CORRUPTED
    assert str(copy) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_another_version_is_refused(compact_bert: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(compact_bert, copy)
    (copy / "fedspine.json").write_text('{"schema_version": 99}')

    with pytest.raises(CompactVersionError, match="schema version 99, but this release reads 1") as refusal:
        CompactModel.open(copy)

    assert refusal.value.exit_code is ExitCode.ARTIFACT_VERSION


def test_data_is_checked_as_in_training(bert: CompactModel, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"label": "red"}\n')

    with pytest.raises(DataInvalidError, match=r"test\.jsonl: line 1 has no field 'text'"):
        bert.evaluate(tmp_path / "test.jsonl")
