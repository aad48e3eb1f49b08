"""Names of classes: the class of a label, and names that probably mean the same class."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

from edge_runtime.engine.json_lines import shown

Label = str | int
"""A label from a file: a class name without blanks around it, or a whole number."""

_NUMBER: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_INDEX: Final = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)
_SHOWN_CLASSES: Final = 20
_SHOWN_CHARACTERS: Final = 40


class Classes:
    """The classes of a model, in the order of its outputs.

    Args:
        names: name of each class.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._by_name: dict[str, int] = {}
        self._by_value: dict[float, int | None] = {}
        for index, name in enumerate(names):
            self._by_name.setdefault(name.strip(), index)
            if is_number(name):
                value = _value(name)
                # None: two names have this value, so it is ambiguous
                self._by_value[value] = None if value in self._by_value else index
        self._by_name.update((name, index) for index, name in enumerate(names))

    def named(self, label: Label) -> int | None:
        """The index of the class with the name ``label``, None if there is none; 1 names the class "1.0" too."""
        if isinstance(label, str):
            return self._by_name.get(label)
        return self._by_name[str(label)] if str(label) in self._by_name else self._by_value.get(label)

    def numbered(self, label: Label) -> int | None:
        """The class with the index ``label``; None if there is none, or if the name of any class is a number."""
        if self._by_value or not _INDEX.fullmatch(str(label)):
            return None
        return int(label) if int(label) < len(self._names) else None

    def unknown(self, label: Label, owner: str, *, can_be_index: bool = True) -> str:
        """Return the text after "line N" for an unknown label.

        Args:
            label: label from the file.
            owner: owner of the classes, such as "the artifact".
            can_be_index: whether a label may be an index; False if the classes have no known order.
        """
        known = ", ".join(_plain(name) for name in self._names[:_SHOWN_CLASSES])
        more = ", ..." if len(self._names) > _SHOWN_CLASSES else ""
        indices = f" (or 0 to {len(self._names) - 1}, their indices)" if can_be_index and not self._by_value else ""
        folded = _folded(str(label))
        near = next((f" (but {name[:_SHOWN_CHARACTERS]!a})" for name in self._names if _folded(name) == folded), "")
        return f"has the label {shown(label)}, which {owner} does not have{near}; known: {known}{more}{indices}"


def is_number(name: str) -> bool:
    """Return whether a class name is a number.

    >>> [is_number(name) for name in ("7", " -1", "1.0", "2e3", "nan", "5 stars", "")]
    [True, True, True, True, False, False, False]
    """
    return _NUMBER.fullmatch(name.strip()) is not None


def sort_labels(names: Iterable[str]) -> tuple[str, ...]:
    """Classes in the order of the model's outputs: by value if all names are numbers, else alphabetically.

    >>> sort_labels({"10", "9"}), sort_labels({"b", "10", "a"}), sort_labels({"-1", "-2", "1.5"})
    (('9', '10'), ('10', 'a', 'b'), ('-2', '-1', '1.5'))
    """
    found = sorted(names)
    return tuple(sorted(found, key=_value) if all(is_number(name) for name in found) else found)


def alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of names that differ only in case, blanks, the encoding of a character, or the form of a number.

    >>> alike(["spam", "Spam", "ham", "not  ham", "not ham", "1", "1.0"])
    [('Spam', 'spam'), ('not  ham', 'not ham'), ('1', '1.0')]
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_folded(name), []).append(name)
    return [tuple(sorted(group)) for group in groups.values() if len(group) > 1]


def _value(name: str) -> float:
    """Return a name as a number; float() alone strips fewer characters than :func:`is_number`."""
    return float(name.strip())


def _folded(name: str) -> str:
    if is_number(name) and math.isfinite(value := _value(name)):
        return repr(value + 0.0)  # -0 is 0
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _plain(name: str) -> str:
    """A name unchanged if it is printable and short, else an excerpt."""
    return name if name.isprintable() and len(name) <= _SHOWN_CHARACTERS else shown(name)
