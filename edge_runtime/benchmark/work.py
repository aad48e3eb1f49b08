"""The work of a benchmark: plan, first adapter and batches, all from one seed, so that all engines do the same steps.

Shape legend: ``B`` examples of a batch, ``L`` length in tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_runtime.benchmark.protocol import BenchmarkRequest
from edge_runtime.formats import adapter, ranking
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.plan import Plan

Int64 = npt.NDArray[np.int64]
Array = npt.NDArray[np.float32]

NUM_BATCHES: Final = 4
"""Number of batches, used in turn; with so few an engine that works learns them within some steps."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """A batch without padding."""

    input_ids: Int64
    """int64 ``[B, L]``."""
    labels: Int64
    """int64 ``[B]`` (text-classification), or the tokens themselves ``[B, L]`` (causal-lm)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The input of all contenders."""

    plan: Plan
    adapter: dict[str, Array]
    """Tensors under the plan, by name; B factors are zero."""
    batches: tuple[Examples, ...]


def prepare_work(manifest: Manifest, dense: Mapping[str, Array], request: BenchmarkRequest) -> Work:
    """Plan, adapter and batches of a request, all derived from its seed.

    Args:
        manifest: the artifact's manifest.
        dense: initial values of the dense tensors.
        request: the request.

    Raises:
        PlanError: the pruning ratio is out of range.
        TensorError: the rank is out of range, or dense tensors are missing.
    """
    hyper = request.hyper_parameters
    rng = np.random.default_rng(hyper.seed)
    plan = random_plan(manifest, request.arm.pruning_ratio, rng)
    full = adapter.initial(manifest, dense, request.arm.rank, rng)
    return Work(
        plan=plan,
        adapter=adapter.restrict(manifest, full, plan, request.arm.rank),
        batches=tuple(random_examples(manifest, hyper.batch_size, hyper.max_length, rng) for _ in range(NUM_BATCHES)),
    )


def random_plan(manifest: Manifest, pruning_ratio: float, rng: np.random.Generator) -> Plan:
    """A plan of a ratio from random importance; its shapes are those of every plan of this ratio.

    Raises:
        PlanError: the ratio is out of range.
    """
    importance = {(g.layer, g.group): rng.random(g.num_units).astype(np.float32) for g in manifest.groups}
    return ranking.plan_at(manifest, importance, pruning_ratio)


def random_examples(manifest: Manifest, batch_size: int, length: int, rng: np.random.Generator) -> Examples:
    """Random tokens without padding, with random classes if the model has classes."""
    ids = rng.integers(0, manifest.text.vocab_size, (batch_size, length))
    labels = rng.integers(0, len(manifest.labels), batch_size) if manifest.labels else ids
    return Examples(input_ids=ids, labels=labels)
