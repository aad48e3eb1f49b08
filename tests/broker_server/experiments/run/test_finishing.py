"""Measures of the compact model at the end of a run."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from broker_server.experiments.run.finishing import measure_compact
from broker_server.experiments.run.layout import RunDirectory
from broker_server.experiments.run.resolve import resolve
from broker_server.serving.evaluation.held_out import shared_sample
from broker_server.serving.report.schema import Compact
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.evaluator import Evaluator
from edge_runtime.formats.plan import Plan
from edge_runtime.inference.description import DESCRIPTION_FILE
from tests.edge_runtime.inference.conftest import RANK, SCALING, make_compact, random_adapter

ROWS = [
    {"text": f"the {noun} {verb}", "label": label}
    for noun, label in (("cat", "red"), ("dog", "green"), ("sun", "blue"))
    for verb in ("runs", "sleeps", "sings", "sees the green moon")
]


@pytest.fixture
def run(tiny_bert_artifact: Path, tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.data.mkdir(parents=True)
    directory.artifacts.mkdir()
    (directory.artifacts / "digest").symlink_to(tiny_bert_artifact)
    directory.test_file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    make_compact(tiny_bert_artifact, directory.compact)
    return directory


def measured(directory: RunDirectory) -> Compact:
    options = {"task": "text-classification", "model": "m", "data": "d", "max_length": 16, "eval_examples": 5}
    measure_compact(resolve(options), directory, 2)
    return msgspec.json.decode((directory.root / "compact.json").read_bytes(), type=Compact)


def test_a_whole_model_is_measured_on_the_sample_of_the_rounds_and_others_on_all(run: RunDirectory) -> None:
    artifact = Artifact.open(next(run.artifacts.iterdir()))
    examples = load_examples(run.test_file, artifact, 16)
    sample, _ = shared_sample(examples, 5, 0)
    evaluator = Evaluator.load(artifact, Plan.full(artifact.manifest), num_threads=1)
    on_sample, on_all = (
        evaluator.evaluate(random_adapter(artifact), RANK, SCALING, part, 4) for part in (sample, examples)
    )
    found = measured(run)
    assert (found.num_targets, found.accuracy) == (5, on_sample.accuracy)
    assert found.loss == pytest.approx(on_sample.loss, abs=1e-5)

    description = run.compact / DESCRIPTION_FILE
    fields = json.loads(description.read_text())
    description.write_text(json.dumps({**fields, "quantization": "int8"}))
    found = measured(run)
    assert found.num_targets == len(ROWS)
    assert found.loss == pytest.approx(on_all.loss, abs=1e-5)
