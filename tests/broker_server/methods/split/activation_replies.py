"""Activations of examples, as a device sends them: of real artifacts, by the graphs that devices run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from broker_server.methods.aggregation import Aggregated
from broker_server.methods.method import MethodContext, Reply
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.pruning.plans import Plans
from broker_server.methods.pruning.scores import Scores
from broker_server.methods.split.method import Split
from broker_server.methods.tables import MethodTables, SplitConfig
from broker_server.methods.training import TrainingConfig
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Dataset
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.engine.staged import StagedGraphs
from edge_runtime.formats.activations import Coder, Form
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.messages import AssignmentKey
from edge_runtime.wire.work import Arm, SplitWork
from tests.broker_server.methods import replies

RANK, MAX_LENGTH = 2, 9
NO_SCORES: Scores = {}


def method(artifact: Artifact, cut: int = 1, dtype: str = "float32", noise: float = 0.0, **training: Any) -> Split:
    pruning = PruningConfig()
    settings: dict[str, Any] = {"num_local_steps": 5, "batch_size": 4, "learning_rate": 5e-3, **training}
    context = MethodContext(
        manifest=artifact.manifest,
        plans=Plans(artifact.manifest, NO_SCORES, pruning.policy),
        training=TrainingConfig(num_rounds=3, max_length=MAX_LENGTH, **settings),
        learning_rate_at=lambda number: settings["learning_rate"] / number,
        is_deploy=lambda _number: False,
        pruning=pruning,
        aggregation="fedit",
        max_rank=RANK,
        seed=7,
        tables=MethodTables(split_tuning=SplitConfig(cut=cut, freeze_lower=True, dtype=dtype, noise=noise)),  # type: ignore[arg-type]
        artifact=artifact,
    )
    return Split(context)


def work_of(made: Split) -> SplitWork:
    key = AssignmentKey(run_id="run", round_number=1, device_id="a", attempt=1)
    arm = Arm(pruning_ratio=0.0, rank=RANK)
    work = made.ask(key, arm, at_once=False, model=Aggregated(adapter={})).work
    assert isinstance(work, SplitWork)
    return work


def examples(artifact: Artifact, seed: int, count: int = 10) -> Dataset:
    """Random ones of different lengths; a class that the first token tells."""
    rng, manifest = np.random.default_rng(seed), artifact.manifest
    lengths = rng.integers(2, MAX_LENGTH + 1, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = rng.integers(4, manifest.text.vocab_size, offsets[-1]).astype(np.int32)
    labels = tokens[offsets[:-1]].astype(np.int64) % len(manifest.labels) if manifest.labels else None
    return Dataset(tokens=tokens, offsets=offsets, labels=labels, pad_token_id=manifest.text.pad_token_id)


def blob_of(artifact: Artifact, work: SplitWork, dataset: Dataset) -> bytes:
    manifest, plan, graphs = artifact.manifest, Plan.full(artifact.manifest), StagedGraphs(artifact, num_threads=1)
    layout = AdapterLayout.of(manifest, plan, 1)
    model = graphs.model(slice_weights(artifact, plan, keep_stored=graphs.keeps_stored), layout, 1.0)
    form = Form.of(manifest, artifact.digest, work.cut, work.dtype, work.max_length)
    labels = dataset.tokens if dataset.labels is None else dataset.labels.astype(np.int32)
    coder, none = Coder(form, dataset.lengths, labels), np.zeros(layout.num_elements, np.float32)
    for example in range(len(dataset)):
        hidden = model.lower(dataset.batch(np.array([example])), none, work.cut).hidden
        coder.put(example, hidden[0])
    return coder.encode()


def reply(folder: Path, made: Split, artifact: Artifact, device_id: str, count: int = 10) -> Reply:
    """An accepted one of a device, whose examples follow from its name."""
    dataset = examples(artifact, sum(device_id.encode()), count)
    work = work_of(made)
    return replies.reply(folder, made, work, device_id, blob_of(artifact, work, dataset), count)


def start(made: Split, artifact: Artifact) -> Aggregated:
    return made.initial(artifact.initial(), np.random.default_rng(1))
