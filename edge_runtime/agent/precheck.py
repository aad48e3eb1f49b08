"""A look at the data file before the network is touched: what needs no artifact to be seen is said at once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from edge_runtime.engine.data import MAX_LINE_BYTES
from edge_runtime.engine.errors import DataEmptyError, DataInvalidError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """What a file holds."""

    num_examples: int
    num_texts: int
    """How many of them are raw text, which needs a tokenizer."""


def count_examples(path: Path) -> int:
    """Number of examples of a file, see :func:`look_at_examples`, which raises the same."""
    return look_at_examples(path).num_examples


def look_at_examples(path: Path) -> Examples:
    """Lines that are examples as far as can be told: objects with ``text`` or ``input_ids``.

    Labels, token ids and lengths are checked when the artifact is known.

    Raises:
        DataInvalidError: the file cannot be read, or a line is not such an object; names file and line.
        DataEmptyError: there is none.
    """
    count = num_texts = 0
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    num_texts += _check(line, f"{path}:{number}")
                    count += 1
    except OSError as error:
        msg = f"data file {path} cannot be read: {error.strerror}"
        raise DataInvalidError(msg) from error
    if count == 0:
        msg = f"{path} holds no example: expected JSON lines with 'text' or 'input_ids'"
        raise DataEmptyError(msg)
    return Examples(num_examples=count, num_texts=num_texts)


def _check(line: bytes, where: str) -> bool:
    """Refuse a line that is no example; returns whether it is raw text."""
    expected = "expected one JSON object a line with 'text' or 'input_ids'"
    if len(line) > MAX_LINE_BYTES:
        msg = f"{where}: line is longer than {MAX_LINE_BYTES} bytes; split the document"
        raise DataInvalidError(msg)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        msg = f"{where}: not JSON in UTF-8 ({error}); {expected}"
        raise DataInvalidError(msg) from error
    if not isinstance(record, dict):
        msg = f"{where}: got {type(record).__name__}, {expected}"
        raise DataInvalidError(msg)
    if "text" not in record and "input_ids" not in record:
        found = ", ".join(repr(name) for name in list(record)[:8]) or "none"
        msg = f"{where}: field 'text' (or 'input_ids') is missing; found {found}"
        raise DataInvalidError(msg)
    return "input_ids" not in record
