"""The whole job's data: read, checked and normalised before anything starts, so that devices meet no surprise."""

from __future__ import annotations

import codecs
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from broker_server.errors import DataEmptyError, DataInvalidError, UnknownLabelError
from broker_server.run.docstrings import docstring_examples, standard_library
from edge_runtime.wire.files import write_atomically

Example = dict[str, object]
"""One line of a data file: ``text`` (or ``input_ids``), ``label`` for classification, and whatever else it carries."""

TEXT: Final = "text"
LABEL: Final = "label"
INPUT_IDS: Final = "input_ids"
HELD_OUT_RATIO: Final = 0.1
"""Share of the examples that is held out where no test file is given."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Names of the fields in the user's files; devices always get ``text`` and ``label``."""

    text: str = TEXT
    label: str | None = None
    """None for tasks without labels."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Training and held-out examples, and the classes (sorted; empty for causal-lm)."""

    train: list[Example]
    test: list[Example]
    labels: tuple[str, ...]


def load_data(data: Path | None, test: Path | None, fields: Fields, rng: np.random.Generator) -> DataSet:
    """Read everything that a run trains and is measured on.

    Args:
        data: JSON lines; None = the docstrings of the standard library.
        test: held-out JSON lines; None = a random tenth of ``data``.
        fields: where text and labels are.
        rng: draws the held-out examples.

    Raises:
        DataInvalidError: a file cannot be read, a line is not an object, or lacks a field.
        DataEmptyError: a file holds no example.
        UnknownLabelError: a held-out label that training never sees.
    """
    if data is None:
        train = docstring_examples(standard_library())
        if not train:
            msg = "this Python has no sources of its standard library: give --data FILE.jsonl"
            raise DataEmptyError(msg)
    else:
        train = read_examples(data, fields)
    if test is None:
        train, held_out = hold_out(train, rng)
    else:
        held_out = read_examples(test, fields)
    labels = () if fields.label is None else sort_labels({str(example[LABEL]) for example in train})
    for number, example in enumerate(held_out, start=1):
        if labels and str(example[LABEL]) not in labels:
            msg = f"{test}, example {number}: label {example[LABEL]!r} is in no training example; known: {labels[:10]}"
            raise UnknownLabelError(msg)
    return DataSet(train=train, test=held_out, labels=labels)


def sort_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Classes in the order of the model's outputs: by number where all are numbers, else by letters.

    >>> sort_labels({"10", "9"}), sort_labels({"b", "10", "a"})
    (('9', '10'), ('10', 'a', 'b'))
    """
    found = sorted(labels)
    return tuple(sorted(found, key=int) if all(label.isdecimal() for label in found) else found)


def read_examples(path: Path, fields: Fields) -> list[Example]:
    """All examples of a JSON-lines file, fields renamed to ``text`` and ``label``, labels as text; no empty lines.

    Raises:
        DataInvalidError: the file cannot be read, a line is not a JSON object, or lacks a field.
        DataEmptyError: there is no example.
    """
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    except OSError as error:
        msg = f"data file {path} cannot be read: {error.strerror or error}"
        raise DataInvalidError(msg) from error
    examples = [_example(line, f"{path}, line {n}", fields) for n, line in enumerate(lines, start=1) if line.strip()]
    if not examples:
        msg = f"data file {path} holds no example: expected JSON lines with {fields.text!r}"
        raise DataEmptyError(msg)
    return examples


def _example(line: bytes, where: str, fields: Fields) -> Example:
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        msg = f"{where}: not JSON ({error}); expected one JSON object a line"
        raise DataInvalidError(msg) from error
    if not isinstance(value, dict):
        msg = f"{where}: expected a JSON object, got {type(value).__name__}"
        raise DataInvalidError(msg)
    example: Example = dict(value)
    if INPUT_IDS not in example:
        text = example.pop(fields.text, None)
        if not isinstance(text, str):
            msg = (
                f"{where}: field {fields.text!r} must hold text, got {type(text).__name__}; fields: {sorted(value)[:8]}"
            )
            raise DataInvalidError(msg)
        example[TEXT] = text
    if fields.label is not None:
        label = example.pop(fields.label, None)
        if isinstance(label, bool) or not isinstance(label, str | int):
            got = f"{type(label).__name__}; fields: {sorted(value)[:8]}"
            msg = f"{where}: field {fields.label!r} must hold text or a whole number, got {got}"
            raise DataInvalidError(msg)
        example[LABEL] = str(label)
    return example


def hold_out(examples: Sequence[Example], rng: np.random.Generator) -> tuple[list[Example], list[Example]]:
    """Training examples, and a random HELD_OUT_RATIO of all (at least one), both in the order they came.

    Raises:
        DataEmptyError: fewer than two examples.
    """
    if len(examples) < 2:
        msg = f"{len(examples)} examples cannot be divided into training and held-out ones: give --test FILE.jsonl"
        raise DataEmptyError(msg)
    size = max(1, round(len(examples) * HELD_OUT_RATIO))
    chosen = set(rng.choice(len(examples), size=size, replace=False).tolist())
    train = [example for index, example in enumerate(examples) if index not in chosen]
    return train, [examples[index] for index in sorted(chosen)]


def write_examples(path: Path, examples: Iterable[Mapping[str, object]]) -> None:
    """Write JSON lines, all or nothing.

    Raises:
        DiskFullError: there is no space.
    """
    lines = (json.dumps(example) for example in examples)
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
