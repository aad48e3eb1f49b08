"""Tokens to text, one token at a time; a character is returned when all its bytes are known.

One character may span several tokens (byte-level vocabularies), and the text of a token may depend on its neighbour
(leading spaces). So a window of tokens is decoded twice, without and with the new tokens, and the difference is the new
text. It is held back while it ends in the replacement character (as in Hugging Face's text-generation-inference).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

_INCOMPLETE: Final = "\N{REPLACEMENT CHARACTER}"
_CONTEXT_TOKENS: Final = 6


class IncrementalDetokenizer:
    """Text of a growing sequence of tokens; the pieces joined are the text of the whole.

    Args:
        decode: token ids to text.
        prompt_ids: tokens of the prompt; they are context and not part of the text.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt_ids: Sequence[int] = ()) -> None:
        self._decode = decode
        self._context = list(prompt_ids[-_CONTEXT_TOKENS:])
        self._pending: list[int] = []

    def add(self, token_id: int) -> str:
        """Return the text that this token completes; empty while a character is incomplete."""
        self._pending.append(token_id)
        piece = self._text()
        if not piece or piece.endswith(_INCOMPLETE):
            return ""
        self._accept()
        return piece

    def flush(self) -> str:
        """Return the rest of the text, at the end of generation; bytes of incomplete characters become U+FFFD."""
        piece = self._text()
        self._accept()
        return piece

    def _text(self) -> str:
        known = self._decode(self._context)
        return self._decode(self._context + self._pending)[len(known) :]

    def _accept(self) -> None:
        self._context = self._pending[-_CONTEXT_TOKENS:]
        self._pending = []
