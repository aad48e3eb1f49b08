"""The whole job's data: read, checked and normalised before anything starts, so that devices meet no surprise.

:mod:`edge_runtime.engine.examples` defines the contents of a line; devices read their files with it too.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from broker_server.errors import ConfigError
from broker_server.experiments.run.docstrings import KEY_FIELD, docstring_examples, standard_library
from broker_server.experiments.run.split import SplitSpec
from edge_runtime.engine.errors import DataEmptyError, DataInvalidError, UnknownLabelError
from edge_runtime.engine.examples import INPUT_IDS, ExampleReader, Fields
from edge_runtime.engine.examples import Example as Line
from edge_runtime.engine.labels import Classes, alike, sort_labels
from edge_runtime.formats.manifest import Task
from edge_runtime.system.files import write_stream_atomically

Example = dict[str, object]
"""``text`` (or ``input_ids``), ``label`` (a class name) for classification, and ``key`` where the split asks for it."""

TEXT: Final = "text"
LABEL: Final = "label"
KEY: Final = KEY_FIELD
HELD_OUT_RATIO: Final = 0.1
"""Share of the examples that is held out where no test file is given."""

_MANY_CLASSES: Final = 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Training and held-out examples, and the classes (sorted; empty for causal-lm)."""

    train: list[Example]
    test: list[Example]
    labels: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    """Warnings about the files for the user, one line each."""


def needed_fields(task: Task, spec: SplitSpec, text: str, label: str) -> Fields:
    """Return the fields that a run reads from its files.

    Args:
        task: text-classification needs labels.
        spec: the split, which may need a field too.
        text: field that holds the text.
        label: field that holds the class.
    """
    classify = task == "text-classification"
    by_label = label if spec.kind == "dirichlet" and not classify else None
    return Fields(
        text=text,
        label=label if classify else None,
        key=spec.field if spec.kind == "by-key" else by_label,
        text_advice="name the one that holds the text with --text-field",
        label_advice="name the one that holds the class with --label-field",
    )


def load_data(data: Path | None, test: Path | None, fields: Fields, rng: np.random.Generator) -> DataSet:
    """Read everything that a run trains and is measured on.

    Args:
        data: JSON lines; None = the docstrings of the standard library.
        test: held-out JSON lines; None = a random tenth of ``data``.
        fields: where text, labels and keys are.
        rng: draws the held-out examples.

    Raises:
        DataInvalidError: a file cannot be read, a line is not an example, or all examples have one class.
        DataEmptyError: a file holds no example.
        UnknownLabelError: a held-out label that training never sees.
        ConfigError: the split needs a field that docstrings have not.
    """
    warnings: list[str] = []
    train = _docstrings(fields) if data is None else read_examples(data, fields, warnings.append)
    labels = () if fields.label is None else sort_labels({str(example[LABEL]) for example in train})
    if data is not None and labels:
        warnings += _check_classes(data, fields, train, labels)
    if test is None:
        train, held_out = hold_out(train, rng)
    else:
        held_out = _read_held_out(test, fields, warnings.append, labels)
        if data is not None and test.samefile(data):
            warnings.append(
                f"{test}: --test and --data are the same file, so the figures are of examples that are trained on"
            )
    return DataSet(train=train, test=held_out, labels=labels, warnings=tuple(warnings))


def read_examples(path: Path, fields: Fields, warn: Callable[[str], None] | None = None) -> list[Example]:
    """All examples of a JSON-lines file, fields renamed to ``text``, ``label`` and ``key``, labels as text.

    Args:
        path: JSON lines.
        fields: the needed fields; all others are left out.
        warn: takes the warnings for the user, a line at a time.

    Raises:
        DataInvalidError: the file cannot be read, or a line is not an example.
        DataEmptyError: there is no example.
    """
    reader = ExampleReader(path, fields)
    examples = [_example(line, None if line.label is None else str(line.label)) for line in reader]
    _tell(reader, warn)
    return examples


