"""Ranges of settings: those of the fields' annotations, the same as of messages (:mod:`edge_runtime.bounds.fields`)."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from broker_server.errors import ConfigError
from edge_runtime.bounds import fields

Words = Annotated[str, msgspec.Meta(min_length=1, max_length=1_000)]
"""Text that is not empty."""
Ratio = Annotated[float, msgspec.Meta(gt=0, le=1)]


def check_fields(settings: object, called: Callable[[str], str] = str) -> None:
    """Refuse a field that is of another type than it is declared, or outside its range.

    Args:
        settings: a dataclass.
        called: returns the name of a field for people.

    Raises:
        ConfigError: names the first such field, its value, and the permitted values.
    """
    kind = type(settings)
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        check_value(called(field.name), getattr(settings, field.name), hints[field.name])


def check_value(called: str, value: object, hint: object) -> None:
    """Refuse a value that an annotation does not permit; a number without a range must be finite.

    Args:
        called: name of the value for people.
        value: any value.
        hint: a type, or ``Annotated`` with the ``msgspec.Meta`` of its range.

    Raises:
        ConfigError: the value is not permitted; names it and the permitted values.
    """
    if not _fits(value, hint):
        msg = f"{called} is {value!r}, expected {expected(hint)}"
        raise ConfigError(msg)


def _fits(value: object, hint: Any) -> bool:  # noqa: ANN401 - any annotation
    try:
        msgspec.convert(value, hint, strict=True)
    except msgspec.ValidationError:
        return False
    return not isinstance(value, float) or math.isfinite(value)


def expected(hint: Any) -> str:  # noqa: ANN401 - any annotation
    """The values that an annotation permits, for people."""
    names = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", type(None): "none"}
    if hint in names:
        return names[hint]
    if typing.get_origin(hint) is typing.Annotated:
        (meta,) = hint.__metadata__
        if meta.pattern is not None:
            return fields.NAME_RULE if hint == fields.Name else f"text that matches {meta.pattern}"
        kind = expected(hint.__origin__)
        return (
            f"{kind} {_range(meta)}".rstrip()
            if meta.max_length is None
            else f"{kind} of 1 to {meta.max_length} characters"
        )
    if typing.get_origin(hint) is typing.Literal:
        *others, last = [repr(value) for value in typing.get_args(hint) if value != ""]
        return f"{', '.join(others)} or {last}" if others else last
    parts = [expected(part) for part in typing.get_args(hint)]
    return " or ".join(parts) if parts else f"a {getattr(hint, '__name__', hint)}"


def _range(meta: msgspec.Meta) -> str:
    low = "" if meta.gt is None else f"above {_number(meta.gt)}"
    low = low if meta.ge is None else f"from {_number(meta.ge)}"
    high = "" if meta.lt is None else f"below {_number(meta.lt)}"
    high = high if meta.le is None else _number(meta.le)
    return f"{low} to {high}" if low and high else low or (high if meta.le is None else f"up to {high}")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"
