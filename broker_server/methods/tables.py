"""Settings that some methods have beside those of training: a table of ``config.toml`` each, registered below."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Final, Literal

import msgspec

from broker_server.errors import ConfigError
from broker_server.naming import option_name
from broker_server.options import option, zero_for_none
from broker_server.ranges import check_fields
from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import Count, Deviation, Factor, Positive
from edge_runtime.formats.activations import ActivationDtype
from edge_runtime.formats.seed_pool import Noise

PANEL: Final = "Zero-order tuning"
"""Group of their options in ``fedspine run --help``."""
SPLIT_PANEL: Final = "Split tuning"
"""The same of split tuning."""

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
        PANEL,
        "blocks below it are the lower part, the others and the head the upper; -1 = half of them",
        AUTOMATIC,
        name="zo_cut",
        by="method",
    )
    move_cut: bool = option(
        PANEL,
        "the server moves the cut by the share of the gradient below it, from --zo-cut on or, with -1, from the last "
        "block down",
        default=False,
        name="zo_move_cut",
    )
    num_outer: Positive = option(PANEL, "perturbations of the lower part in a step", 1, name="zo_outer", by="method")
    num_inner: Positive = option(
        PANEL, "perturbations of the upper part for each of those", 4, name="zo_inner", by="method"
    )
    epsilon: Annotated[float, msgspec.Meta(ge=SMALLEST_EPSILON, le=1)] = option(
        PANEL, "size of a perturbation", 1e-2, name="zo_epsilon"
    )
    lower_learning_rate: Annotated[float, msgspec.Meta(ge=AUTOMATIC, le=limits.MAX_FACTOR)] = option(
        PANEL,
        "learning rate of the lower part; 0 = it is neither perturbed nor changed, -1 = half of --learning-rate",
        float(AUTOMATIC),
        name="zo_lower_learning_rate",
        by="method",
    )
    normalise: bool = option(
        PANEL,
        "differences on one side alone, and a step over the standard deviation of its scalars (FZOO)",
        default=False,
        name="zo_normalise",
    )
    precondition: bool = option(
        PANEL,
        "noise is divided by the root of a diagonal that follows from the scalars of the rounds before (HiSo)",
        default=False,
        name="zo_precondition",
    )
    tune: Literal["adapter", "all"] = option(
        PANEL,
        "what is tuned: adapter, LoRA's B factors and the head; or all weights, along the noise of a pool of seeds",
        "adapter",
        name="tune",
        by="method",
    )
    num_seeds: Annotated[int, msgspec.Meta(ge=2, le=limits.MAX_SEEDS)] = option(
        PANEL, "seeds of that pool", NUM_SEEDS, name="zo_seeds"
    )
    noise: Noise = option(
        PANEL,
        "law of the perturbations: rademacher, +-1; or gaussian, a normal distribution's quantiles",
        "rademacher",
        name="zo_noise",
    )
    combine: Literal["mean", "median", "trimmed"] = option(
        PANEL,
        "how the devices' scalars are combined: mean, weighted by examples; median; or trimmed, the mean without the "
        "tenth at either end",
        "mean",
        name="zo_combine",
    )
    head: Literal["probe", "as-it-is"] = option(
        PANEL,
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
        PANEL,
        "learning rate of zero-order steps in a run that mixes them with first-order training, whose rate is "
        "--learning-rate",
        2e-2,
        name="zo_learning_rate",
    )
    zero_order_share: Factor = option(
        PANEL,
        "weight of an example behind a zero-order update, where one behind a first-order update has 1",
        1.0,
        name="zo_share",
    )
    num_first_order_rounds: Positive | None = option(
        PANEL,
        "rounds in which the devices that can train first-order; in later ones all are asked for zero-order steps; 0 = "
        "all rounds",
        None,
        name="first_order_rounds",
        written=zero_for_none(Count, 0),
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SplitConfig:
    """Table ``[split_tuning]`` of ``config.toml``: lower blocks on devices, upper ones here (docs/split.md)."""

    cut: Annotated[int, msgspec.Meta(ge=AUTOMATIC, le=limits.MAX_LAYERS)] = option(
        SPLIT_PANEL,
        "blocks that a device runs, 1 or more; the server tunes the others; -1 = half of them",
        AUTOMATIC,
    )
    freeze_lower: bool = option(
        SPLIT_PANEL,
        "blocks below the cut stay as they are, and activations are sent once. Method split needs it",
        default=False,
    )
    dtype: ActivationDtype = option(
        SPLIT_PANEL,
        "how activations are coded: int8, with a scale for each token, float16 or float32",
        "int8",
        name="cut_dtype",
    )
    noise: Deviation = option(
        SPLIT_PANEL,
        "standard deviation of Gaussian noise that a device adds to the activations of each token before it sends "
        "them, as a share of their root mean square; 0 = none",
        0.0,
        name="cut_noise",
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MethodTables:
    """The tables of all methods."""

    zero_order: ZeroOrderConfig = dataclasses.field(default_factory=ZeroOrderConfig)
    mixed: MixedConfig = dataclasses.field(default_factory=MixedConfig)
    split_tuning: SplitConfig = dataclasses.field(default_factory=SplitConfig)
