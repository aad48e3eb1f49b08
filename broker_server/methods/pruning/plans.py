"""The plans of a run: one for each pruning ratio, from the current importance."""

from __future__ import annotations

from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.ranking import Importance, PlanPolicy, plan_at


class Plans:
    """Makes each plan once, and measures it once, until the importance changes."""

    def __init__(self, manifest: Manifest, importance: Importance, policy: PlanPolicy) -> None:
        """Start from the current scores.

        Args:
            manifest: manifest of the artifact.
            importance: current scores.
            policy: scope of the ranking and protected layers.
        """
        self._manifest = manifest
        self._importance = importance
        self._policy = policy
        self._made: dict[float, tuple[Plan, float]] = {}

    def use(self, importance: Importance) -> None:
        """Rank units by other scores from now on; earlier assignments keep their plans."""
        self._importance = importance
        self._made = {}

    def at(self, pruning_ratio: float) -> Plan:
        """The plan of a ratio."""
        return self._plan(pruning_ratio)[0]

    def sparsity(self, pruning_ratio: float) -> float:
        """Measured fraction of the prunable weights that the plan of a ratio removes, in [0, 1)."""
        return self._plan(pruning_ratio)[1]

    def _plan(self, pruning_ratio: float) -> tuple[Plan, float]:
        made = self._made
        if pruning_ratio not in made:
            plan = plan_at(self._manifest, self._importance, pruning_ratio, self._policy)
            made[pruning_ratio] = plan, plan.sparsity(self._manifest)
        return made[pruning_ratio]
