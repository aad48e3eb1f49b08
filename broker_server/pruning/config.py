"""Settings of pruning: what ranks the units, and how a device's ratio grows."""

from __future__ import annotations

import dataclasses
from typing import Final, Literal

from broker_server.errors import ConfigError
from edge_runtime.wire.ranking import AUTOMATIC, PlanPolicy

IMPORTANCES: Final = ("magnitude", "lora")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PruningConfig:
    """Table ``[pruning]`` of ``config.toml``. Defaults: ratios are played in full from the first round on."""

    importance: Literal["magnitude", "lora"] = "magnitude"
    """``magnitude`` of the base weights, fixed; or ``lora``: LoRA gradients on the devices, aggregated each round,
    beginning with magnitude."""
    importance_every_steps: int = 5
    """Optimizer steps of a device between two scores, with ``lora``."""
    importance_smoothing: float = 0.5
    """Weight of the last round's global scores in the new ones, in [0, 1)."""
    scope: Literal["layer", "global"] = "layer"
    """See :class:`edge_runtime.wire.ranking.PlanPolicy`."""
    protect_first: int = AUTOMATIC
    """Layers at the input that are never pruned; -1 = a tenth of all."""
    protect_last: int = AUTOMATIC
    """Layers at the output that are never pruned; -1 = one, of five layers or more."""
    warmup_rounds: int = 0
    """Rounds before the ramp, without pruning."""
    ramp_rounds: int = 0
    """Rounds in which a device's ratio grows to its arm's; 0 = at once."""
    recovery_steps: int = 20
    """Optimizer steps, at least, between two prunings inside an assignment."""
    deploy_rounds: int = 0
    """Last rounds, in which every device trains the plan that is deployed, under importance that no longer changes."""

    def __post_init__(self) -> None:
        if self.importance not in IMPORTANCES or self.scope not in {"layer", "global"}:
            msg = (
                f"importance is {self.importance!r}, scope {self.scope!r}; expected magnitude or lora, layer or global"
            )
            raise ConfigError(msg)
        for name in ("importance_every_steps", "recovery_steps"):
            if getattr(self, name) < 1:
                msg = f"{name} is {getattr(self, name)}, expected 1 or more"
                raise ConfigError(msg)
        for name in ("warmup_rounds", "ramp_rounds", "deploy_rounds"):
            if getattr(self, name) < 0:
                msg = f"{name} is {getattr(self, name)}, expected 0 or more"
                raise ConfigError(msg)
        for name in ("protect_first", "protect_last"):
            if getattr(self, name) < AUTOMATIC:
                msg = f"{name} is {getattr(self, name)}, expected 0 or more, or -1 to choose by the model's depth"
                raise ConfigError(msg)
        if not 0.0 <= self.importance_smoothing < 1.0:
            msg = f"importance_smoothing is {self.importance_smoothing}, expected 0 or more and less than 1"
            raise ConfigError(msg)

    @property
    def policy(self) -> PlanPolicy:
        """How plans are made from importance."""
        return PlanPolicy(scope=self.scope, protect_first=self.protect_first, protect_last=self.protect_last)
