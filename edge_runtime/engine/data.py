"""Files of examples: JSON lines, raw text or pre-tokenised, checked line by line.

A line is an object with ``text`` (a string) or ``input_ids`` (a list of token ids; it wins where both are there), and
for text-classification ``label``. Blank lines are skipped. Everything else ends with one error that names file and
line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Dataset
from edge_runtime.engine.errors import DataEmptyError, DataInvalidError, LengthError, UnknownLabelError
from edge_runtime.engine.tokenization import Tokenizer, suffix
from edge_runtime.wire.manifest import Manifest

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
"""Longest line that is read, bytes; a longer one is refused before it fills the memory."""

MIN_LENGTH: Final = 2
"""Shortest ``max_length``, and shortest causal-lm window, tokens: one to read, one to predict."""

_TOKENIZE_AT_ONCE: Final = 512
_SHOWN: Final = 40


def load_examples(path: Path, artifact: Artifact, max_length: int) -> Dataset:
    """Read and tokenise a file of examples.

    text-classification: each line is an example, truncated to ``max_length`` tokens. causal-lm: each line is a
    document; documents are joined and cut into windows of ``max_length`` tokens (the last may be shorter, at least two
    tokens), the usual packing.

    Args:
        path: JSON lines, UTF-8 (a byte order mark is skipped).
        artifact: gives tokenizer, labels and vocabulary.
        max_length: tokens, from 2 to what the model's positions allow.

    Raises:
        DataInvalidError: the file cannot be read, or a line is not an example; names file and line.
        DataEmptyError: no example, or for causal-lm fewer than two tokens.
        UnknownLabelError: a label that the artifact does not know; names file and line.
        LengthError: ``max_length`` is out of range.
        MissingDependencyError: raw text, and ``tokenizers`` is not installed.
        ArtifactCorruptedError: the artifact's tokenizer is malformed.
    """
    manifest = artifact.manifest
    if not MIN_LENGTH <= max_length <= manifest.text.max_length:
        allowed = f"{MIN_LENGTH} to {manifest.text.max_length}"
        msg = f"max length is {max_length} tokens, {manifest.model_name} allows {allowed}"
        raise LengthError(msg)
    classify = manifest.task == "text-classification"
    reader = _Reader(path, artifact, max_length if classify else None)
    sequences, labels = reader.read()
    if not sequences:
        msg = f"{path} holds no example: expected JSON lines with {reader.expected}"
        raise DataEmptyError(msg)
    if classify:
        tokens, offsets = _join(sequences)
    else:
        tokens, offsets = _pack(sequences, max_length)
        if offsets.size == 1:
            msg = f"{path} holds {sum(s.size for s in sequences)} tokens, at least {MIN_LENGTH} are needed"
            raise DataEmptyError(msg)
    return Dataset(
        tokens=tokens,
        offsets=offsets,
        labels=np.array(labels, np.int64) if classify else None,
        pad_token_id=manifest.text.pad_token_id,
    )


class _Reader:
    """Reads one file; keeps what its error messages need."""

    def __init__(self, path: Path, artifact: Artifact, max_length: int | None) -> None:
        self._path = path
        self._artifact = artifact
        self._manifest: Manifest = artifact.manifest
        self._classify = self._manifest.task == "text-classification"
        self._classes = {name: index for index, name in enumerate(self._manifest.labels)}
        self._max_length = max_length
        self._tokenizer: Tokenizer | None = None
        self._line = 0
        self.expected = "'text' (or 'input_ids')" + (" and 'label'" if self._classify else "")

    def read(self) -> tuple[list[npt.NDArray[np.int32]], list[int]]:
        """Token ids of every line, int32 ``[length]`` each, and its label's index (text-classification)."""
        sequences: list[npt.NDArray[np.int32]] = []
        labels: list[int] = []
        pending: list[tuple[int, int, str]] = []
        for record in self._records():
            if self._classify:
                labels.append(self._label(record))
            if "input_ids" in record:
                sequences.append(self._ids(record["input_ids"]))
            else:
                pending.append((len(sequences), self._line, self._text(record)))
                sequences.append(np.empty(0, np.int32))
            if len(pending) == _TOKENIZE_AT_ONCE:
                self._tokenize(pending, sequences)
        self._tokenize(pending, sequences)
        return sequences, labels

    def _records(self) -> Iterator[dict[str, object]]:
        try:
            with self._path.open("rb") as file:
                while line := file.readline(MAX_LINE_BYTES + 1):
                    self._line += 1
                    if len(line) > MAX_LINE_BYTES:
                        self._refuse(f"line is longer than {MAX_LINE_BYTES} bytes; split the document")
                    if self._line == 1:
                        line = line.removeprefix(b"\xef\xbb\xbf")
                    if line.strip():
                        yield self._parse(line)
        except OSError as error:
            msg = f"data file {self._path} cannot be read: {error.strerror}"
            raise DataInvalidError(msg) from error

    def _parse(self, line: bytes) -> dict[str, object]:
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            self._refuse(f"not UTF-8 (byte {error.start} of the line is 0x{line[error.start]:02x}); convert the file")
        except (ValueError, RecursionError) as error:
            self._refuse(f"not JSON ({error}); expected one object a line with {self.expected}, got {_shown(line)}")
        if not isinstance(record, dict):
            self._refuse(f"expected an object with {self.expected}, got {_shown(line)}")
        return record

    def _text(self, record: dict[str, object]) -> str:
        if "text" not in record:
            self._refuse(f"field 'text' (or 'input_ids') is missing; found {_fields(record)}")
        text = record["text"]
        if not isinstance(text, str):
            self._refuse(f"field 'text' should be a string, got {type(text).__name__} {_shown(text)}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            self._refuse("field 'text' holds half of a surrogate pair, which is no character; repair the text")
        return text

    def _ids(self, value: object) -> npt.NDArray[np.int32]:
        vocab_size = self._manifest.text.vocab_size
        if not isinstance(value, list) or any(type(item) is not int for item in value):
            self._refuse(f"field 'input_ids' should be a list of integers, got {_shown(value)}")
        if bad := [item for item in value if not 0 <= item < vocab_size]:
            self._refuse(f"token id {_shown(bad[0])} is outside the vocabulary (0 to {vocab_size - 1})")
        if self._classify and not value:
            self._refuse("field 'input_ids' is empty, expected at least one token")
        return np.array([*value, *suffix(self._manifest)], np.int32)[: self._max_length]

    def _label(self, record: dict[str, object]) -> int:
        if "label" not in record:
            self._refuse(f"field 'label' is missing; found {_fields(record)}")
        label = record["label"]
        if isinstance(label, str | int) and not isinstance(label, bool):
            named = self._classes.get(str(label))
            if named is not None:
                return named
            if isinstance(label, int) and 0 <= label < len(self._classes):
                return label
            known = ", ".join(self._manifest.labels[:20])
            msg = f"{self._path}:{self._line}: label {_shown(label)} is unknown; the artifact knows {known}"
            raise UnknownLabelError(msg)
        return self._refuse(f"field 'label' should be a class name or index, got {_shown(label)}")

    def _tokenize(self, pending: list[tuple[int, int, str]], sequences: list[npt.NDArray[np.int32]]) -> None:
        """Tokenise the texts that wait, put them in their places, and forget them."""
        if not pending:
            return
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self._artifact, max_length=self._max_length)
        for (place, line, _), ids in zip(pending, self._tokenizer.encode([text for *_, text in pending]), strict=True):
            if ids and max(ids) >= self._manifest.text.vocab_size:
                fault = f"token id {max(ids)} is outside the vocabulary ({self._manifest.text.vocab_size} tokens)"
                self._refuse(fault, line=line)
            if self._classify and not ids:
                self._refuse("field 'text' has no token, expected at least one", line=line)
            sequences[place] = np.array(ids, np.int32)
        pending.clear()

    def _refuse(self, fault: str, *, line: int | None = None) -> NoReturn:
        msg = f"{self._path}:{self._line if line is None else line}: {fault}"
        raise DataInvalidError(msg)


def _join(sequences: list[npt.NDArray[np.int32]]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    lengths = [sequence.size for sequence in sequences]
    return np.concatenate(sequences), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _pack(
    documents: list[npt.NDArray[np.int32]], max_length: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Join documents and cut them into windows; a last window of one token has nothing to predict and is dropped."""
    tokens = np.concatenate(documents)
    offsets = np.append(np.arange(0, tokens.size, max_length, dtype=np.int64), np.int64(tokens.size))
    if offsets.size > 1 and offsets[-1] - offsets[-2] < MIN_LENGTH:
        offsets = offsets[:-1]
    return tokens[: offsets[-1]], offsets


def _shown(value: object) -> str:
    """A piece of what was found, short enough for one line."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _fields(record: dict[str, object]) -> str:
    names = ", ".join(_shown(name) for name in list(record)[:8])
    return f"fields {names}" if names else "no field"
