"""Options: a setting is declared once, by the field of the class that owns it. Command line and files read that.

A class of settings holds others. A person sees all options side by side, by their names: those of the command line, of
``run.toml`` and of a comparison's tables. ``config.toml`` has a table for each class, with the names of its fields.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import tomllib
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, TypeVar

import msgspec

from broker_server.errors import ConfigError
from broker_server.naming import option_name, said_of
from broker_server.ranges import check_value
from edge_runtime.system.registry import nearest

T = TypeVar("T")

Scalar = str | int | float | bool
"""A value as it is written."""


class Panel(enum.StrEnum):
    """Groups of options in ``fedspine run --help``, in this order; methods have others, which follow on training."""

    MODEL = "Model and data"
    TRAINING = "Training"
    PRUNING = "Pruning"
    RESULT = "Result"
    PROCESSES = "Processes"
    EMULATION = "Emulated devices"


@dataclasses.dataclass(frozen=True, slots=True)
class Written:
    """The written form of a value, if that is not the value itself."""

    kind: Any
    """Annotation of the written form, with its range."""
    read: Callable[..., Any]
    write: Callable[..., Scalar | None]
    by: str = ""
    """Field of the same class that decides how: ``read`` and ``write`` are given its value too; empty = none."""


def zero_for_none(kind: object, zero: Scalar) -> Written:
    """None is written as 0, which the value itself is never.

    Args:
        kind: annotation of the number, 0 included.
        zero: 0, as an integer or a float.
    """
    return Written(kind, lambda value: value or None, lambda value: zero if value is None else value)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A declared option."""

    name: str
    """As people write it, with underscores."""
    path: tuple[str, ...]
    """Field of the class of settings, through the classes that it holds."""
    kind: Any
    """Type of the written value, with its range."""
    help: str
    panel: str
    formerly: str
    """Name that it had in earlier releases, still read; empty = none."""
    written: Written | None
    default: object
    """Of the field, as it is written; ``dataclasses.MISSING`` = a value is needed."""


_DECLARED: Final = "option"
_WRITTEN: Final = "written"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Declared:
    panel: str
    help: str
    name: str
    formerly: str


def option(
    panel: str,
    text: str,
    default: object = dataclasses.MISSING,
    *,
    name: str = "",
    formerly: str = "",
    by: str = "",
    written: Written | None = None,
) -> Any:  # noqa: ANN401 - as dataclasses.field
    """A field that is an option of the command line too.

    Args:
        panel: where ``--help`` shows it.
        text: its meaning.
        default: of the field; none = a value is needed, which ``fedspine run`` takes from the task.
        name: of the option, where that is not the field's.
        formerly: its name in earlier releases.
        by: source of the default, if that is not the default of the field.
        written: how a value is written, if that is not the value itself.
    """
    shown = by or ("task" if default is dataclasses.MISSING else "")
    if "(default:" not in text:
        text += f" (default: by {shown})" if shown else f" (default: {default})" if default not in {"", None} else ""
    declared = _Declared(panel=panel, help=f"{text}.", name=name, formerly=formerly)
    return dataclasses.field(default=default, metadata={_DECLARED: declared, _WRITTEN: written})


def _by_class(function: Callable[[type], T]) -> Callable[[type], T]:
    """Call a function once for each class. mypy finds no hash of a ``type[T]``, which ``functools.cache`` asks for."""
    return functools.cache(function)


@_by_class
def _hints(kind: type) -> Mapping[str, Any]:
    """Annotations of a class's fields, with their ranges; looked up once, for that compiles each of them."""
    return typing.get_type_hints(kind, include_extras=True)


