"""Examples for one artifact: they are read, checked and tokenised, and their labels become classes of the model."""

from __future__ import annotations

import logging
from array import array
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Dataset
from edge_runtime.engine.errors import DataEmptyError, LengthError, UnknownLabelError
from edge_runtime.engine.examples import Example, ExampleReader, Fields
from edge_runtime.engine.json_lines import shown
from edge_runtime.engine.labels import Classes, Label
from edge_runtime.engine.tokenization import Tokenizer, suffix

MIN_LENGTH: Final = 2
"""Shortest ``max_length``, and shortest causal-lm window, tokens: one to read, one to predict."""

_TOKENIZE_AT_ONCE: Final = 512
_CHARACTERS_AT_ONCE: Final = 4_000_000
"""Texts are tokenised in groups: at most this many texts, and at most this many characters and one text more."""

logger = logging.getLogger(__name__)


def load_examples(path: Path, artifact: Artifact, max_length: int) -> Dataset:
    """Read and tokenise a file of examples, see :mod:`edge_runtime.engine.examples`; its warnings are logged.

    text-classification: each line is an example, truncated to ``max_length`` tokens. causal-lm: each line is a
    document; documents are joined and cut into windows of ``max_length`` tokens (the last may be shorter, at least two
    tokens), the usual packing.

    Args:
        path: JSON lines, UTF-8 (a byte order mark is skipped).
        artifact: has tokenizer, labels and vocabulary.
        max_length: tokens, from 2 to the number of the model's positions.

    Raises:
        DataInvalidError: the file cannot be read, or a line is not an example; names file and line.
        DataEmptyError: there is no example, or for causal-lm fewer than two tokens.
        UnknownLabelError: the artifact does not know a label; names file and line.
        LengthError: ``max_length`` is out of range.
        MissingDependencyError: the file holds raw text, and ``tokenizers`` is not installed.
        ArtifactCorruptedError: the artifact's tokenizer is malformed.
    """
    manifest = artifact.manifest
    if not MIN_LENGTH <= max_length <= manifest.text.max_length:
        allowed = f"{MIN_LENGTH} to {manifest.text.max_length}"
        msg = f"max length is {max_length} tokens, {manifest.model_name} allows {allowed}"
        raise LengthError(msg)
    classify = manifest.task == "text-classification"
    loader = _Loader(path, artifact, max_length if classify else None)
    loader.load()
    tokens = np.frombuffer(loader.tokens, np.int32)
    if classify:
        offsets = np.frombuffer(loader.offsets, np.int64)
    else:
        offsets = _windows(tokens.size, max_length)
        if offsets.size == 1:
            msg = f"{path} holds {tokens.size} tokens, at least {MIN_LENGTH} are needed"
            raise DataEmptyError(msg)
    return Dataset(
        tokens=tokens[: offsets[-1]],
        offsets=offsets,
        labels=np.frombuffer(loader.labels, np.int64) if classify else None,
        pad_token_id=manifest.text.pad_token_id,
    )


class _Loader:
    """Reads one file into three growing vectors, without a second copy.

    Attributes:
        tokens: tokens of all lines, int32.
        offsets: index of the first token of each line, and the number of all tokens at the end, int64.
        labels: index of each line's class, int64 (text-classification).
    """

    def __init__(self, path: Path, artifact: Artifact, max_length: int | None) -> None:
        self.tokens = array("i")
        self.offsets = array("q", [0])
        self.labels = array("q")
        self._artifact = artifact
        self._vocab_size = artifact.manifest.text.vocab_size
        self._suffix = suffix(artifact.manifest)
        self._max_length = max_length
        self._classes = Classes(artifact.manifest.labels)
        classify = artifact.manifest.task == "text-classification"
        self._reader = ExampleReader(path, Fields(label="label" if classify else None))
        self._tokenizer: Tokenizer | None = None
        self._has_indices: bool | None = None

    def load(self) -> None:
        """Read all lines."""
        waiting: list[Example] = []
        num_characters = 0
        for example in self._reader:
            if example.label is not None:
                self.labels.append(self._class(example.label))
            waiting.append(example)
            num_characters += len(example.text or example.input_ids or "")
            if len(waiting) == _TOKENIZE_AT_ONCE or num_characters > _CHARACTERS_AT_ONCE:
                self._add(waiting)
                waiting, num_characters = [], 0
        self._add(waiting)
        for warning in self._reader.warnings():
            logger.warning("%s", warning)

    def _class(self, label: Label) -> int:
        named, numbered = self._classes.named(label), self._classes.numbered(label)
        index = numbered if named is None else named
        if index is None:
            msg = f"{self._reader.lines.place()} {self._classes.unknown(label, 'the artifact')}"
            raise UnknownLabelError(msg)
        is_index = named is None
        if self._has_indices not in {None, is_index}:
            kinds = (
                "an index, and lines before it have names" if is_index else "a name, and lines before it have indices"
            )
            self._reader.lines.refuse(f"has the label {shown(label)}, {kinds}: give names or indices, not both")
        self._has_indices = is_index
        return index

    def _add(self, examples: list[Example]) -> None:
        """Tokenise the texts, and append all examples in order."""
        texts = [example.text for example in examples if example.text is not None]
        if texts and self._tokenizer is None:
            self._tokenizer = Tokenizer(self._artifact, max_length=self._max_length)
        encoded = iter(self._tokenizer.encode(texts) if self._tokenizer is not None and texts else ())
        for example in examples:
            given = example.input_ids
            ids = next(encoded) if given is None else [*given, *self._suffix][: self._max_length]
            if ids and max(ids) >= self._vocab_size:
                fault = f"has the token id {max(ids)}, outside the vocabulary (0 to {self._vocab_size - 1})"
                self._reader.lines.refuse(fault, line=example.line)
            if example.label is not None and not ids:
                fault = "has a text of which the tokenizer makes no token, expected at least one"
                self._reader.lines.refuse(fault, line=example.line)
            self.tokens.extend(ids)
            self.offsets.append(len(self.tokens))


def _windows(num_tokens: int, max_length: int) -> npt.NDArray[np.int64]:
    """Return the offsets of the windows of joined documents.

    A last window of one token is dropped, because it has no token to predict.
    """
    offsets = np.append(np.arange(0, num_tokens, max_length, dtype=np.int64), np.int64(num_tokens))
    return offsets[:-1] if offsets.size > 1 and offsets[-1] - offsets[-2] < MIN_LENGTH else offsets
