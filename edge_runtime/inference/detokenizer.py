"""Tokens to text one at a time: no character is shown before all its bytes are there.

One character may span several tokens (byte-level vocabularies), and how a token is written may depend on its neighbour
(leading spaces). So a window of tokens is decoded twice, without and with the new ones, and the difference is the text;
it is held back while it ends in the replacement character (the method of Hugging Face's text-generation-inference).
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
        prompt_ids: tokens that came before; they are context and are not part of the text.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt_ids: Sequence[int] = ()) -> None:
        self._decode = decode
        self._context = list(prompt_ids[-_CONTEXT_TOKENS:])
        self._pending: list[int] = []

    def add(self, token_id: int) -> str:
        """Text that became certain with this token; empty while a character is incomplete."""
        self._pending.append(token_id)
        piece = self._text()
        if not piece or piece.endswith(_INCOMPLETE):
            return ""
        self._accept()
        return piece

    def flush(self) -> str:
        """Return the text held back, at the end of generation: bytes that never became a character show as U+FFFD."""
        piece = self._text()
        self._accept()
        return piece

    def _text(self) -> str:
        known = self._decode(self._context)
        return self._decode(self._context + self._pending)[len(known) :]

    def _accept(self) -> None:
        self._context = self._pending[-_CONTEXT_TOKENS:]
        self._pending = []
