"""The server's evaluation: the devices' own code, on one sample that all rounds share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from broker_server.evaluation import HeldOut
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.errors import DataEmptyError, DataInvalidError, UnknownLabelError
from edge_runtime.engine.evaluator import Evaluator
from edge_runtime.wire.adapter import initial
from edge_runtime.wire.plan import Plan

pytest.importorskip("torch", reason="needs an exported model")

NOUNS = ["cat", "dog", "sun", "moon", "sea", "wind"]


@pytest.fixture
def test_file(tmp_path: Path) -> Path:
    path = tmp_path / "test.jsonl"
    rows = [{"text": f"the {noun} {verb}", "label": "red"} for noun in NOUNS for verb in ("runs", "sleeps", "sings")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def held_out(artifact: Artifact, path: Path, *, num_examples: int | None = None, seed: int = 0) -> HeldOut:
    return HeldOut(artifact, path, max_length=16, num_examples=num_examples, batch_size=4, seed=seed)


def test_it_is_what_a_device_would_measure(tiny_bert_artifact: Path, test_file: Path) -> None:
    artifact = Artifact.open(tiny_bert_artifact)
    adapter = initial(artifact.manifest, artifact.initial(), 4, np.random.default_rng(0))
    record = held_out(artifact, test_file).evaluate(adapter, 4, 2.0, use_all=True, num_threads=1)
    dataset = load_examples(test_file, artifact, 16)
    expected = Evaluator(artifact, Plan.full(artifact.manifest), num_threads=1).evaluate(adapter, 4, 2.0, dataset, 32)
    assert (record.num_targets, record.is_complete) == (18, True)
    assert (record.loss, record.accuracy) == pytest.approx((expected.loss, expected.accuracy))


def test_sample_is_the_same_in_every_round_and_smaller(tiny_bert_artifact: Path, test_file: Path) -> None:
    artifact = Artifact.open(tiny_bert_artifact)
    adapter = initial(artifact.manifest, artifact.initial(), 4, np.random.default_rng(0))
    examples = held_out(artifact, test_file, num_examples=7)
    first = examples.evaluate(adapter, 4, 2.0, use_all=False, num_threads=1)
    second = examples.evaluate(adapter, 4, 2.0, use_all=False, num_threads=1)
    assert (first.num_targets, first.is_complete) == (7, False)
    assert first.loss == second.loss
    again = held_out(artifact, test_file, num_examples=7).evaluate(adapter, 4, 2.0, use_all=False, num_threads=1)
    assert again.loss == pytest.approx(first.loss)


def test_sample_that_is_everything_is_complete(tiny_bert_artifact: Path, test_file: Path) -> None:
    artifact = Artifact.open(tiny_bert_artifact)
    adapter = initial(artifact.manifest, artifact.initial(), 4, np.random.default_rng(0))
    record = held_out(artifact, test_file, num_examples=1000).evaluate(adapter, 4, 2.0, use_all=False, num_threads=1)
    assert record.is_complete


def test_causal_lm_counts_predicted_tokens(tiny_llama_artifact: Path, test_file: Path) -> None:
    artifact = Artifact.open(tiny_llama_artifact)
    adapter = initial(artifact.manifest, artifact.initial(), 4, np.random.default_rng(0))
    record = held_out(artifact, test_file).evaluate(adapter, 4, 2.0, use_all=True, num_threads=1)
    assert record.num_targets > 18
    assert np.isfinite(record.loss)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", DataEmptyError),
        ('{"text": "the cat"}\n', DataInvalidError),
        ('{"text": "the cat", "label": "violet"}\n', UnknownLabelError),
    ],
    ids=["empty", "no label", "unknown label"],
)
def test_file_that_cannot_be_used_is_refused_at_the_start(
    tiny_bert_artifact: Path, tmp_path: Path, content: str, error: type[Exception]
) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text(content)
    with pytest.raises(error):
        held_out(Artifact.open(tiny_bert_artifact), path)
