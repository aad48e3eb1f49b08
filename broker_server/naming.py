"""Settings in messages are called as a person wrote them: options of the command line, keys of a file."""

from __future__ import annotations

import contextlib
import re
import typing
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from edge_runtime.errors import FedSpineError
from edge_runtime.system.registry import nearest

E = TypeVar("E", bound=FedSpineError)

_OPTION = re.compile(r"--[a-z][a-z0-9-]*")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_MISSING = re.compile(r"Object missing required field `(.*)`")


def option_name(field: str) -> str:
    """The option of a field.

    >>> option_name("round_deadline")
    '--round-deadline'
    """
    return f"--{field.replace('_', '-')}"


@contextlib.contextmanager
def said_of(field: str) -> Iterator[None]:
    """Begin errors that are raised inside with the option of a field, in place of its name if that is there.

    Errors that begin with an option already stay as they are.

    Raises:
        FedSpineError: of the same kind.
    """
    try:
        yield
    except FedSpineError as error:
        if option_of(error) is not None:
            raise
        text = str(error)
        rest = text.removeprefix(field)
        is_called = rest[:1] == " " and rest != text
        raise type(error)(f"{option_name(field)}{rest}" if is_called else f"{option_name(field)}: {text}") from error


def option_of(error: FedSpineError) -> str | None:
    """The field whose option an error begins with; None if it begins otherwise."""
    found = _OPTION.match(str(error))
    return None if found is None else found[0].removeprefix("--").replace("-", "_")


def as_key(error: E, where: str = "") -> E:
    """The error with the key of a file in place of the option that it begins with.

    Args:
        error: one that :func:`option_of` knows the option of; any other is returned as it is.
        where: comes before the key, such as the file's name.
    """
    field = option_of(error)
    if field is None:
        return error
    return type(error)(f"{where}{field}{str(error).removeprefix(option_name(field))}")


def malformed(error: msgspec.ValidationError, kind: type[msgspec.Struct]) -> str:
    """Return msgspec's message about a table, in the words of its file.

    Args:
        error: of a conversion to ``kind``.
        kind: type that the file should have held.
    """
    text, _, place = str(error).partition(" - at `$")
    place = place.rstrip("`").removeprefix(".")
    if (found := _UNKNOWN.fullmatch(text)) is not None:
        inside = f" in {place}" if place else ""
        return f"key {found[1]!r}{inside} is not known; {nearest(found[1], sorted(set(_fields(kind))))}"
    if (found := _MISSING.fullmatch(text)) is not None:
        return f"{place or 'the file'} lacks the key {found[1]!r}"
    return f"{place}: {text[:1].lower()}{text[1:]}" if place else text


def _fields(hint: Any) -> Iterator[str]:  # noqa: ANN401 - any annotation
    """Names of the fields of a structure, and of all that it holds."""
    inside: Iterable[Any] = typing.get_args(hint)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        yield from hint.__struct_fields__
        inside = typing.get_type_hints(hint, include_extras=True).values()
    for part in inside:
        yield from _fields(part)
