"""Options of a package's method: declared by a dataclass of the package, given as one text or as a table of a file."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from broker_server.errors import ConfigError
from broker_server.options import Option, Scalar, build, flat, option, options_of
from broker_server.ranges import check_value
from edge_runtime.system.registry import nearest

OPTION: Final = "method_options"
"""The option of a run that holds all own options of a method."""

TEXT: Final = "NAME=VALUE,..."
"""Written form of own options."""


def method_option(text: str, default: Scalar) -> Any:  # noqa: ANN401 - as dataclasses.field
    """A field that is an option of a package's method.

    Its annotation is ``bool``, ``int``, ``float``, ``str`` or a ``Literal`` of texts, with its range as
    ``Annotated[..., msgspec.Meta(...)]``.

    Args:
        text: meaning of the option.
        default: value if none is given.
    """
    return option("", text, default)


def declared(kind: type) -> Mapping[str, Option]:
    """Options of a package's class, by name.

    Raises:
        ConfigError: the class has a field that cannot be an option.
    """
    called = f"{kind.__module__}.{kind.__name__}"
    try:
        found, fields = options_of(kind), {field.name for field in dataclasses.fields(kind)}
        for one in found.values():
            _check(one.name, one.default, one.kind)
        kind()
    except Exception as error:
        msg = f"options of {called} cannot be used ({type(error).__name__}: {error}): fix its package"
        raise ConfigError(msg) from error
    plain = {name for name, one in found.items() if _base(one.kind) in {bool, int, float, str}}
    if others := sorted(fields - plain):
        msg = f"{others[0]} of {called} is no method_option() of a boolean, a number or a text: fix its package"
        raise ConfigError(msg)
    return found


def given(kind: type, values: object) -> Mapping[str, object]:
    """Parse given options; options may be missing.

    Args:
        kind: class that declares the options.
        values: ``NAME=VALUE,...``, or a table.

    Raises:
        ConfigError: an option is unknown, given twice, of another type, or outside its range.
    """
    options = declared(kind)
    words = {} if isinstance(values, Mapping) else _split(values)
    found = dict(values) if isinstance(values, Mapping) else words
    if unknown := sorted(found.keys() - options.keys()):
        msg = f"{unknown[0]!r} is not known; {nearest(unknown[0], tuple(options))}"
        raise ConfigError(msg)
    found |= {name: _read(word, options[name].kind) for name, word in words.items()}
    for name, value in found.items():
        _check(name, value, options[name].kind)
    return found


def made(kind: type, values: Mapping[str, object]) -> object:
    """Make an object of the package's class from values of :func:`given`; missing options have their defaults."""
    return build(kind, values)


def as_text(values: Mapping[str, object]) -> str:
    """Values by name as one text, which :func:`given` reads."""
    return ",".join(f"{name}={_word(value)}" for name, value in values.items())


def text_of(options: object) -> str:
    """All options of an object of the package's class as one text."""
    return as_text(flat(options))


def _split(text: object) -> dict[str, Any]:
    check_value(OPTION, text, str)
    found: dict[str, Any] = {}
    for part in str(text).split(",") if text else ():
        name, sign, word = (each.strip() for each in part.partition("="))
        if not sign:
            msg = f"{part!r} has no value, expected {TEXT}"
            raise ConfigError(msg)
        if name in found:
            msg = f"{name!r} is given twice: leave one of them out"
            raise ConfigError(msg)
        found[name] = word
    return found


def _read(word: str, kind: object) -> object:
    """Parse a word as a value of a type; the word itself if that fails."""
    if _base(kind) is bool:
        return {"true": True, "false": False}.get(word, word)
    try:
        return msgspec.convert(word, _base(kind), strict=False)
    except msgspec.ValidationError:
        return word


def _check(name: str, value: object, kind: object) -> None:
    check_value(name, value, kind)
    if isinstance(value, str) and ("," in value or value != value.strip() or not value.isprintable()):
        msg = f"{name} is {value!r}, expected text without a comma, and without spaces at its ends"
        raise ConfigError(msg)


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _base(kind: Any) -> Any:  # noqa: ANN401 - any annotation
    """The type without its range; ``str`` of a choice of texts."""
    plain = kind.__origin__ if typing.get_origin(kind) is typing.Annotated else kind
    choices = typing.get_args(plain) if typing.get_origin(plain) is typing.Literal else ()
    return str if choices and all(isinstance(choice, str) for choice in choices) else plain
