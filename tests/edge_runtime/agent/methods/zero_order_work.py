"""Zero-order assignments for tests: adapters to start from, work, and rounds of a log as a server makes them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.agent.assignment_runner import AssignmentRunner, Progress, WorkContext
from edge_runtime.agent.checkpoints import Checkpoints
from edge_runtime.agent.pauses import Pauses
from edge_runtime.agent.traffic import Traffic
from edge_runtime.board.guard import PauseLimits
from edge_runtime.board.sensors import Sensors
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import Payload, decode_payload, encode_payload
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.zero_order import Reply, decode_reply
from edge_runtime.wire import chunks
from edge_runtime.wire.logged_rounds import LoggedRound
from edge_runtime.wire.messages import Assignment, AssignmentKey, Update, Welcome
from edge_runtime.wire.work import Arm, ZeroOrderWork
from edge_runtime.zero_order.preconditioner import apply_log

Array = npt.NDArray[np.float32]
RANK = 2


def payload(manifest: Manifest, seed: int = 0, rank: int = RANK) -> bytes:
    """An adapter with small values everywhere, as after some rounds."""
    layout, rng = AdapterLayout.of(manifest, Plan.full(manifest), rank), np.random.default_rng(seed)
    return encode_payload(Payload(adapter=layout.unflatten(rng.normal(0, 0.1, layout.num_elements).astype(np.float32))))


def work_of(**fields: Any) -> ZeroOrderWork:
    return ZeroOrderWork(
        **{
            "arm": Arm(pruning_ratio=0.0, rank=RANK),
            "seed": 7,
            "cut": 1,
            "lower_learning_rate": 2e-3,
            "learning_rate": 5e-3,
            "num_outer": 2,
            "num_inner": 3,
            "num_local_steps": 3,
            "epsilon": 1e-2,
            "batch_size": 4,
            "max_length": 16,
            "lora_scaling": 1.5,
            **fields,
        }
    )


def assignment_of(
    blob: bytes, work: ZeroOrderWork, round_number: int = 1, run_id: str = "run", attempt: int = 1
) -> Assignment:
    return Assignment(
        key=AssignmentKey(run_id=run_id, round_number=round_number, device_id="board-7", attempt=attempt),
        deadline_s=60.0,
        payload=chunks.describe(blob),
        work=work,
    )


def welcome_of(runner: AssignmentRunner, rank: int = RANK) -> Welcome:
    return Welcome(
        run_id="run",
        device_id="board-7",
        artifact_url="http://localhost/",
        artifact_digest=runner.digest,
        arms=(Arm(pruning_ratio=0.0, rank=rank),),
        batch_size=4,
        max_length=16,
        work="zero_order",
    )


def context_of(
    runner: AssignmentRunner,
    *,
    stop: threading.Event | None = None,
    every: int = 20,
    pull_rate: float | None = None,
    pauses: Pauses | None = None,
) -> WorkContext:
    return WorkContext(
        welcome=welcome_of(runner),
        stop=stop or threading.Event(),
        progress=Progress(),
        traffic=Traffic(lambda: (0, 0)),
        fetch_s=0.0,
        pull_rate=pull_rate,
        checkpoints=Checkpoints(Path("nowhere"), every),
        pauses=pauses or Pauses(PauseLimits(), Sensors()),
    )


def run(runner: AssignmentRunner, assignment: Assignment, blob: bytes, **context: Any) -> tuple[Update, Reply]:
    work = assignment.work
    assert isinstance(work, ZeroOrderWork)
    update, made = runner.run(assignment, blob, context_of(runner, **context))
    assert update.inline == (made if len(made) <= 1024 else b"")
    return update, decode_reply(made, (work.num_local_steps, work.num_outer * work.num_inner))


def rounds_of(work: ZeroOrderWork, numbers: Sequence[int], seed: int = 3, **changes: Any) -> tuple[LoggedRound, ...]:
    """Return logged rounds with scalars drawn at random; every other one at another cut, unless they have one."""
    rng = np.random.default_rng(seed)
    shape = (work.num_local_steps, work.num_outer, work.num_inner)
    return tuple(
        LoggedRound(
            round_number=number,
            cut=changes.get("cut", number % 2),
            is_normalised=changes.get("is_normalised", False),
            noise=work.noise,
            preconditioner=changes.get("preconditioner"),
            lower_learning_rate=work.lower_learning_rate,
            learning_rate=work.learning_rate,
            num_outer=work.num_outer,
            num_inner=work.num_inner,
            scalars=rng.normal(size=shape).astype("<f4").tobytes(),
        )
        for number in numbers
    )


def after(manifest: Manifest, blob: bytes, work: ZeroOrderWork, rounds: Sequence[LoggedRound]) -> bytes:
    """The payload of the round after these, as the server makes it of its own model."""
    layout = AdapterLayout.of(manifest, Plan.full(manifest), work.arm.rank)
    flat = layout.flatten(decode_payload(blob).adapter)
    apply_log(flat, manifest, work.arm.rank, work.seed, rounds)
    return encode_payload(Payload(adapter=layout.unflatten(flat)))
