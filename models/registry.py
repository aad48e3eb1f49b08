"""The families that exist, and the choice among them. To add one: a file like ``bert.py``, its class in FAMILIES."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, get_args

from edge_runtime.formats.manifest import Task
from models.bert import Bert
from models.errors import ModelUnsupportedError
from models.llama import Llama
from models.settings import check_settings

if TYPE_CHECKING:
    from models.family import Family

FAMILIES: Final[tuple[type[Family], ...]] = (Bert, Llama)


def family_class(model_type: str, task: str) -> type[Family]:
    """The family that handles a Hugging Face ``model_type``, checked against the task.

    Raises:
        ModelUnsupportedError: the architecture or the task is not known, or the two do not go together.
    """
    if task not in get_args(Task):
        msg = f"task {task!r} is not known; choose one of {', '.join(get_args(Task))}"
        raise ModelUnsupportedError(msg)
    for family in FAMILIES:
        if model_type in family.model_types:
            if task not in family.tasks:
                msg = f"architecture {model_type!r} cannot do {task}; it can do {', '.join(family.tasks)}"
                raise ModelUnsupportedError(msg)
            return family
    known = ", ".join(sorted(t for family in FAMILIES for t in family.model_types))
    msg = f"architecture {model_type!r} is not supported; known architectures: {known}"
    raise ModelUnsupportedError(msg)


def family_for(config: Any, task: Task) -> Family:
    """The family of a Hugging Face configuration, described.

    Raises:
        ModelUnsupportedError: see :func:`family_class`, or a setting that the family does not reproduce.
    """
    family = family_class(config.model_type, task)
    check_settings(config.to_dict(), family.settings_of(config.model_type))
    return family(config, task)
