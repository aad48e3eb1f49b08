"""Text from outside, escaped for terminals and logs.

Characters that control a terminal, break a line or change the direction of writing are replaced by the escapes of
Python's ``repr``. So are halves of surrogate pairs, which cannot be written to files. Text of messages is escaped once,
when a message is decoded. A second time changes nothing, so logs and error lines are escaped too, for text from other
sources (a broker's reason, an error of the system).
"""

from __future__ import annotations

import functools
import logging
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from edge_runtime.bounds.fields import FOR_PEOPLE

T = TypeVar("T")
Escape = Callable[[Any], Any]


def plain(text: str) -> str:
    r"""Return ``text`` with escapes for all characters that should not be shown.

    >>> plain("\x1b[2J done\n2026-01-01 INFO")
    '\\x1b[2J done\\n2026-01-01 INFO'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class PlainFormatter(logging.Formatter):
    """A formatter that writes each record on one line, whatever its text; a traceback below it is not escaped."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line, escaped by :func:`plain`."""
        return plain(super().formatMessage(record))


def log_plainly(level: int | str, form: str) -> None:
    """Log to standard error in the format ``form``, one line a record."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter(form))
    logging.basicConfig(level=level, handlers=[handler])


def escaped(decoded: T) -> T:
    """Escape the text for people in a decoded struct by :func:`plain`, and cut it to its maximum length.

    Args:
        decoded: a struct; :data:`edge_runtime.bounds.fields.FOR_PEOPLE` marks its fields with text for people.
    """
    escape = _escape_of(typing.cast("Any", type(decoded)))
    return decoded if escape is None else typing.cast("T", escape(decoded))


@functools.cache
def _escape_of(hint: Any) -> Escape | None:  # noqa: ANN401 - any annotation
    """Return the function that makes a value of an annotated type plain; None if it holds no text for people."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        lengths = [m.extra[FOR_PEOPLE] for m in hint.__metadata__ if isinstance(m, msgspec.Meta) and m.extra]
        return _shortened(lengths[0]) if lengths else _escape_of(hint.__origin__)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return _escape_of_struct(hint)
    parts = [_escape_of(part) for part in typing.get_args(hint) if part is not Ellipsis and not isinstance(part, str)]
    if not any(parts):
        return None
    if origin in {typing.Union, types.UnionType}:
        (escape,) = [part for part in parts if part is not None]
        return lambda value: None if value is None else escape(value)
    if origin is dict:
        key, item = (part or _same for part in parts)
        return lambda value: {key(name): item(content) for name, content in value.items()}
    each = parts[0] or _same
    return lambda value: tuple(each(item) for item in value)


def _escape_of_struct(kind: type[msgspec.Struct]) -> Escape | None:
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {name: _escape_of(hints[name]) for name in kind.__struct_fields__}
    escapes = {name: escape for name, escape in found.items() if escape is not None}
    if not escapes:
        return None

    def escape_fields(value: msgspec.Struct) -> msgspec.Struct:
        before = {name: getattr(value, name) for name in escapes}
        after = {name: escape(before[name]) for name, escape in escapes.items()}
        return value if after == before else msgspec.structs.replace(value, **after)

    return escape_fields


def _shortened(length: int) -> Escape:
    return lambda text: plain(text)[:length]


def _same(value: Any) -> Any:  # noqa: ANN401 - any value
    return value
