"""The script that inverts activations finds tokens where there is no noise, and loses them under much noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import cut_inversion
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Batch


def rows(path: Path, seed: int, count: int) -> Path:
    """Examples of 8 of 20 tokens."""
    rng = np.random.default_rng(seed)
    lines = [{"input_ids": rng.integers(4, 24, 8).tolist(), "label": "red"} for _ in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_tokens_are_found_without_noise_and_not_under_much(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    artifact: Path = request.getfixturevalue(f"tiny_{family}_artifact")
    files = ["--public", str(rows(tmp_path / "p.jsonl", 1, 120)), "--test", str(rows(tmp_path / "t.jsonl", 2, 12))]
    sizes = ["--cut", "1", "--noise", "0.1,100", "--max-length", "10"]
    result = cut_inversion.attack(cut_inversion.parser().parse_args([str(artifact), *files, *sizes]))

    runs: dict[Any, Any] = {(run["dtype"], run["noise"]): run for run in result["runs"]}
    assert list(runs) == [("float32", 0.0), ("int8", 0.0), ("int8", 0.1), ("int8", 100.0)]
    assert result["tokens"] == 12 * 8
    for run in runs.values():
        assert (run["noise"] < 1) == (run["ridge"] > 0.8), run
        assert run["noise"] < 1 or run["nearest"] < 0.3
    assert abs(runs["int8", 0.0]["nearest"] - runs["float32", 0.0]["nearest"]) < 0.05


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_vocabulary_is_embedded_at_every_position(family: str, request: pytest.FixtureRequest) -> None:
    artifact = Artifact.open(request.getfixturevalue(f"tiny_{family}_artifact"))
    lower, size, seen = cut_inversion.Lower(artifact), artifact.manifest.text.vocab_size, set()
    for tokens, table in lower.vocabulary(5):
        seen |= set(tokens.tolist())
        for place in (0, 7, len(tokens) - 1):
            ids = np.full((1, 5), tokens[place])
            batch = Batch(input_ids=ids, attention_mask=np.ones_like(ids), labels=np.zeros(1, np.int64))
            expected = lower._model.lower(batch, lower._none, 0).hidden[0]
            np.testing.assert_allclose(table[:, place], expected, atol=1e-6)
    assert seen == set(range(size))


def test_ridge_finds_an_affine_map() -> None:
    rng = np.random.default_rng(0)
    inputs, matrix = rng.standard_normal((400, 6)).astype(np.float32), rng.standard_normal((6, 6)).astype(np.float32)
    found = cut_inversion.ridge(inputs, inputs @ matrix + 3)
    np.testing.assert_allclose(found(inputs), inputs @ matrix + 3, atol=1e-3)
