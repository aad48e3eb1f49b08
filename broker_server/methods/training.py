"""Settings of training on devices: what they do in a round, and how zero-order methods do it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Final, Literal

import msgspec

from broker_server.errors import ConfigError
from broker_server.naming import option_name
from broker_server.options import Panel, option, zero_for_none
from broker_server.ranges import Ratio, check_fields
from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import Count, Decay, Factor, Positive, Share
from edge_runtime.formats.seed_pool import Noise


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


AUTOMATIC: Final = -1
"""Of a cut: half of the blocks. Of a learning rate: half of the other part's."""

NUM_SEEDS: Final = 1024
"""Of a pool; FedKSeed's scripts have as many, its paper finds 1,024 to 4,096 enough for models of 10^9 weights."""

SMALLEST_EPSILON: Final = 1e-6
"""Eight times the spacing of float32 at 1: below it a perturbation is lost in the rounding of weights and losses."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ZeroOrderConfig:
    """Table ``[zero_order]`` of ``config.toml``: tuning by forward passes alone (docs/zero-order.md)."""

    cut: Annotated[int, msgspec.Meta(ge=AUTOMATIC, le=limits.MAX_LAYERS)] = option(
        Panel.ZERO_ORDER,
        "blocks below it are the lower part, the others and the head the upper; -1 = half of them",
        AUTOMATIC,
        name="zo_cut",
        by="method",
    )
    move_cut: bool = option(
        Panel.ZERO_ORDER,
        "the server moves the cut by the share of the gradient below it, from --zo-cut on or, with -1, from the last "
        "block down",
        default=False,
        name="zo_move_cut",
    )
    num_outer: Positive = option(
        Panel.ZERO_ORDER, "perturbations of the lower part in a step", 1, name="zo_outer", by="method"
    )
    num_inner: Positive = option(
        Panel.ZERO_ORDER, "perturbations of the upper part for each of those", 4, name="zo_inner", by="method"
    )
    epsilon: Annotated[float, msgspec.Meta(ge=SMALLEST_EPSILON, le=1)] = option(
        Panel.ZERO_ORDER, "size of a perturbation", 1e-2, name="zo_epsilon"
    )
    lower_learning_rate: Annotated[float, msgspec.Meta(ge=AUTOMATIC, le=limits.MAX_FACTOR)] = option(
        Panel.ZERO_ORDER,
        "learning rate of the lower part; 0 = it is neither perturbed nor changed, -1 = half of --learning-rate",
        float(AUTOMATIC),
        name="zo_lower_learning_rate",
        by="method",
    )
    normalise: bool = option(
        Panel.ZERO_ORDER,
        "differences on one side alone, and a step over the standard deviation of its scalars (FZOO)",
        default=False,
        name="zo_normalise",
    )
    precondition: bool = option(
        Panel.ZERO_ORDER,
        "noise is divided by the root of a diagonal that follows from the scalars of the rounds before (HiSo)",
        default=False,
        name="zo_precondition",
    )
    tune: Literal["adapter", "all"] = option(
        Panel.ZERO_ORDER,
        "what is tuned: adapter, LoRA's B factors and the head; or all weights, along the noise of a pool of seeds",
        "adapter",
        name="tune",
        by="method",
    )
    num_seeds: Annotated[int, msgspec.Meta(ge=2, le=limits.MAX_SEEDS)] = option(
        Panel.ZERO_ORDER, "seeds of that pool", NUM_SEEDS, name="zo_seeds"
    )
    noise: Noise = option(
        Panel.ZERO_ORDER,
        "law of the perturbations: rademacher, +-1; or gaussian, a normal distribution's quantiles",
        "rademacher",
        name="zo_noise",
    )
    combine: Literal["mean", "median", "trimmed"] = option(
        Panel.ZERO_ORDER,
        "how the devices' scalars are combined: mean, weighted by examples; median; or trimmed, the mean without the "
        "tenth at either end",
        "mean",
        name="zo_combine",
    )
    head: Literal["probe", "as-it-is"] = option(
        Panel.ZERO_ORDER,
        "what a classifier's head starts from: probe, solved from the devices' features in a round before; or as-it-is",
        "probe",
        name="zo_head",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if AUTOMATIC < self.lower_learning_rate < 0:
            name = option_name("zo_lower_learning_rate")
            msg = f"{name} is {self.lower_learning_rate}, expected {AUTOMATIC}, or 0 or more"
            raise ConfigError(msg)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MixedConfig:
    """Table ``[mixed]`` of ``config.toml``: first-order and zero-order devices in one run (docs/zero-order.md)."""

    zero_order_learning_rate: Factor = option(
        Panel.ZERO_ORDER,
        "learning rate of zero-order steps in a run that mixes them with first-order training, whose rate is "
        "--learning-rate",
        2e-2,
        name="zo_learning_rate",
    )
    zero_order_share: Factor = option(
        Panel.ZERO_ORDER,
        "weight of an example behind a zero-order update, where one behind a first-order update has 1",
        1.0,
        name="zo_share",
    )
    num_first_order_rounds: Positive | None = option(
        Panel.ZERO_ORDER,
        "rounds in which the devices that can train first-order; in later ones all are asked for zero-order steps; 0 = "
        "all rounds",
        None,
        name="first_order_rounds",
        written=zero_for_none(Count, 0),
    )

    def __post_init__(self) -> None:
        check_fields(self)
