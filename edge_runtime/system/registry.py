"""A registry of objects by name: from FedSpine, from installed packages, and ``pkg.mod:Name``.

A package offers a name by an entry point (https://packaging.python.org/specifications/entry-points/). The entry point
is imported only when its name is looked up, so a broken package affects only users of its names. Modules are found on
``sys.path`` alone, and :mod:`edge_runtime.system.interpreter` keeps the current folder off that path.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Final, Generic, TypeGuard, TypeVar

from edge_runtime.errors import FedSpineError

T = TypeVar("T")

OWN_PACKAGE: Final = "fedspine"


def nearest(name: str, known: Collection[str]) -> str:
    """Return a suggestion for an unknown name: the most similar known name, or else all known names.

    >>> nearest("ruonds", ("rounds", "devices"))
    "did you mean 'rounds'?"
    >>> nearest("colour", ("rounds", "devices"))
    'known: rounds, devices'
    """
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def subclass_of(base: type[T]) -> Callable[[object], TypeGuard[type[T]]]:
    """Return a predicate of concrete subclasses of ``base``."""

    def fits(value: object) -> TypeGuard[type[T]]:
        return isinstance(value, type) and issubclass(value, base) and not inspect.isabstract(value)

    return fits


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Registry(Generic[T]):
    """The objects of one kind, by name."""

    group: str
    """Group of the entry points, such as ``fedspine.schedulers``."""
    kind: str
    """Kind of the names in messages, such as ``scheduler``."""
    own: Mapping[str, T]
    """Objects of FedSpine itself, by name."""
    fits: Callable[[object], TypeGuard[T]]
    """Returns whether an object of a package is of this kind."""
    expected: str
    """Description of objects for which ``fits`` is true, for messages, such as ``a subclass of Scheduler``."""
    error: type[FedSpineError]
    """Type of the errors that are raised."""

    def names(self) -> tuple[str, ...]:
        """All known names, sorted; nothing is imported."""
        return tuple(sorted({*self.own, *(entry.name for entry in self._entries())}))

    def package_of(self, name: str) -> str:
        """The package or packages that offer a known name."""
        return " and ".join(self._packages(name))

    def find(self, name: str) -> T:
        """Return the object of a name. An entry point is loaded; ``pkg.mod:Name`` is not accepted.

        Use it for names from a model's files or from the network.

        Raises:
            FedSpineError: of type ``error``: the name is unknown, two packages offer it, or the package's object cannot
                be imported or is of another kind.
        """
        packages = self._packages(name)
        if not packages:
            msg = f"{self.kind} {name!r} is not known; {nearest(name, self.names())}"
            raise self.error(msg)
        if len(packages) > 1:
            msg = (
                f"{self.kind} {name!r} is offered by two packages, {packages[0]} and {packages[1]}: uninstall one, or "
                "write module:Name of the one you want in its place"
            )
            raise self.error(msg)
        if name in self.own:
            return self.own[name]
        entry = next(entry for entry in self._entries() if entry.name == name)
        return self._load(f"{self.kind} {name!r} of the package {packages[0]}", entry)

    def find_or_import(self, name: str) -> T:
        """Return the object of a name from a user's command line or configuration; ``pkg.mod:Name`` is imported.

        Raises:
            FedSpineError: see :meth:`find`.
        """
        if ":" not in name:
            return self.find(name)
        module, _, attribute = name.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
            msg = (
                f"{self.kind} {name!r} is not a name: expected a known one, or module:Name, such as my_package.mod:Rule"
            )
            raise self.error(msg)
        return self._load(f"{self.kind} {name!r}", importlib.metadata.EntryPoint(name, name, self.group))

    def _load(self, called: str, entry: importlib.metadata.EntryPoint) -> T:
        try:
            found: object = entry.load()
        except Exception as error:
            lost = isinstance(error, ModuleNotFoundError) and entry.module.startswith(str(error.name))
            step = "install its package, or put its folder on PYTHONPATH" if lost else "fix or uninstall its package"
            msg = f"{called} cannot be imported ({type(error).__name__}: {error}): {step}"
            raise self.error(msg) from error
        if not self.fits(found):
            msg = f"{called} is {_described(found)}, expected {self.expected}"
            raise self.error(msg)
        return found

    def _packages(self, name: str) -> list[str]:
        own = [OWN_PACKAGE] if name in self.own else []
        return own + [entry.dist.name if entry.dist else "?" for entry in self._entries() if entry.name == name]

    def _entries(self) -> tuple[importlib.metadata.EntryPoint, ...]:
        return _entry_points(self.group, tuple(sys.path))


@functools.lru_cache(maxsize=64)
def _entry_points(group: str, _path: tuple[str, ...]) -> tuple[importlib.metadata.EntryPoint, ...]:
    """Entry points of a group on an import path; cached, because a search of all packages takes some 10 ms."""
    return tuple(importlib.metadata.entry_points(group=group))


def _described(value: object) -> str:
    if inspect.isabstract(value):
        return f"a class that lacks {', '.join(sorted(getattr(value, '__abstractmethods__', ())))}"
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
