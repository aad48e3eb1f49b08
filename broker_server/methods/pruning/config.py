"""Settings of pruning: what ranks the units, and how a device's ratio grows."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from broker_server.ranges import MOST, Range, check_fields
from edge_runtime.bounds import limits
from edge_runtime.formats.ranking import AUTOMATIC, PlanPolicy

Count = Annotated[int, Range(0, MOST)]
Positive = Annotated[int, Range(1, MOST)]
Layers = Annotated[int, Range(AUTOMATIC, limits.MAX_LAYERS)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PruningConfig:
    """Table ``[pruning]`` of ``config.toml``. Defaults: ratios are played in full from the first round on."""

    importance: Literal["magnitude", "lora"] = "magnitude"
    """``magnitude`` of the base weights, fixed; or ``lora``: LoRA gradients on the devices, aggregated each round,
    beginning with magnitude."""
    importance_every_steps: Positive = 5
    """Optimizer steps of a device between two scores, with ``lora``."""
    importance_smoothing: Annotated[float, Range(0, 1, below=True)] = 0.5
    """Weight of the last round's global scores in the new ones, in [0, 1)."""
    scope: Literal["layer", "global"] = "layer"
    """See :class:`edge_runtime.formats.ranking.PlanPolicy`."""
    protect_first: Layers = AUTOMATIC
    """Layers at the input that are never pruned; -1 = a tenth of all."""
    protect_last: Layers = AUTOMATIC
    """Layers at the output that are never pruned; -1 = one, of five layers or more."""
    warmup_rounds: Count = 0
    """Rounds before the ramp, without pruning."""
    ramp_rounds: Count = 0
    """Rounds in which a device's ratio grows to its arm's; 0 = at once."""
    recovery_steps: Positive = 20
    """Optimizer steps, at least, between two prunings inside an assignment."""
    deploy_rounds: Count = 0
    """Last rounds, in which every device trains the plan that is deployed, under importance that no longer changes."""
    deploy_learning_rate_ratio: Annotated[float, Range(0, 1, above=True)] = 0.5
    """Learning rate of the first deploy round as a fraction of the peak; cosine from there (ours)."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def policy(self) -> PlanPolicy:
        """How plans are made from importance."""
        return PlanPolicy(scope=self.scope, protect_first=self.protect_first, protect_last=self.protect_last)
