"""The classes that a model is tuned for, and the choice between the checkpoint's classifier and a new one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from models.errors import LabelsDifferError, LabelsError

if TYPE_CHECKING:
    from edge_runtime.formats.manifest import Task

_GENERIC: Final = re.compile(r"LABEL_\d+")
_NUMBER: Final = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*")
_SHOWN: Final = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The classifier that a model is tuned with."""

    labels: tuple[str, ...]
    """Its classes, in the order of its outputs."""
    is_new: bool
    """Whether it is made from the seed; else the checkpoint's own is kept."""
    note: str = ""
    """Remark for the user about the choice; empty if it is as expected."""


def wanted_labels(task: Task, labels: Sequence[str] | None, num_labels: int | None) -> tuple[str, ...] | None:
    """Class names that were asked for; None = none were.

    Raises:
        LabelsError: they make no sense.
    """
    if labels is None and num_labels is None:
        return None
    if task != "text-classification":
        option = "--num-labels" if labels is None else "--labels"
        msg = f"{option} is for text-classification; {task} has no classes: leave it out"
        raise LabelsError(msg)
    if labels is not None and num_labels is not None:
        msg = "--labels and --num-labels are both given: leave one of them out"
        raise LabelsError(msg)
    names = tuple(str(i) for i in range(num_labels or 0)) if labels is None else tuple(labels)
    if len(names) < 2 or len(set(names)) != len(names) or not all(name.strip() for name in names):
        msg = f"--labels must be two or more different names, got {list(names)}"
        raise LabelsError(msg)
    return names


def choose_head(own: Sequence[str] | None, wanted: tuple[str, ...] | None, *, is_new: bool) -> Head:
    """The checkpoint's classifier, where its classes are those that are wanted; else a new one, or an error.

    A new one is made unasked only where the checkpoint's cannot be meant: another number of classes, and no name in
    common.

    Args:
        own: classes of the checkpoint's classifier; None = it has none.
        wanted: classes of the data, in any order; None = not given.
        is_new: a new classifier is wanted in any case.

    Raises:
        LabelsError: the classes of a new classifier are not given.
        LabelsDifferError: the wanted classes look like the checkpoint's classes, but differ.
    """
    if own is None or is_new:
        if wanted is None:
            lack = "the checkpoint has no classifier" if own is None else "--new-head makes a new classifier"
            msg = f"{lack}: name its classes with --labels NAME,NAME,..., or give --num-labels N"
            raise LabelsError(msg)
        had = "" if own is None else f" in place of the checkpoint's ({_shown(own)})"
        lacks = "the checkpoint has no classifier: " if own is None else ""
        return Head(labels=wanted, is_new=True, note=f"{lacks}a new one for {len(wanted)} classes is made{had}")
    if wanted is None:
        return Head(labels=tuple(own), is_new=False)
    if set(wanted) <= set(own):
        rest = [name for name in own if name not in wanted]
        note = f"the checkpoint's classifier is kept; nothing was said of its classes {_shown(rest)}" if rest else ""
        return Head(labels=tuple(own), is_new=False, note=note)
    if are_indices(wanted, own):
        note = f"the classes {_shown(wanted)} are read as numbers of the checkpoint's: {_numbered(own)}"
        return Head(labels=tuple(own), is_new=False, note=note)
    if len(wanted) == len(own) and all(_GENERIC.fullmatch(name) for name in own):
        return Head(labels=wanted, is_new=False, note=f"the checkpoint's classes have no names: {_numbered(wanted)}")
    if len(wanted) != len(own) and not {name.casefold() for name in own} & {name.casefold() for name in wanted}:
        note = f"the checkpoint classifies {_shown(own)}: a new classifier is made for {_shown(wanted)}"
        return Head(labels=wanted, is_new=True, note=note)
    msg = (
        f"the checkpoint's classifier has {len(own)} classes ({_shown(own)}), not the {len(wanted)} that are wanted "
        f"({_shown(wanted)}): use its names, or give --new-head for a new classifier"
    )
    raise LabelsDifferError(msg)


def are_indices(wanted: Sequence[str], own: Sequence[str]) -> bool:
    """Return whether names are numbers of classes, none of which has a number as its name.

    >>> are_indices(("0", "1"), ("no", "yes")), are_indices(("1", "2"), ("no", "yes")), are_indices(("0",), ("1", "0"))
    (True, False, False)
    >>> are_indices(("0", "1"), ("1.0", "2.0")), are_indices(("0", "1"), ("-1", "+1"))
    (False, False)
    """
    if any(_NUMBER.fullmatch(name) for name in own):
        return False
    return all(name.isdecimal() and name == str(int(name)) and int(name) < len(own) for name in wanted)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _numbered(names: Sequence[str]) -> str:
    return _shown([f"{index} = {name}" for index, name in enumerate(names)])
