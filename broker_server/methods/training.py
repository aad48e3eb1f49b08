"""Settings of training on devices."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import msgspec

from broker_server.options import Panel, option, zero_for_none
from broker_server.ranges import Ratio, check_fields
from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import Count, Decay, Factor, Positive, Share


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Settings of training."""

    num_rounds: Positive = option(Panel.TRAINING, "rounds to train", name="rounds")
    num_local_steps: Positive = option(
        Panel.TRAINING, "optimizer steps that a device takes in a round", name="local_steps"
    )
    batch_size: Positive = option(Panel.TRAINING, "examples in a micro-batch")
    max_length: Annotated[int, msgspec.Meta(ge=2, le=limits.MOST)] = option(Panel.TRAINING, "most tokens of an example")
    num_accumulation_steps: Positive = option(
        Panel.TRAINING, "micro-batches in an optimizer step", 1, name="accumulation_steps"
    )
    learning_rate: Factor = option(Panel.TRAINING, "peak learning rate of AdamW", 2e-3, by="task")
    final_learning_rate_ratio: Ratio = option(
        Panel.TRAINING, "last learning rate as a share of the peak; a cosine over the rounds leads there", 0.1
    )
    weight_decay: Decay = option(Panel.TRAINING, "decoupled weight decay of AdamW", 0.0)
    lora_scaling: Factor = option(Panel.TRAINING, "LoRA's alpha / rank, the same for every rank", 2.0)
    max_grad_norm: Factor | None = option(
        Panel.TRAINING,
        "global norm at which gradients are clipped; 0 = no clipping",
        1.0,
        written=zero_for_none(Decay, 0.0),
    )
    num_warmup_steps: Count = option(
        Panel.TRAINING, "steps of linear warm-up at the start of each assignment", 2, name="warmup_steps"
    )
    class_balance: Share = option(
        Panel.TRAINING, "how evenly a device draws its classes: 0 = as often as they are, 1 = all equally often", 0.0
    )

    def __post_init__(self) -> None:
        check_fields(self)