def _read_held_out(path: Path, fields: Fields, warn: Callable[[str], None], labels: tuple[str, ...]) -> list[Example]:
    """The test file; its labels are those of training."""
    reader = ExampleReader(path, fields._replace(key=None))
    classes = Classes(labels)
    examples = []
    for line in reader:
        index = None if line.label is None else classes.named(line.label)
        if line.label is not None and index is None:
            msg = f"{reader.lines.place()} {classes.unknown(line.label, 'the training data', can_be_index=False)}"
            raise UnknownLabelError(msg)
        examples.append(_example(line, None if index is None else labels[index]))
    _tell(reader, warn)
    return examples


def _example(line: Line, label: str | None) -> Example:
    example: Example = {TEXT: line.text} if line.input_ids is None else {INPUT_IDS: line.input_ids}
    if label is not None:
        example[LABEL] = label
    if line.key is not None:
        example[KEY] = line.key
    return example


def _tell(reader: ExampleReader, warn: Callable[[str], None] | None) -> None:
    if warn is not None:
        for warning in reader.warnings():
            warn(warning)


def _docstrings(fields: Fields) -> list[Example]:
    if fields.key not in {None, KEY}:
        msg = f"the docstrings have the field {KEY!r} alone, not {fields.key!r}: give --split by-key or iid, or --data"
        raise ConfigError(msg)
    examples = docstring_examples(standard_library())
    if not examples:
        msg = "this Python has no sources of its standard library: give --data FILE.jsonl"
        raise DataEmptyError(msg)
    return examples


def _check_classes(path: Path, fields: Fields, examples: list[Example], labels: tuple[str, ...]) -> list[str]:
    """Refuse a single class; warn of classes that are likely one, and of a field that is likely no class."""
    counts = Counter(str(example[LABEL]) for example in examples)
    if len(labels) == 1:
        msg = (
            f"{path}: all {len(examples)} examples have the label {labels[0]!r} in {fields.label!r}: "
            "to classify, give examples of two classes or more"
        )
        raise DataInvalidError(msg)
    warnings = [
        f"{path}: classes {' and '.join(f'{name!r} ({counts[name]} examples)' for name in group)} are kept apart, and "
        "differ only in case, blanks or form; if they are one, write them alike"
        for group in alike(labels)
    ]
    if len(labels) > max(_MANY_CLASSES, len(examples) // 2):
        warnings.append(
            f"{path}: {fields.label!r} has {len(labels)} different values in {len(examples)} examples; "
            "if it is not the class, name that with --label-field"
        )
    return warnings


def hold_out(examples: Sequence[Example], rng: np.random.Generator) -> tuple[list[Example], list[Example]]:
    """Training examples, and a random HELD_OUT_RATIO of all (at least one), both in the order they came.

    An example that is the last one of its class stays with training.

    Raises:
        DataEmptyError: fewer than two examples, or none that could be spared.
    """
    if len(examples) < 2:
        msg = f"{len(examples)} examples cannot be divided into training and held-out ones: give --test FILE.jsonl"
        raise DataEmptyError(msg)
    size = max(1, round(len(examples) * HELD_OUT_RATIO))
    chosen = set(rng.choice(len(examples), size=size, replace=False).tolist())
    trained = {example.get(LABEL) for index, example in enumerate(examples) if index not in chosen}
    for index in sorted(chosen):
        label = examples[index].get(LABEL)
        if label not in trained:
            trained.add(label)
            chosen.discard(index)
    if not chosen:
        sizes = Counter(example.get(LABEL) for example in examples)
        spared = [index for index, example in enumerate(examples) if sizes[example.get(LABEL)] > 1]
        if not spared:
            msg = f"each of {len(examples)} examples is alone in its class, so none can be held out: give --test FILE"
            raise DataEmptyError(msg)
        chosen = {int(rng.choice(spared))}
    train = [example for index, example in enumerate(examples) if index not in chosen]
    return train, [examples[index] for index in sorted(chosen)]


def write_examples(path: Path, examples: Iterable[Mapping[str, object]]) -> None:
    """Write JSON lines, all or nothing.

    Raises:
        DiskFullError: there is no space.
    """
    write_stream_atomically(path, (f"{json.dumps(example)}\n".encode() for example in examples))
