"""The methods of a device, by the type of their work. A new method needs a package beside this file and a line below.

Methods of other packages share one type of work: see :mod:`edge_runtime.agent.methods.installed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from edge_runtime.agent.methods.installed import InstalledMethods
from edge_runtime.agent.methods.lora.method import Lora
from edge_runtime.agent.methods.probe.method import Probe
from edge_runtime.agent.methods.protocol import Method
from edge_runtime.agent.methods.split.method import Split
from edge_runtime.agent.methods.zero_order.method import ZeroOrder
from edge_runtime.agent.methods.zero_order.whole import SeedPoolTuning
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.engine.artifact import Artifact
from edge_runtime.wire.messages import Welcome
from edge_runtime.wire.work import (
    LoraWork,
    PluginWork,
    ProbeWork,
    SeedPoolWork,
    SplitWork,
    Work,
    ZeroOrderWork,
    type_of,
)

METHODS: Final[Mapping[type[Work], Callable[[Artifact, WorkSettings], Method[Any]]]] = {
    LoraWork: Lora,
    ProbeWork: Probe,
    ZeroOrderWork: ZeroOrder,
    SeedPoolWork: SeedPoolTuning,
    SplitWork: Split,
}


class Methods:
    """The methods for one artifact; each is made when its first work arrives."""

    def __init__(self, artifact: Artifact, settings: WorkSettings) -> None:
        self._artifact = artifact
        self._settings = settings
        self._installed = InstalledMethods(settings.device_methods)
        self._made: dict[tuple[type[Work], str], Method[Any]] = {}

    def of_run(self, welcome: Welcome) -> Method[Any]:
        """The method for the first work of a run; raises as :meth:`InstalledMethods.find`."""
        return self._of(type_of(welcome.work), welcome.device_method or "")

    def of(self, work: Work) -> Method[Any]:
        """The method for a piece of work; raises as :meth:`InstalledMethods.find`."""
        return self._of(type(work), work.method if isinstance(work, PluginWork) else "")

    def _of(self, kind: type[Work], name: str) -> Method[Any]:
        key = kind, name if kind is PluginWork else ""
        if key not in self._made:
            make = self._installed.find(name) if kind is PluginWork else METHODS[kind]
            self._made.clear()  # only one method's graphs are in memory
            self._made[key] = make(self._artifact, self._settings)
        return self._made[key]
