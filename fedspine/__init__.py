"""FedSpine as a library: export a model, run federated training, make a compact model and use it.

    import fedspine

    result = fedspine.run("out", rounds=2)
    model = fedspine.load_compact(result.compact)

Names are loaded when they are first used: ``import fedspine`` loads neither torch nor a package of the server, and
:func:`load_compact` works where only the base install is. docs/api.md describes all of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from edge_runtime.errors import ExitCode, FedSpineError

if TYPE_CHECKING:
    from fedspine.device import CompactModel, load_compact
    from fedspine.making import SMALL_LLAMA, compact, export
    from fedspine.running import Callback, Curve, RunResult, run

__all__ = [
    "SMALL_LLAMA",
    "Callback",
    "CompactModel",
    "Curve",
    "FedSpineError",
    "MissingServerError",
    "RunResult",
    "compact",
    "export",
    "load_compact",
    "run",
]

_MODULES: Final = {
    "CompactModel": "device",
    "load_compact": "device",
    "SMALL_LLAMA": "making",
    "compact": "making",
    "export": "making",
    "Callback": "running",
    "Curve": "running",
    "RunResult": "running",
    "run": "running",
}
"""Module in which each name is defined."""


class MissingServerError(FedSpineError, ImportError):
    """A function of the server was used where only the device is installed."""

    exit_code = ExitCode.MISSING_DEPENDENCY


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attribute may be anything
    """Load a public name on first use.

    Raises:
        AttributeError: there is no such name.
        MissingServerError: a package that it needs is not installed.
    """
    if name not in _MODULES:
        msg = f"module 'fedspine' has no attribute {name!r}"
        raise AttributeError(msg)
    try:
        module = importlib.import_module(f"fedspine.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        msg = f"fedspine.{name} needs {error.name!r}, a part of the server: pip install 'fedspine[server]'"
        raise MissingServerError(msg) from error
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
