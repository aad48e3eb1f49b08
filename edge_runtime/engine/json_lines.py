"""JSON lines from a file or a stream, one object at a time: one set of rules for every reader of such files.

Files are UTF-8, with or without a byte order mark; line ends are LF or CRLF; blank lines are skipped. NaN and Infinity
are read, because Python and pandas write them; a reader refuses them only in fields that it uses. All other faults end
with one error that names the kind of the file or line, and the next step.
"""

from __future__ import annotations

import json
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import IO, Final, NoReturn

from edge_runtime.engine.errors import DataInvalidError
from edge_runtime.engine.file_kinds import HEAD_BYTES, foreign_kind, not_json, not_utf8

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
"""Longest line that is read, bytes; a longer one is refused before it fills the memory."""

_MARK: Final = b"\xef\xbb\xbf"
_SHOWN: Final = 40

Record = dict[str, object]
"""The object on a line."""


class Repeated(dict[str, object]):
    """An object in which a field occurs twice.

    Attributes:
        repeated: names of the fields that occur twice.
    """

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        super().__init__(pairs)
        self.repeated = {name for name, times in Counter(name for name, _ in pairs).items() if times > 1}


class JsonLines:
    """The objects of a file, in order.

    Args:
        path: the file; None = ``stream``.
        stream: bytes to read if ``path`` is None.
        name: name of the file in errors; by default, its path.
        expected: contents of a line, for errors.

    Attributes:
        line: number of the last line that was read, from 1.
    """

    def __init__(
        self, path: Path | None, *, stream: IO[bytes] | None = None, name: str = "", expected: str = "an object"
    ) -> None:
        self.line = 0
        self._path = path
        self._stream = stream
        self._name = name or str(path)
        self._pure = PurePath(self._name)
        self._expected = expected
        self._is_first = True
        self._is_utf8 = False

    def __iter__(self) -> Iterator[Record]:
        """Read the objects in order.

        Raises:
            DataInvalidError: the file cannot be read, or a line holds no object; names file and line.
        """
        if self._stream is not None:
            yield from self._read(self._stream)
            return
        assert self._path is not None  # noqa: S101 - one of the two is given
        check_file(self._path)
        try:
            with self._path.open("rb") as file:
                if kind := foreign_kind(file.read(HEAD_BYTES), self._pure):
                    self._refuse_file(kind)
                file.seek(0)
                yield from self._read(file)
        except OSError as error:
            msg = f"data file {self._path} cannot be read: {error.strerror or error}"
            raise DataInvalidError(msg) from error

    def refuse(self, fault: str, *, line: int | None = None) -> NoReturn:
        """Raise an error about a line.

        Args:
            fault: text after "line N", such as "has no field 'text'".
            line: number of the line; None = the last line that was read.

        Raises:
            DataInvalidError: always.
        """
        msg = f"{self.place(line)} {fault}"
        raise DataInvalidError(msg)

    def place(self, line: int | None = None) -> str:
        """Return the place of a line for messages; by default, of the last line that was read."""
        return f"{self._name}: line {self.line if line is None else line}"

    def _read(self, file: IO[bytes]) -> Iterator[Record]:
        while line := file.readline(MAX_LINE_BYTES + 1):
            self.line += 1
            line = line.removeprefix(_MARK)  # on every line: files with a mark may have been joined
            if not line.strip():
                continue
            if len(line) > MAX_LINE_BYTES:
                self._refuse_long(line)
            yield self._parse(line)
            self._is_first = False

    def _parse(self, line: bytes) -> Record:
        text = self._decode(line)
        try:
            value = json.loads(text, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            self._refuse_no_json(text, error)
        except RecursionError:
            self._refuse_if_array(text)
            self.refuse(f"is nested too deep; expected {self._expected}")
        except ValueError:  # Python reads no integer of more than 4,300 digits
            self.refuse(f"holds a number of too many digits; expected {self._expected}")
        if not isinstance(value, dict):
            if isinstance(value, list) and all(isinstance(item, dict) for item in value):
                self._refuse_if_array(text)
            self.refuse(f"holds {in_words(value)}, expected {self._expected}")
        return value

    def _decode(self, line: bytes) -> str:
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            if error.end == len(line) and error.reason == "unexpected end of data":  # the file ends inside a character
                self._refuse_cut()
            self.refuse(f"is {not_utf8(line, error.start, self._pure, is_utf8_before=self._is_utf8)}")
        self._is_utf8 = self._is_utf8 or not text.isascii()
        if "\0" in text:
            self.refuse("holds NUL bytes: the file is damaged, as a power cut can leave it; repair or remove the line")
        return text

    def _refuse_no_json(self, text: str, error: json.JSONDecodeError) -> NoReturn:
        begun = text.lstrip()[:1]
        is_unfinished = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        if self._is_first and (kind := not_json(text, self._pure)):
            self._refuse_file(kind)
        if is_unfinished and begun == "{":
            if not text.endswith("\n"):
                self._refuse_cut()
            self.refuse("begins a JSON object and does not end it; put each object on one line (`jq -c .` does that)")
        column = error.pos + 1
        if error.msg == "Extra data" and text[error.pos :].strip() == ",":
            self.refuse(f"has a comma after its JSON value (column {column}); JSON lines have none")
        if error.msg == "Extra data":
            advice = (
                "its line ends are CR alone, `tr '\\r' '\\n'` corrects them"
                if "\r" in text.strip()
                else "put each on a line"
            )
            self.refuse(f"holds more than one JSON value, the second at column {column}; {advice}")
        if text.lstrip().startswith("{'"):
            self.refuse(f"is not JSON but as Python prints a dict; write it with json.dumps, got {shown(text.strip())}")
        self.refuse(
            f"is not JSON ({error.msg} at column {column}); expected {self._expected}, got {shown(text.strip())}"
        )

    def _refuse_cut(self) -> NoReturn:
        self.refuse("is cut off: the file ends within it; copy the file again, or remove the line")

    def _refuse_long(self, line: bytes) -> NoReturn:
        self._refuse_if_array(line[:HEAD_BYTES].decode("latin-1"))
        self.refuse(f"is longer than {MAX_LINE_BYTES} bytes; split the document")

    def _refuse_if_array(self, text: str) -> None:
        if self._is_first and text.lstrip().startswith("[") and (kind := not_json("[", self._pure)):
            self._refuse_file(kind)

    def _refuse_file(self, kind: str) -> NoReturn:
        msg = f"{self._name}: the file is {kind}"
        raise DataInvalidError(msg)


def check_file(path: Path) -> None:
    """Refuse a path that is not a regular file before it is opened: a pipe would block for ever.

    Raises:
        DataInvalidError: the path is missing, a directory, or another kind of file.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        msg = f"data file {path} does not exist: give a file of JSON lines"
        raise DataInvalidError(msg) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        msg = f"data file {shown(str(path))} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise DataInvalidError(msg) from error
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device, which cannot be read twice"
        msg = f"data file {path} is {kind}: give a file of JSON lines"
        raise DataInvalidError(msg)


def in_words(value: object) -> str:
    """A description of a JSON value for messages.

    >>> in_words(None), in_words(True), in_words(5), in_words([1]), in_words({}), in_words("a")
    ('null', 'true', 'the number 5', 'a list', 'an object', "the text 'a'")
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return "NaN (no number)" if value != value else f"the number {shown(value)}"  # noqa: PLR0124 - NaN
    if isinstance(value, str):
        return f"the text {shown(value)}"
    return "a list" if isinstance(value, list) else "an object"


def shown(value: object) -> str:
    """An excerpt of a value for messages, without control characters, short enough for one line."""
    text = repr(value[: _SHOWN + 1]) if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _object(pairs: list[tuple[str, object]]) -> Record:
    record = dict(pairs)
    return record if len(record) == len(pairs) else Repeated(pairs)
