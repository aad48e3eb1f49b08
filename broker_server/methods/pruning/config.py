"""Settings of pruning: the scores that rank the units, and the growth of a device's ratio."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import msgspec

from broker_server.options import Panel, option
from broker_server.ranges import Ratio, check_fields
from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import Beta, Count, Positive
from edge_runtime.formats.ranking import AUTOMATIC, PlanPolicy

Layers = Annotated[int, msgspec.Meta(ge=AUTOMATIC, le=limits.MAX_LAYERS)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PruningConfig:
    """Table ``[pruning]`` of ``config.toml``. By default full ratios are used from the first round on."""

    importance: Literal["magnitude", "lora"] = option(
        Panel.PRUNING,
        "what ranks heads and channels: magnitude of the base weights (fixed), or lora (gradients of the LoRA factors "
        "on devices, new after each round; the first round ranks by magnitude)",
        "magnitude",
        by="method",
    )
    importance_every_steps: Positive = option(
        Panel.PRUNING, "with --importance lora: steps between two scores on a device", 5
    )
    importance_smoothing: Beta = option(
        Panel.PRUNING, "with --importance lora: weight of the last round's scores in the new ones, 0 to below 1", 0.5
    )
    scope: Literal["layer", "global"] = option(
        Panel.PRUNING,
        "where heads and channels are ranked: layer = within each layer, global = over all layers",
        "layer",
        name="prune_scope",
        by="method",
    )
    """See :class:`edge_runtime.formats.ranking.PlanPolicy`."""
    protect_first: Layers = option(
        Panel.PRUNING, "number of first layers that are never pruned; -1 = a tenth of all", AUTOMATIC, by="method"
    )
    protect_last: Layers = option(
        Panel.PRUNING,
        "number of last layers that are never pruned; -1 = one, where there are five or more",
        AUTOMATIC,
        by="method",
    )
    warmup_rounds: Count = option(Panel.PRUNING, "rounds without pruning before the ramp", 0, name="ramp_warmup_rounds")
    ramp_rounds: Count = option(
        Panel.PRUNING,
        "rounds of the cubic ramp, in which pruning grows to the ratio of the arm; 0 = no ramp",
        0,
        by="method",
    )
    recovery_steps: Positive = option(Panel.PRUNING, "least number of steps between two prunings in one assignment", 20)
    deploy_rounds: Count = option(
        Panel.PRUNING,
        "number of last rounds in which all devices train the sub-model at --sparsity; importance no longer changes",
        0,
        by="method",
    )
    deploy_learning_rate_ratio: Ratio = option(
        Panel.PRUNING,
        "learning rate of the first deploy round as a share of the peak; a cosine leads down from there",
        0.5,
    )

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def policy(self) -> PlanPolicy:
        """Return the policy by which plans are made from importance."""
        return PlanPolicy(scope=self.scope, protect_first=self.protect_first, protect_last=self.protect_last)
