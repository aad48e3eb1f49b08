"""``fedspine methods``: every method by name, for people and for programs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Final

import msgspec

from broker_server.errors import ConfigError
from broker_server.methods.by_name import METHODS
from broker_server.methods.own_options import OPTION, TEXT, declared
from broker_server.naming import option_name
from broker_server.ranges import expected

NARROWEST: Final = 40
"""Columns that text is wrapped to at least."""


class OwnOption(msgspec.Struct, frozen=True, kw_only=True):
    """An own option of a method."""

    name: str
    """Name in the value of ``--method-options``."""
    expected: str
    """Permitted values, for people."""
    default: object
    about: str
    """Its meaning, with its default."""


class MethodEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One method in the output of ``fedspine methods --json``."""

    name: str
    """Value for ``--method``."""
    package: str
    """The package that offers it."""
    label: str = ""
    """Name in tables."""
    about: str = ""
    source: str = ""
    """Source; empty = its package."""
    work: str = ""
    """Kind of work that devices are asked for."""
    asks: str = ""
    """Description of that work."""
    arms: str = ""
    """Form of its arms, such as ``RATIO:RANK``; empty = it has one arm."""
    options: tuple[OwnOption, ...] = ()
    """Options of its own."""
    error: str = ""
    """Reason why it cannot be used; only name and package are given then."""


def entries() -> list[MethodEntry]:
    """All methods, FedSpine's own first, in the order of their declaration; then those of installed packages."""
    names = [*METHODS.own, *(name for name in METHODS.names() if name not in METHODS.own)]
    return [_entry(name) for name in names]


def as_json(found: list[MethodEntry]) -> str:
    """A JSON array of :class:`MethodEntry`, indented."""
    return json.dumps(msgspec.to_builtins(found), indent=2, ensure_ascii=False)


def as_text(found: list[MethodEntry], columns: int) -> str:
    """A paragraph for each method, then a description of each kind of work.

    Args:
        found: the methods.
        columns: width of the terminal.
    """
    indent = max(len(entry.name) for entry in found) + 2
    lines = [line for entry in found for line in _paragraph(entry, indent, max(columns, NARROWEST))]
    works = {entry.work: f"{entry.asks} (arms: {entry.arms or 'one'})" for entry in found if entry.work}
    lines += ["", "What devices are asked for:"]
    lines += [f"  {name}: {asks}" for name, asks in works.items()]
    if own := [line for entry in found for line in _options(entry, max(columns, NARROWEST))]:
        lines += ["", f"Options that methods have for themselves ({option_name(OPTION)} {TEXT}):", *own]
    lines += [
        "",
        'Use one with `fedspine run --method NAME`, or `method = "NAME"` in config.toml; what you set yourself wins.',
    ]
    return "\n".join(lines)


def _entry(name: str) -> MethodEntry:
    package = METHODS.package_of(name)
    try:
        preset = METHODS.find(name)
        kind = preset.method.own_options
        options = {} if kind is None else declared(kind)
    except ConfigError as error:
        return MethodEntry(name=name, package=package, error=str(error))
    method = preset.method
    own_work = method.device_method or method.__name__
    return MethodEntry(
        name=name,
        package=package,
        label=preset.label,
        about=preset.about,
        source=preset.source,
        work=preset.work if isinstance(preset.work, str) else own_work,
        asks=method.asks,
        arms=method.axes.form,
        options=tuple(
            OwnOption(name=one.name, expected=expected(one.kind), default=one.default, about=one.help)
            for one in options.values()
        ),
    )


def _options(entry: MethodEntry, columns: int) -> Iterator[str]:
    for one in entry.options:
        text = f"{entry.name}: {one.name}, {one.expected}: {one.about}"
        yield from textwrap.wrap(text, columns, initial_indent="  ", subsequent_indent=" " * 4, break_long_words=False)


def _paragraph(entry: MethodEntry, indent: int, columns: int) -> Iterator[str]:
    about = f"{entry.label}: {entry.about}." if not entry.error else f"cannot be used: {entry.error}"
    notes = [f"Source: {entry.source}." if entry.source else "", f"Work: {entry.work}." if entry.work else ""]
    outside = "" if entry.package == "fedspine" else f"Package: {entry.package}."
    text = " ".join(part for part in (about, *notes, outside) if part)
    wrapped = textwrap.wrap(text, columns - indent, break_long_words=False)
    yield f"{entry.name:<{indent}}{wrapped[0]}"
    yield from (" " * indent + line for line in wrapped[1:])
