"""The method on the tiny model, and replies of devices as they lie on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from broker_server.methods.aggregation import Aggregated
from broker_server.methods.method import MethodContext, Reply
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.pruning.plans import Plans
from broker_server.methods.tables import MethodTables, ZeroOrderConfig
from broker_server.methods.training import TrainingConfig
from broker_server.methods.zero_order.method import ZeroOrder
from edge_runtime.formats.zero_order import encode_reply
from edge_runtime.wire.messages import AssignmentKey
from edge_runtime.wire.work import Arm, ProbeWork, Work, ZeroOrderWork
from tests.broker_server import tiny
from tests.broker_server.methods.replies import reply

RANK, STEPS, SEED = 2, 3, 11
MANIFEST = tiny.manifest(has_bias=True)
ARM = Arm(pruning_ratio=0.0, rank=RANK)


def method(**settings: Any) -> ZeroOrder:
    """Two outer and two inner perturbations, a cut in the middle, no probe, unless it is said otherwise."""
    pruning = PruningConfig()
    context = MethodContext(
        manifest=MANIFEST,
        plans=Plans(MANIFEST, tiny.importance(), pruning.policy),
        training=TrainingConfig(num_rounds=9, num_local_steps=STEPS, batch_size=2, max_length=8),
        learning_rate_at=lambda number: 0.01 * number,
        is_deploy=lambda _number: False,
        pruning=pruning,
        aggregation="fedit",
        max_rank=RANK,
        seed=SEED,
        tables=MethodTables(
            zero_order=ZeroOrderConfig(**{"num_outer": 2, "num_inner": 2, "head": "as-it-is", **settings})
        ),
    )
    return ZeroOrder(context)


def start(made: ZeroOrder) -> Aggregated:
    dense = {
        "classifier.weight": np.ones((2, tiny.HIDDEN), np.float32),
        "classifier.bias": np.zeros(2, np.float32),
    }
    return made.initial(dense, np.random.default_rng(0))


def asked(made: ZeroOrder, model: Aggregated, round_number: int = 1, device_id: str = "a") -> Work:
    key = AssignmentKey(run_id="run", round_number=round_number, device_id=device_id, attempt=1)
    return made.ask(key, ARM, at_once=False, model=model).work


def steps(made: ZeroOrder, model: Aggregated, round_number: int = 1, device_id: str = "a") -> ZeroOrderWork:
    work = asked(made, model, round_number, device_id)
    assert isinstance(work, ZeroOrderWork)
    return work


def sums(made: ZeroOrder, model: Aggregated) -> ProbeWork:
    work = asked(made, model)
    assert isinstance(work, ProbeWork)
    return work


def scalars(seed: int, shape: tuple[int, int] = (STEPS, 4)) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def scripted(
    folder: Path, made: ZeroOrder, work: Work, device_id: str, seed: int, num_examples: int = 10, not_finite: int = 0
) -> Reply:
    """A reply of random scalars, cut as was asked."""
    assert isinstance(work, ZeroOrderWork)
    most = np.float32(np.inf if work.largest_scalar is None else work.largest_scalar)
    values = np.clip(scalars(seed), -most, most)
    return reply(folder, made, work, device_id, encode_reply(values, not_finite), num_examples)
