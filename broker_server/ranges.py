"""Ranges of settings, declared beside the fields' types and checked when a configuration is made."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from broker_server.errors import ConfigError
from edge_runtime.bounds import fields, limits
from edge_runtime.system.registry import nearest

T = TypeVar("T")

MOST: Final = limits.MOST


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """Numbers that a setting may be: ``low`` to ``high``, both finite."""

    low: float
    high: float
    above: bool = False
    """Whether ``low`` itself is refused."""
    below: bool = False
    """Whether ``high`` itself is refused."""

    def holds(self, value: float) -> bool:
        """Whether a value is inside; NaN never is."""
        is_over = value > self.low if self.above else value >= self.low
        return is_over and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low, high = _number(self.low), _number(self.high)
        return f"{'above' if self.above else 'from'} {low} {'to below' if self.below else 'to'} {high}"


@dataclasses.dataclass(frozen=True, slots=True)
class Words:
    """Text that is not empty, of at most ``most`` characters."""

    most: int = 1_000


@dataclasses.dataclass(frozen=True, slots=True)
class Named:
    """A name that messages and topics take: see :data:`edge_runtime.bounds.fields.NAME`."""


def check_fields(settings: object, called: Callable[[str], str] = str) -> None:
    """Refuse a field that is of another type than it is declared, or outside its range.

    Ranges are :class:`Range`, :class:`Words` and :class:`Named` in the field's ``Annotated``; a number without a range
    must be finite.

    Args:
        settings: a dataclass.
        called: gives the name that a person knows a field by.

    Raises:
        ConfigError: names the first such field, its value, and what is permitted.
    """
    kind = type(settings)
    check_values({field.name: getattr(settings, field.name) for field in dataclasses.fields(kind)}, kind, called)  # type: ignore[arg-type]


def check_values(values: Mapping[str, object], kind: type, called: Callable[[str], str] = str) -> None:
    """Refuse a value that a dataclass could not have as that field; see :func:`check_fields`.

    Args:
        values: by name of the field; not every field need have one.
        kind: the dataclass.
        called: gives the name that a person knows a field by.

    Raises:
        ConfigError: names the first such field, its value, and what is permitted.
    """
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if name in values and not _fits(values[name], hint):
            msg = f"{called(name)} is {values[name]!r}, expected {_expected(hint)}"
            raise ConfigError(msg)


def from_table(table: object, kind: type[T], where: str) -> T:
    """A dataclass from a table of a TOML file: its keys are the names of the fields.

    Args:
        table: what was read.
        kind: the dataclass.
        where: name of the table, for messages; empty = the file itself.

    Raises:
        ConfigError: no table; a key that is unknown or missing; or see :func:`check_fields`.
    """
    place = f"table [{where}]" if where else "configuration"
    if not isinstance(table, dict):
        msg = f"{where} is {table!r}, expected a table [{where}]"
        raise ConfigError(msg)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(table) - set(fields)):
        msg = f"{place} has the key {unknown[0]!r}, which is not known; {nearest(unknown[0], fields)}"
        raise ConfigError(msg)
    needed = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in needed if name not in table]:
        msg = f"{place} lacks {', '.join(missing)}: expected a value for each"
        raise ConfigError(msg)
    return kind(**table)


def _fits(value: object, hint: Any) -> bool:  # noqa: ANN401 - any annotation
    try:
        msgspec.convert(value, hint, strict=True)
    except msgspec.ValidationError:
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return all(_holds(value, limit) for limit in _limits(hint))


def _holds(value: object, limit: Range | Words | Named) -> bool:
    if isinstance(limit, Named):
        return not isinstance(value, str) or fields.NAME.fullmatch(value) is not None
    if isinstance(limit, Words):
        return not isinstance(value, str) or 0 < len(value) <= limit.most
    return not isinstance(value, int | float) or limit.holds(value)


def _limits(hint: Any) -> list[Range | Words | Named]:  # noqa: ANN401 - any annotation
    """Ranges inside an annotation; at most one, since a union holds one range and None."""
    if typing.get_origin(hint) is typing.Annotated:
        return [extra for extra in hint.__metadata__ if isinstance(extra, Range | Words | Named)]
    return [limit for part in typing.get_args(hint) if not isinstance(part, str) for limit in _limits(part)]


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"


def _expected(hint: Any) -> str:  # noqa: ANN401 - any annotation
    """What an annotation permits, for people."""
    names = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", type(None): "none"}
    if hint in names:
        return names[hint]
    if typing.get_origin(hint) is typing.Annotated:
        (limit,) = _limits(hint)
        if isinstance(limit, Named):
            return fields.NAME_RULE
        kind = _expected(hint.__origin__)
        return f"{kind} of 1 to {limit.most} characters" if isinstance(limit, Words) else f"{kind} {limit}"
    if typing.get_origin(hint) is typing.Literal:
        *others, last = [repr(value) for value in typing.get_args(hint) if value != ""]
        return f"{', '.join(others)} or {last}" if others else last
    parts = [_expected(part) for part in typing.get_args(hint)]
    return " or ".join(parts) if parts else f"a {getattr(hint, '__name__', hint)}"
