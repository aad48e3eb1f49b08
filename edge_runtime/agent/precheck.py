"""A first check of the data file, before the network is used: it finds the faults that show without an artifact."""

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
    """Number of examples that are raw text, which needs a tokenizer."""
    warnings: tuple[str, ...] = ()
    """Warnings for the file's owner, one line each."""


def count_examples(path: Path) -> int:
    """Number of examples of a file; raises the errors of :func:`look_at_examples`."""
    return look_at_examples(path).num_examples


def look_at_examples(path: Path) -> Examples:
    """Check a file as far as is possible without the artifact, see :mod:`edge_runtime.engine.examples`.

    The task of the run is not known yet, so labels that cannot be used give a warning. Classes, vocabulary and lengths
    are checked when the artifact is known.

    Raises:
        DataInvalidError: the file cannot be read, or a line is not an example; names file and line.
        DataEmptyError: there are no examples.
    """
    reader = ExampleReader(path, Fields(label="label"), is_label_optional=True)
    count = num_texts = 0
    for example in reader:
        count += 1
        num_texts += example.text is not None
    return Examples(num_examples=count, num_bytes=path.stat().st_size, num_texts=num_texts, warnings=reader.warnings())
