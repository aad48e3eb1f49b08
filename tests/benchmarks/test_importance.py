"""The study of importance against the true loss change, on a tiny model: ranks, what is removed, what it reports."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.importance import Case, Removal, agreement, blocks, correlate, markdown, spearman, study
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Dataset

CASE = Case(
    name="tiny",
    model=Path("none"),
    task="text-classification",
    data=None,
    test=None,
    label=None,
    learning_rate=1e-2,
    num_steps=10,
    batch_size=4,
    max_length=16,
    num_evaluation=6,
    num_blocks=4,
)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3], [10, 20, 300], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 2, 3, 4], [1, 3, 2, 4], 0.8),
        ([1, 2, 2, 4], [1, 2, 3, 4], 0.9486833),  # mean ranks 1, 2.5, 2.5, 4
    ],
    ids=str,
)
def test_rank_correlation(first: list[float], second: list[float], expected: float) -> None:
    assert spearman(first, second) == pytest.approx(expected)


def test_a_constant_has_no_correlation() -> None:
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 3 values"):
        spearman([1, 2], [1, 2, 3])


def test_a_score_that_knows_the_loss_is_perfect() -> None:
    rises = {(layer, unit): float(10 * layer + unit) for layer in range(2) for unit in range(4)}
    removed = [
        Removal(layer=layer, group="heads", units=(unit,), loss_rises=(rise, rise))
        for (layer, unit), rise in rises.items()
    ]
    scores = {(layer, "heads"): np.array([rises[layer, u] for u in range(4)], np.float32) for layer in range(2)}
    for found in (correlate(removed, scores), agreement(removed)):
        assert list(found.values()) == pytest.approx([1.0] * 4)
    swapped = {(0, "heads"): scores[1, "heads"], (1, "heads"): scores[0, "heads"]}
    assert correlate(removed, swapped)["within_layers"] == pytest.approx(1.0)
    assert correlate(removed, swapped)["all_layers"] < 0


def test_size_is_compared_without_sign() -> None:
    rises = [-4.0, 3.0, -2.0, 1.0]
    removed = [
        Removal(layer=0, group="heads", units=(unit,), loss_rises=(rise, -rise)) for unit, rise in enumerate(rises)
    ]
    scores = {(0, "heads"): np.array([4, 3, 2, 1], np.float32)}
    halves = [dataclasses.replace(r, loss_rises=(r.loss_rises[0], r.loss_rises[0])) for r in removed]
    assert correlate(halves, scores)["all_layers_size"] == pytest.approx(1.0)
    assert correlate(halves, scores)["all_layers"] < 0.5
    assert agreement(removed)["all_layers"] == pytest.approx(-1.0)
    assert agreement(removed)["all_layers_size"] == pytest.approx(1.0)


def test_every_unit_is_removed_once(tiny_bert_artifact: Path) -> None:
    manifest = Artifact.open(tiny_bert_artifact).manifest
    removed: dict[tuple[int, str], list[int]] = {}
    for key, units in blocks(manifest, 5):
        removed.setdefault(key, []).extend(units)
    assert removed == {(g.layer, g.group): list(range(g.num_units)) for g in manifest.groups}


def test_study_of_a_tiny_model(tiny_bert_artifact: Path) -> None:
    artifact, rng = Artifact.open(tiny_bert_artifact), np.random.default_rng(0)
    lengths = rng.integers(3, 12, 20)
    dataset = Dataset(
        tokens=rng.integers(4, artifact.manifest.text.vocab_size, lengths.sum()).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=rng.integers(0, 3, 20),
        pad_token_id=0,
    )
    result = study(CASE, artifact, dataset, dataset, 0, 1)
    assert {group: table["num_removed"] for group, table in result["table"].items()} == {"heads": 8, "channels": 8}
    for table in result["table"].values():
        for score in ("lora", "magnitude"):
            assert all(-1 <= value <= 1 for value in table[score].values())
        assert abs(table["random"]["all_layers"]) < 0.2
    assert all(np.isfinite(removal["loss_rises"]).all() for removal in result["removals"])
    again = study(dataclasses.replace(CASE), artifact, dataset, dataset, 0, 1)
    assert again["table"] == result["table"]
    text = markdown({"machine": "x", "seeds": [0, 0], "cases": {"tiny": [result, again]}})
    assert "| 8 heads | lora |" in text
