"""Single files of a checkpoint, from a directory or from the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from models.errors import ModelNotFoundError


def file_of(model: str | Path, name: str) -> Path | None:
    """Return the path of a checkpoint's file on this machine; None if it has no such file."""
    found = cached_file(
        str(model),
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def json_of(model: str | Path, name: str) -> dict[str, Any] | None:
    """A file that holds an object; None if it has no such file.

    Raises:
        ModelNotFoundError: it holds something else.
    """
    path = file_of(model, name)
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{name} of model {model} cannot be read ({error}): copy the model again"
        raise ModelNotFoundError(msg) from error
    if not isinstance(found, dict):
        msg = f"{name} of model {model} is not a JSON object: copy the model again"
        raise ModelNotFoundError(msg)
    return found
