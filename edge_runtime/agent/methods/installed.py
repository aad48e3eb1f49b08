"""Methods that other packages add to a device: found by name, and imported when their work arrives.

A package offers a class under a name by an entry point of the group ``fedspine.device_methods``, or the owner of the
device gives a class for the name (``--device-method NAME=module:Class``). An assignment holds only the name, so
messages from the network cannot choose code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Self, TypeGuard

from edge_runtime.agent.errors import DeviceMethodError
from edge_runtime.system.registry import Registry

if TYPE_CHECKING:  # a check-up of the board lists names where onnxruntime cannot be loaded
    from edge_runtime.agent.methods.protocol import Method
    from edge_runtime.agent.settings import WorkSettings
    from edge_runtime.engine.artifact import Artifact
    from edge_runtime.wire.messages import Welcome
    from edge_runtime.wire.work import PluginWork

    MakeMethod = Callable[[Artifact, WorkSettings], Method[PluginWork]]

GROUP: Final = "fedspine.device_methods"
"""Group of the entry points."""

_MEMBERS: Final = ("check_run", "begin")


def _is_method(value: object) -> TypeGuard[MakeMethod]:
    return isinstance(value, type) and all(callable(getattr(value, name, None)) for name in _MEMBERS)


_OFFERED: Final = Registry(
    group=GROUP,
    kind="device method",
    own={},
    fits=_is_method,
    expected=f"a class with {' and '.join(_MEMBERS)}, as edge_runtime.agent.methods.protocol.Method has them",
    error=DeviceMethodError,
)


@dataclasses.dataclass(frozen=True, slots=True)
class InstalledMethods:
    """The methods of packages that this device has."""

    named: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Classes that the device's owner named, ``module:Class``, by the names of their methods."""

    @classmethod
    def of(cls, classes: str | None) -> Self:
        """Parse an option, ``NAME=module:Class`` with commas between them; None = the option was not given."""
        return cls(dict(part.split("=", 1) for part in classes.split(",")) if classes else {})

    def names(self) -> tuple[str, ...]:
        """All names, sorted; nothing is imported."""
        return tuple(sorted({*self.named, *_OFFERED.names()}))

    def source_of(self, name: str) -> str:
        """The class that the owner gave for a known name, else the package that offers the method."""
        return self.named.get(name) or _OFFERED.package_of(name)

    def objection(self, welcome: Welcome) -> str | None:
        """Return one line if this device lacks the method of a run; None if it has the method or needs none."""
        name = welcome.device_method
        if name is None or name in self.names():
            return None
        return f"run {welcome.run_id} is refused: {_missing(name)}"

    def find(self, name: str) -> MakeMethod:
        """Return the class of a method, imported.

        Raises:
            DeviceMethodError: it is not installed, two packages offer it, or it cannot be imported or used.
        """
        if name in self.named:
            return _OFFERED.find_or_import(self.named[name])
        if name not in _OFFERED.names():
            raise DeviceMethodError(_missing(name))
        return _OFFERED.find(name)


def _missing(name: str) -> str:
    return (
        f"no device method {name!r} here: pip install its package (entry point {name} of {GROUP}), or start with "
        f"--device-method {name}=module:Class"
    )
