"""The families that exist, and the choice among them.

To add one here: a file like ``bert.py``, its class in FAMILIES; from a package outside: docs/extending.md.
"""

from __future__ import annotations

from typing import Any, Final, get_args

from edge_runtime.formats.manifest import Task
from edge_runtime.system.registry import Registry, subclass_of
from models.bert import Bert
from models.errors import ModelUnsupportedError
from models.family import Family
from models.llama import Llama
from models.settings import check_settings

FAMILIES: Final[tuple[type[Family], ...]] = (Bert, Llama)
"""FedSpine's own families."""

_REGISTRY: Final = Registry(
    group="fedspine.families",
    kind="architecture",
    own={model_type: family for family in FAMILIES for model_type in family.model_types},
    fits=subclass_of(Family),  # type: ignore[type-abstract]
    expected="a subclass of models.family.Family",
    error=ModelUnsupportedError,
)
"""By Hugging Face ``model_type``. That comes from a file of the model, so ``pkg.mod:Class`` is not taken."""


def family_class(model_type: str, task: str) -> type[Family]:
    """The family that handles a Hugging Face ``model_type``, checked against the task.

    Raises:
        ModelUnsupportedError: the architecture or the task is not known, or the two do not go together.
    """
    if task not in get_args(Task):
        msg = f"task {task!r} is not known; choose one of {', '.join(get_args(Task))}"
        raise ModelUnsupportedError(msg)
    if model_type not in (known := _REGISTRY.names()):
        msg = f"architecture {model_type!r} is not supported; known architectures: {', '.join(known)}"
        raise ModelUnsupportedError(msg)
    family = _REGISTRY.find(model_type)
    if model_type not in family.model_types:
        msg = f"architecture {model_type!r} is not one of {family.__name__}, whose package offers it: fix that package"
        raise ModelUnsupportedError(msg)
    if task not in family.tasks:
        msg = f"architecture {model_type!r} cannot do {task}; it can do {', '.join(family.tasks)}"
        raise ModelUnsupportedError(msg)
    return family


def family_for(config: Any, task: Task) -> Family:
    """The family of a Hugging Face configuration, described.

    Raises:
        ModelUnsupportedError: see :func:`family_class`, or a setting that the family does not reproduce.
    """
    family = family_class(config.model_type, task)
    check_settings(config.to_dict(), family.settings_of(config.model_type))
    return family(config, task)