@_by_class
def options_of(kind: type) -> Mapping[str, Option]:
    """Options of a class of settings and of those that it holds, by name, panel by panel."""
    hints = _hints(kind)
    found: dict[str, Option] = {}
    for field in dataclasses.fields(kind):
        hint, declared, written = hints[field.name], field.metadata.get(_DECLARED), field.metadata.get(_WRITTEN)
        if declared is not None:
            name = declared.name or field.name
            found[name] = Option(
                name=name,
                path=(field.name,),
                kind=hint if written is None else written.kind,
                help=declared.help,
                panel=declared.panel,
                formerly=declared.formerly,
                written=written,
                default=_default(field, written),
            )
        elif dataclasses.is_dataclass(hint):
            inner = options_of(typing.cast("type", hint)).values()
            found |= {one.name: dataclasses.replace(one, path=(field.name, *one.path)) for one in inner}
    panels = [str(panel) for panel in Panel]

    def place(option: Option) -> float:
        return panels.index(option.panel) if option.panel in panels else panels.index(Panel.TRAINING) + 0.5

    return types.MappingProxyType(dict(sorted(found.items(), key=lambda item: place(item[1]))))


def _default(field: dataclasses.Field[Any], written: Written | None) -> object:
    """The default of a field as it is written, where that does not hang on another field."""
    if written is None or written.by or field.default is dataclasses.MISSING:
        return field.default
    return written.write(field.default)


def renamed(values: Mapping[str, T], kind: type) -> dict[str, T]:
    """The values under the names that options have now, where they have those of earlier releases."""
    names = {one.formerly: one.name for one in options_of(kind).values() if one.formerly}
    return {names.get(name, name): value for name, value in values.items()}


def check_values(values: Mapping[str, object], kind: type) -> None:
    """Refuse a value that an option could not have.

    Args:
        values: by name of the option.
        kind: class of settings.

    Raises:
        ConfigError: a name is unknown, or a value is not permitted; names option, value and permitted values.
    """
    options = options_of(kind)
    for name, value in values.items():
        if name not in options:
            msg = f"key {name!r} is not known; {nearest(name, tuple(options))}"
            raise ConfigError(msg)
        check_value(option_name(name), value, options[name].kind)


def build(kind: type[T], values: Mapping[str, object]) -> T:
    """Settings from the values of options, as they are written.

    Raises:
        ConfigError: see :func:`check_values`, or the class refuses them.
        ArmError: an arm outside its range.
    """
    check_values(values, kind)
    tree: dict[str, Any] = {}
    options = options_of(kind)
    for name, value in values.items():
        one = options[name]
        *tables, last = one.path
        table = functools.reduce(lambda table, key: table.setdefault(key, {}), tables, tree)
        table[last] = value
    return _made(kind, tree)


def changed(settings: T, changes: Mapping[str, object]) -> T:
    """Settings whose fields are all options, with other values for some.

    Raises:
        ConfigError: see :func:`build`.
        ArmError: an arm outside its range.
    """
    return build(type(settings), {**flat(settings), **changes})


def flat(settings: object) -> dict[str, Scalar]:
    """Values of all options, by name, as they are written; without those that are None."""
    found: dict[str, Scalar] = {}
    for name, one in options_of(type(settings)).items():
        *owners, last = one.path
        value = _write(functools.reduce(getattr, owners, settings), last, one.written)
        if value is not None:
            found[name] = value
    return found


def flat_toml(settings: object, without: Collection[str] = ()) -> str:
    """All options as TOML, by name, but for those named in ``without``."""
    return "".join(f"{name} = {toml_value(value)}\n" for name, value in flat(settings).items() if name not in without)


def to_toml(settings: object, without: Collection[str] = ()) -> str:
    """Settings as TOML that :func:`from_toml` reads: keys are names of fields, a table for each class inside.

    Args:
        settings: the settings.
        without: names of options that are left out.
    """
    keys, tables = [], []
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value, declared = getattr(settings, field.name), field.metadata.get(_DECLARED)
        if dataclasses.is_dataclass(value):
            if inside := to_toml(value, without if declared is None else ()):
                tables.append(f"\n[{field.name}]\n{inside}")
            continue
        if declared is not None and (declared.name or field.name) in without:
            continue
        value = _write(settings, field.name, field.metadata.get(_WRITTEN))
        if value is not None:
            keys.append(f"{field.name} = {toml_value(value)}\n")
    return "".join([*keys, *tables])


