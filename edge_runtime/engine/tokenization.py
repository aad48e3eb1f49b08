"""Tokenisation of raw text by the artifact's tokenizer.

The package ``tokenizers`` is imported only here, when text is tokenised: a device with tokenised data need not install
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.errors import ArtifactCorruptedError, DataInvalidError, MissingDependencyError
from edge_runtime.formats import names
from edge_runtime.formats.manifest import Manifest


class Tokenizer:
    """The artifact's tokenizer.

    Args:
        artifact: the opened artifact.
        max_length: longest sequence kept, tokens, special tokens included; None = whole documents.

    Raises:
        MissingDependencyError: the package ``tokenizers`` is not installed.
        DataInvalidError: the artifact has no tokenizer, so raw text cannot be used.
        ArtifactCorruptedError: the tokenizer's file is malformed.
    """

    def __init__(self, artifact: Artifact, *, max_length: int | None) -> None:
        if names.TOKENIZER_FILE not in artifact.manifest.files:
            msg = (
                f"artifact {artifact.directory} has no {names.TOKENIZER_FILE}, so text cannot be tokenised: "
                "give pre-tokenised examples with 'input_ids'"
            )
            raise DataInvalidError(msg)
        path = artifact.path(names.TOKENIZER_FILE)
        try:
            import tokenizers  # noqa: PLC0415 - an extra that only raw text needs
        except ImportError as error:
            msg = "raw text needs the package 'tokenizers': run pip install 'fedspine[text]', or pre-tokenise the data"
            raise MissingDependencyError(msg) from error
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exceptions
            msg = f"tokenizer {path} cannot be read: {error}"
            raise ArtifactCorruptedError(msg) from error
        self._tokenizer.no_padding()
        if max_length is None:
            self._tokenizer.no_truncation()
        else:
            self._tokenizer.enable_truncation(max_length)
        self._suffix = suffix(artifact.manifest)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens and :func:`suffix` included."""
        return [encoding.ids + self._suffix for encoding in self._tokenizer.encode_batch_fast(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens; bytes of incomplete characters become U+FFFD."""
        text: str = self._tokenizer.decode(list(ids))
        return text


def suffix(manifest: Manifest) -> list[int]:
    """Return the tokens after each document: end-of-text for causal-lm if the manifest asks for it, else none."""
    eos = manifest.text.eos_token_id
    return [eos] if manifest.task == "causal-lm" and manifest.text.append_eos and eos is not None else []
