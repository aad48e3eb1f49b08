"""The methods of a device, by the type of the work that they do. A new one is a room here and a line below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from edge_runtime.agent.methods.lora.method import Lora
from edge_runtime.agent.methods.probe.method import Probe
from edge_runtime.agent.methods.protocol import Method
from edge_runtime.agent.methods.zero_order.method import ZeroOrder
from edge_runtime.agent.methods.zero_order.whole import SeedPoolTuning
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.engine.artifact import Artifact
from edge_runtime.wire.work import LoraWork, ProbeWork, SeedPoolWork, Work, ZeroOrderWork

METHODS: Final[Mapping[type[Work], Callable[[Artifact, WorkSettings], Method[Any]]]] = {
    LoraWork: Lora,
    ProbeWork: Probe,
    ZeroOrderWork: ZeroOrder,
    SeedPoolWork: SeedPoolTuning,
}


class Methods:
    """Methods of one artifact, each made when work for it first comes."""

    def __init__(self, artifact: Artifact, settings: WorkSettings) -> None:
        self._artifact = artifact
        self._settings = settings
        self._made: dict[type[Work], Method[Any]] = {}

    def of(self, kind: type[Work]) -> Method[Any]:
        """The method for a kind of work."""
        if kind not in self._made:
            self._made.clear()  # only one method's graphs are in memory
            self._made[kind] = METHODS[kind](self._artifact, self._settings)
        return self._made[kind]
