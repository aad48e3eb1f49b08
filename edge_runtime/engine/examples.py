"""Examples from JSON lines, read by the same rules on devices, in ``fedspine-edge doctor`` and in ``fedspine run``.

A line is an object with a text or ``input_ids`` (a list of token ids, used if both are there), and for
text-classification a label. A null field counts as absent. Other fields are ignored.

A label is a whole number (1.0 is 1) or text; blanks around the text are removed. true and false are refused, because
they may mean names or 1 and 0. The labels of a file are all numbers or all names.

Empty examples (an empty text, blanks, no token ids) are left out, with one warning for the file.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, NamedTuple, NoReturn

from edge_runtime.engine.errors import DataEmptyError, DataInvalidError
from edge_runtime.engine.json_lines import JsonLines, Record, Repeated, in_words, shown
from edge_runtime.engine.labels import Label, is_number

INPUT_IDS: Final = "input_ids"

MAX_TOKEN_ID: Final = 2**31 - 1
"""Largest token id that is read."""

MAX_LABEL_CHARACTERS: Final = 200
"""Longest name of a class, characters."""

_MAX_WHOLE: Final = 2.0**53
_SHOWN_FIELDS: Final = 8
_CHAT: Final = ("messages", "conversations", "conversation")
_CHAT_PARTS: Final = ("role", "from")
_PAIRS: Final = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "chosen"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("input", "output"),
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
)


class Fields(NamedTuple):
    """The names of the fields to read."""

    text: str = "text"
    label: str | None = None
    """Field of the label; None if labels are not needed."""
    key: str | None = None
    """Another required field, text or a whole number; None for none."""
    text_advice: str = "rename the one that holds the text to 'text'"
    """Advice for a line without the text's field."""
    label_advice: str = "rename the one that holds the class to 'label'"


class Example(NamedTuple):
    """The example on a line, as ``text`` or as ``input_ids``."""

    line: int
    text: str | None
    input_ids: list[int] | None
    label: Label | None
    key: str | None


