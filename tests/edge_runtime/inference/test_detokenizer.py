"""Text appears token by token, never half a character, and nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.inference.detokenizer import IncrementalDetokenizer


def decode_bytes(ids: list[int]) -> str:
    """A vocabulary of single bytes: the hardest case for incremental decoding."""
    return bytes(ids).decode("utf-8", errors="replace")


def decode_words(ids: list[int]) -> str:
    """A vocabulary of words whose first one is written without the leading space, like SentencePiece's."""
    return " ".join(f"w{token}" for token in ids)


def test_pieces_of_a_character_are_held_until_it_is_whole() -> None:
    detokenizer = IncrementalDetokenizer(decode_bytes)

    pieces = [detokenizer.add(byte) for byte in "aé€".encode()]

    assert pieces == ["a", "", "é", "", "", "€"]


def test_bytes_that_never_become_a_character_show_at_the_end() -> None:
    detokenizer = IncrementalDetokenizer(decode_bytes)

    pieces = [detokenizer.add(byte) for byte in b"a\xe2\x82"]

    assert pieces == ["a", "", ""]
    assert detokenizer.flush() == "\N{REPLACEMENT CHARACTER}"
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("split", [0, 1, 3])
def test_first_token_is_written_as_after_the_prompt(split: int) -> None:
    prompt, answer = [1, 2, 3][:split], [4, 5]
    detokenizer = IncrementalDetokenizer(decode_words, prompt)

    text = "".join(detokenizer.add(token) for token in answer)

    assert decode_words(prompt) + text == decode_words(prompt + answer)


@given(text=st.text(max_size=60), prompt=st.text(max_size=20))
def test_pieces_joined_are_the_text(text: str, prompt: str) -> None:
    detokenizer = IncrementalDetokenizer(decode_bytes, list(prompt.encode()))

    pieces = [detokenizer.add(byte) for byte in text.encode()]

    assert "".join(pieces) + detokenizer.flush() == text
