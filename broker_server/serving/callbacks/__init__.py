"""Callbacks: they are called when rounds of a run end. By name, of an installed package, or ``pkg.mod:Class``.

To write one: subclass :class:`Callback` (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from broker_server.errors import ConfigError
from broker_server.serving.callbacks.base import Callback, RunInfo
from broker_server.serving.callbacks.mlflow import MlflowCallback
from broker_server.serving.callbacks.tensorboard import TensorBoardCallback
from broker_server.serving.callbacks.worker import CallbackWorker
from edge_runtime.errors import FedSpineError
from edge_runtime.system.registry import Registry, subclass_of

__all__ = ["CALLBACKS", "Callback", "CallbackWorker", "RunInfo", "check_callbacks", "make_callbacks", "names_in"]

CALLBACKS: Final[Mapping[str, type[Callback]]] = {"mlflow": MlflowCallback, "tensorboard": TensorBoardCallback}
"""FedSpine's own callbacks by name."""

_REGISTRY: Final = Registry(
    group="fedspine.callbacks",
    kind="callback",
    own=CALLBACKS,
    fits=subclass_of(Callback),
    expected="a subclass of broker_server.serving.callbacks.Callback",
    error=ConfigError,
)


def names_in(text: str) -> tuple[str, ...]:
    """Names in a list with commas, each once.

    >>> names_in("tensorboard, my_package.mod:Log")
    ('tensorboard', 'my_package.mod:Log')
    """
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def check_callbacks(text: str) -> None:
    """Refuse a list with the name of an unknown callback.

    Raises:
        ConfigError: a name is not known, or its class cannot be imported.
    """
    for name in names_in(text):
        _REGISTRY.find_or_import(name)


def make_callbacks(text: str) -> tuple[Callback, ...]:
    """The callbacks of a list with commas.

    Raises:
        ConfigError: a name is not known, or its class cannot be imported or made.
        MissingExtraError: a package that a callback needs is not installed.
    """
    made = []
    for name in names_in(text):
        kind = _REGISTRY.find_or_import(name)
        try:
            made.append(kind())
        except FedSpineError:
            raise
        except Exception as error:
            msg = f"callback {name!r} cannot be made ({type(error).__name__}: {error}): fix it, or leave it out"
            raise ConfigError(msg) from error
    return tuple(made)
