"""A first check of the data file, before the network is used: faults that need no artifact to be seen."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from edge_runtime.engine.examples import ExampleReader, Fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """The content of a file, in numbers."""

    num_examples: int
    num_bytes: int
    """Size of the file."""
    num_texts: int
    """Number of them that are raw text, which needs a tokenizer."""
    warnings: tuple[str, ...] = ()
    """Warnings for its owner, one line each."""


def count_examples(path: Path) -> int:
    """Number of examples of a file, see :func:`look_at_examples`, which raises the same."""
    return look_at_examples(path).num_examples


def look_at_examples(path: Path) -> Examples:
    """Read a file as far as can be without the artifact, see :mod:`edge_runtime.engine.examples`.

    Whether a run classifies is not known yet: labels that could not be used are warned of. Which classes there are,
    vocabulary and lengths are checked when the artifact is known.

    Raises:
        DataInvalidError: the file cannot be read, or a line is not an example; names file and line.
        DataEmptyError: there is none.
    """
    reader = ExampleReader(path, Fields(label="label"), is_label_optional=True)
    count = num_texts = 0
    for example in reader:
        count += 1
        num_texts += example.text is not None
    return Examples(num_examples=count, num_bytes=path.stat().st_size, num_texts=num_texts, warnings=reader.warnings())