def from_toml(
    text: str, kind: type[T], complete: Callable[[Mapping[str, Any]], Mapping[str, object]] | None = None
) -> T:
    """Settings from TOML; see :func:`to_toml`.

    Args:
        text: of the file.
        kind: class of settings.
        complete: given the options that the file has, by name, returns all that count: those and others.

    Raises:
        ConfigError: not TOML, an unknown or missing key, a wrong type, or a value out of range.
        ArmError: an arm outside its range.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        msg = f"configuration is not TOML: {error}"
        raise ConfigError(msg) from error
    if complete is not None:
        _complete(table, kind, complete)
    return _from_table(table, kind, "")


def _complete(table: dict[str, Any], kind: type, complete: Callable[[Mapping[str, Any]], Mapping[str, object]]) -> None:
    """Add the values that a table's options imply to the table, and to those in it."""
    options = options_of(kind)
    found = {name: _at(table, one.path) for name, one in options.items()}
    given = {name: value for name, value in found.items() if value is not None}
    added = {name: value for name, value in complete(given).items() if name not in given or value != given[name]}
    check_values(added, kind)
    for name, value in added.items():
        *tables, last = options[name].path
        inner = functools.reduce(lambda outer, key: outer.setdefault(key, {}), tables, table)
        inner[last] = value


def _at(table: object, path: tuple[str, ...]) -> Any:  # noqa: ANN401 - any value of TOML
    """Return the value under a key of a table, or of a table in it; None = it has no such key."""
    for key in path:
        table = table.get(key) if isinstance(table, dict) else None
    return table


def _from_table(table: object, kind: type[T], where: str) -> T:
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
    hints = _hints(kind)
    plain = [name for name in table if not dataclasses.is_dataclass(hints[name])]
    for name in plain:
        written = fields[name].metadata.get(_WRITTEN)
        check_value(name, table[name], hints[name] if written is None else written.kind)
    values = {name: _read(table, fields[name], hints[name], fields) for name in plain}
    for name in table.keys() - values.keys():
        values[name] = _from_table(table[name], typing.cast("type", hints[name]), f"{where}.{name}" if where else name)
    return kind(**values)


def _read(
    table: Mapping[str, object], field: dataclasses.Field[Any], hint: object, fields: Mapping[str, Any]
) -> object:
    """The value of a field.

    Args:
        table: written values of the fields of its class, by name, already checked.
        field: the field.
        hint: its annotation.
        fields: all of its class.
    """
    written: Written | None = field.metadata.get(_WRITTEN)
    if written is None:
        return msgspec.convert(table[field.name], hint)
    beside = (table.get(written.by, fields[written.by].default),) if written.by else ()
    return written.read(msgspec.convert(table[field.name], written.kind), *beside)


def _write(settings: object, name: str, written: Written | None) -> Any:  # noqa: ANN401 - any value of a field
    """The value of a field as it is written."""
    value = getattr(settings, name)
    if written is None:
        return value
    return written.write(value, *((getattr(settings, written.by),) if written.by else ()))


def _made(kind: type[T], tree: Mapping[str, Any]) -> T:
    """Settings from the written values of their fields, and of the fields of the classes that they hold."""
    hints = _hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, object] = {}
    for name, value in tree.items():
        if dataclasses.is_dataclass(hints[name]):
            values[name] = _made(typing.cast("type", hints[name]), value)
            continue
        declared: _Declared = fields[name].metadata[_DECLARED]
        with said_of(declared.name or name):
            values[name] = _read(tree, fields[name], hints[name], fields)
    return kind(**values)


def toml_value(value: object) -> str:
    """A boolean, number or text as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    # JSON's escapes are valid in TOML, except for one control character that JSON does not escape.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
