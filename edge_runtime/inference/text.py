"""Text to tokens and back, with the tokenizer of a compact model, which is loaded on first use."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from edge_runtime.engine.tokenization import Tokenizer
from edge_runtime.inference.errors import PromptError

if TYPE_CHECKING:
    from edge_runtime.engine.artifact import Artifact


class TextCodec:
    """Encodes the prompt and decodes the answer.

    Args:
        artifact: gives the tokenizer's file and the text spec.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact

    def encode(self, text: str) -> list[int]:
        """Token ids of a text to classify, cut at the model's longest sequence.

        Raises:
            PromptError: the text is not valid Unicode, or has no token.
            MissingDependencyError: the package ``tokenizers`` is not installed.
            DataInvalidError: the model came without a tokenizer.
            ArtifactCorruptedError: the tokenizer's file is malformed.
        """
        ids = self._cutting.encode([_checked(text)])[0]
        if not ids:
            msg = "text has no token, expected at least one: give a text that is not empty"
            raise PromptError(msg)
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt: as in training, whole, without the end-of-text token. Raises as :meth:`encode`."""
        ids = self._whole.encode([_checked(text)])[0]
        return ids[:-1] if ids and ids[-1] == self._artifact.manifest.text.eos_token_id else ids

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self._whole.decode(ids)

    @functools.cached_property
    def _cutting(self) -> Tokenizer:
        return Tokenizer(self._artifact, max_length=self._artifact.manifest.text.max_length)

    @functools.cached_property
    def _whole(self) -> Tokenizer:
        return Tokenizer(self._artifact, max_length=None)


def _checked(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        msg = f"text holds half of a surrogate pair at character {error.start}, which is not a character: repair it"
        raise PromptError(msg) from error
    return text