class ExampleReader:
    """Reads the examples of a file, once.

    Args:
        path: JSON lines.
        fields: names of the fields to read.
        is_label_optional: whether a missing or unusable label gives a warning, not an error.

    Attributes:
        lines: the lines of the file, with their numbers for errors.
    """

    def __init__(self, path: Path, fields: Fields, *, is_label_optional: bool = False) -> None:
        self._path = path
        self._fields = fields
        self._is_label_optional = is_label_optional
        needed = f"{fields.text!r} (or {INPUT_IDS!r})"
        if fields.label is not None and not is_label_optional:
            needed += f" and {fields.label!r}"
        self._expected = f"one JSON object a line with {needed}"
        self.lines = JsonLines(path, expected=self._expected)
        self._num_examples = 0
        self._num_empty = 0
        self._first_empty = 0
        self._num_labelled = 0
        self._label_fault = ""
        self._number_line = 0
        self._name_line = 0

    def __iter__(self) -> Iterator[Example]:
        """Read the examples in order.

        Raises:
            DataInvalidError: the file cannot be read, or a line is not an example; names file and line.
            DataEmptyError: the file ended without an example.
        """
        for record in self.lines:
            example = self._example(record)
            if example.input_ids == [] or (example.text is not None and not example.text.strip()):
                self._num_empty += 1
                self._first_empty = self._first_empty or example.line
                continue
            self._num_examples += 1
            yield example
        if self._num_examples == 0:
            found = f": {self._num_empty} lines have an empty text" if self._num_empty else ""
            msg = f"{self._path} holds no example{found}; expected {self._expected}"
            raise DataEmptyError(msg)

    def warnings(self) -> tuple[str, ...]:
        """Warnings for the user, one line each; complete after the last example."""
        found = []
        if self._num_empty:
            count = "1 example has" if self._num_empty == 1 else f"{self._num_empty} examples have"
            verb = "is" if self._num_empty == 1 else "are"
            found.append(f"{self._path}: {count} an empty text and {verb} left out, first line {self._first_empty}")
        if self._label_fault and self._num_labelled:
            found.append(f"{self._label_fault}; a run that classifies will refuse the file")
        return tuple(found)

    def _example(self, record: Record) -> Example:
        fields = self._fields
        input_ids = self._ids(record)
        return Example(
            line=self.lines.line,
            text=None if input_ids is not None else self._text(record),
            input_ids=input_ids,
            label=None if fields.label is None else self._label_if_needed(record, fields.label),
            key=None if fields.key is None else self._key(record, fields.key),
        )

    def _ids(self, record: Record) -> list[int] | None:
        ids = self._value(record, INPUT_IDS)
        if ids is None:
            return None
        if not isinstance(ids, list) or any(type(item) is not int for item in ids):
            self.lines.refuse(f"has {in_words(ids)} in {INPUT_IDS!r}, expected a list of whole numbers")
        if ids and not 0 <= min(ids) <= max(ids) <= MAX_TOKEN_ID:
            bad = next(item for item in ids if not 0 <= item <= MAX_TOKEN_ID)
            self.lines.refuse(f"has the token id {shown(bad)} in {INPUT_IDS!r}, which is outside every vocabulary")
        return ids

    def _text(self, record: Record) -> str:
        name = self._fields.text
        text = self._value(record, name)
        if text is None:
            self._refuse_missing(record, name, self._advice(record))
        if not isinstance(text, str):
            advice = f": {self._advice(record)}" if _is_chat(text) else ""
            self.lines.refuse(f"has {in_words(text)} in {name!r}, expected a text{advice}")
        return _checked(text, name, self.lines)

    def _label_if_needed(self, record: Record, name: str) -> Label | None:
        if not self._is_label_optional:
            return self._label(record, name)
        self._num_labelled += record.get(name) is not None
        try:
            return self._label(record, name)
        except DataInvalidError as error:
            self._label_fault = self._label_fault or str(error)
            return None

    def _label(self, record: Record, name: str) -> Label:
        value = self._value(record, name)
        if value is None:
            self._refuse_missing(record, name, self._fields.label_advice)
        label = _whole(value)
        if isinstance(label, str):
            label = self._class_name(label, name)
        elif label is None:
            self._refuse_label(value, name)
        self._check_mixed(label)
        return label

    def _class_name(self, label: str, name: str) -> str:
        label = _checked(label, name, self.lines).strip()
        if not label:
            self.lines.refuse(f"has an empty text in {name!r}, expected a class name or a whole number")
        if len(label) > MAX_LABEL_CHARACTERS or any(unicodedata.category(sign) == "Cc" for sign in label):
            limit = f"at most {MAX_LABEL_CHARACTERS} letters and no control characters"
            self.lines.refuse(f"has {in_words(label)} in {name!r}, which is not a class name: expected {limit}")
        return label

    def _refuse_label(self, value: object, name: str) -> NoReturn:
        advice = ""
        if isinstance(value, bool):
            advice = f': write a name, such as "{str(value).lower()}", or 0 and 1'
        elif isinstance(value, list | dict):
            advice = "; an example has one label"
        self.lines.refuse(f"has {in_words(value)} in {name!r}, expected a class name or a whole number{advice}")

    def _check_mixed(self, label: Label) -> None:
        if isinstance(label, int):
            self._number_line = self._number_line or self.lines.line
        elif not is_number(label):
            self._name_line = self._name_line or self.lines.line
        if self._number_line and self._name_line:
            other = "a name" if self.lines.line == self._number_line else "a number"
            before = min(self._number_line, self._name_line)
            self.lines.refuse(
                f"has the label {shown(label)}, but line {before} has {other}: give numbers or names, not both"
            )

    def _key(self, record: Record, name: str) -> str:
        value = self._value(record, name)
        if value is None:
            self._refuse_missing(record, name, "the examples are split by it")
        if isinstance(value, bool):
            return str(value).lower()
        key = _whole(value)
        if key is None:
            self.lines.refuse(f"has {in_words(value)} in {name!r}, expected a text or a whole number to split by")
        return _checked(str(key), name, self.lines)

    def _value(self, record: Record, name: str) -> object:
        if isinstance(record, Repeated) and name in record.repeated:
            self.lines.refuse(f"has the field {name!r} more than once; leave one")
        return record.get(name)

    def _refuse_missing(self, record: Record, name: str, advice: str) -> NoReturn:
        if name in record:
            self.lines.refuse(f"has null in {name!r}, where a value is needed")
        names = ", ".join(shown(field) for field in list(record)[:_SHOWN_FIELDS])
        more = ", ..." if len(record) > _SHOWN_FIELDS else ""
        found = f"its fields are {names}{more}" if names else "it has no fields at all"
        self.lines.refuse(f"has no field {shown(name)}; {found}: {advice}")

    def _advice(self, record: Record) -> str:
        """Return the advice for a line without a text."""
        if chat := next((name for name, value in record.items() if name in _CHAT or _is_chat(value)), None):
            return (
                f"chat data ({shown(chat)}) is not read; write each conversation as one text, "
                "as the tokenizer's apply_chat_template(..., tokenize=False) makes it"
            )
        for first, second in _PAIRS:
            if first in record and second in record:
                return f"join {first!r} and {second!r} to one text"
        return self._fields.text_advice


def read_texts(stream: IO[bytes] | None, path: Path | None) -> Iterator[str]:
    """The texts of JSON lines, one for each line; empty texts are kept.

    Args:
        stream: bytes, such as standard input; None = ``path``.
        path: a file.

    Raises:
        DataInvalidError: the file cannot be read, or a line has no text; names file and line.
    """
    name = "text"
    expected = f"one JSON object a line with {name!r}"
    lines = JsonLines(path, stream=stream, name="" if stream is None else "standard input", expected=expected)
    for record in lines:
        text = record.get(name)
        if not isinstance(text, str):
            found = in_words(text) if name in record else f"no field {name!r}"
            lines.refuse(f"has {found}, expected a text in {name!r}")
        yield _checked(text, name, lines)


def _checked(text: str, name: str, lines: JsonLines) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        lines.refuse(f"has half of a surrogate pair in {name!r}, which is not a character; repair the text")
    return text


def _is_chat(value: object) -> bool:
    """Return whether a value is a list of messages."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and any(part in first for part in _CHAT_PARTS)


def _whole(value: object) -> Label | None:
    """Return text unchanged, and a whole number (1.0 too) as an integer; None for all other values."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) <= _MAX_WHOLE:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
