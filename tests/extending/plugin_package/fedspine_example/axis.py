"""``own_batch``: a method with an axis of its own, so that a scheduler finds a batch size for each device too."""

from __future__ import annotations

from typing import ClassVar, Final, cast

import msgspec

from broker_server.methods.aggregation import Aggregated
from broker_server.methods.lora.method import Lora
from broker_server.methods.method import AssignedWork
from broker_server.methods.presets import Preset
from edge_runtime.wire.arms import PRUNING_RATIO, RANK, Axes, Axis
from edge_runtime.wire.messages import AssignmentKey
from edge_runtime.wire.work import Arm, LoraWork

BATCH_SIZE: Final = Axis(
    name="batch_size",
    label="batch size",
    metavar="EXAMPLES",
    words="batches of {}",
    kind=int,
    least=1,
    most=64,
    example=8,
    default=8,
    is_log=True,
    time_joint=0.6,
)
"""Examples in a batch: a larger one costs more, and equal factors are equally far apart."""


class OwnBatch(Lora):
    """As ``lora``; the arm says how many examples a batch has, whatever ``--batch-size`` says."""

    axes: ClassVar[Axes] = Axes((PRUNING_RATIO, RANK, BATCH_SIZE))
    default_arms: ClassVar[str] = "0.0:8:batch_size=16,0.5:4:batch_size=4"
    has_step_times: ClassVar[bool] = False

    def ask(self, key: AssignmentKey, arm: Arm, *, at_once: bool, model: Aggregated) -> AssignedWork:
        """Work of a LoRA arm with the batch size of this one."""
        asked = super().ask(key, arm, at_once=at_once, model=model)
        work = cast("LoraWork", asked.work)
        chosen = msgspec.structs.replace(work.hyper_parameters, batch_size=int(BATCH_SIZE.of(arm)))
        return msgspec.structs.replace(asked, work=msgspec.structs.replace(work, hyper_parameters=chosen))


OWN_BATCH = Preset(
    label="Own batch",
    about="a bandit over (pruning ratio, rank, batch size)",
    work=OwnBatch,
    settings=lambda _: {"scheduler": "fedspine"},
)
