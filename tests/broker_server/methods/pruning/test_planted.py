"""Planted dead units over rounds: magnitude would keep them all, scores of the devices put them last."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from broker_server.methods.pruning.importance import magnitude_importance
from broker_server.methods.pruning.scores import DeviceScores, combine
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.frozen import FrozenWeights
from edge_runtime.engine.trainer import Trainer, TrainingRun
from edge_runtime.formats import adapter as adapters
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.ranking import plan_at
from edge_runtime.wire.work import HyperParameters
from tests.edge_runtime.engine.planted import draw_units, plant, removed

RANK, SMOOTHING = 4, 0.5
GIVEN = HyperParameters(
    learning_rate=1e-4,
    weight_decay=0.0,
    lora_scaling=2.0,
    max_grad_norm=1.0,
    num_warmup_steps=0,
    num_local_steps=2,
    batch_size=4,
    num_accumulation_steps=1,
    max_length=16,
    seed=0,
)


def draw_batch(manifest: Manifest, rng: np.random.Generator) -> Batch:
    ids = rng.integers(4, manifest.text.vocab_size, (4, 9))
    labels = ids if manifest.task == "causal-lm" else rng.integers(0, len(manifest.labels), 4)
    return Batch(input_ids=ids, attention_mask=np.ones_like(ids), labels=labels)


@pytest.mark.parametrize("name", ["tiny_bert_artifact", "tiny_llama_artifact"])
def test_units_that_only_look_important_go_first_after_some_rounds(request: pytest.FixtureRequest, name: str) -> None:
    """Two devices, one of which holds the model pruned by the scores so far; the Llama has grouped-query attention."""
    directory: Path = request.getfixturevalue(name)
    artifact = Artifact.open(directory)
    manifest, rng = artifact.manifest, np.random.default_rng(11)
    dead = draw_units(manifest, rng)
    weights = plant(artifact, dead, "loud")
    importance = magnitude_importance(manifest, lambda spec: weights[spec.name])
    gone = removed(manifest, plan_at(manifest, importance, 0.25))
    assert not any(set(units) & set(gone[key]) for key, units in dead.items())

    trainer = Trainer(artifact, num_threads=1)
    start = adapters.initial(manifest, artifact.initial(), RANK, rng)
    for _ in range(8):
        told = []
        for device_id, ratio in (("whole", 0.0), ("pruned", 0.25)):
            plan = plan_at(manifest, importance, ratio)
            run = TrainingRun(trainer, Plan.full(manifest), RANK, start, GIVEN, FrozenWeights(weights))
            run.prune(plan)
            for _ in range(2):
                run.step([draw_batch(manifest, rng)])
                run.score_units()
            told.append(DeviceScores(device_id=device_id, plan=plan, num_examples=10, scores=run.importance()))
        importance = combine(importance, told, SMOOTHING)
    assert removed(manifest, plan_at(manifest, importance, 0.25)) == dead
