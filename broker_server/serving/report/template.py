"""Templates of self-contained HTML pages, and the format of their times."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from pathlib import Path

import jinja2


def load_template(file: Path, filters: Mapping[str, Callable[..., str]] | None = None) -> jinja2.Template:
    """A template whose values are escaped, and which refuses a name that it is not given.

    Args:
        file: where it lies.
        filters: those that its expressions may use beside jinja's own.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(file.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters or {}
    return environment.get_template(file.name)


def moment_text(unix_s: float) -> str:
    """An instant for people, to the minute.

    >>> moment_text(0.0)
    '1970-01-01 00:00 UTC'
    """
    return dt.datetime.fromtimestamp(unix_s, tz=dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
