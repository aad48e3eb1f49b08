"""Checks that every token id of a tokenizer or a configuration is a row of the embedding.

An id outside would fail late: at the first text that holds it, or in padding. An id that only pads may be any id
inside, because padding is masked; all ids of text must be inside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from edge_runtime.formats.names import GENERATION_FILE
from models.checkpoint_files import json_of
from models.errors import ModelUnsupportedError

_OF_CONFIG: Final = ("bos", "eos", "pad", "sep", "cls", "mask", "decoder_start")
_SHOWN: Final = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """Ids inside the vocabulary."""

    pad: int
    eos: int | None
    """Follows each document in training; None = nothing does."""
    ends: tuple[int, ...]
    """Tokens that end a generated text, in the order of the checkpoint; ``eos`` is one of them."""
    notes: tuple[str, ...]
    """Remarks for the user about the choice."""


def read_generation(model: str | Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of generation: ``generation_config.json``, or without it those in ``config.json``.

    Raises:
        ModelNotFoundError: the file cannot be read.
    """
    found = json_of(model, GENERATION_FILE)
    if found is None:
        found = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
    return {key: value for key, value in found.items() if key not in {"_from_model_config", "transformers_version"}}


def choose_tokens(tokenizer: Any, config: Any, generation: Mapping[str, Any], vocab_size: int) -> SpecialTokens:
    """Choose the tokens that pad and end text.

    Args:
        tokenizer: of transformers.
        config: of transformers; may name ids that are not there.
        generation: see :func:`read_generation`.
        vocab_size: rows of the embedding.

    Raises:
        ModelUnsupportedError: the tokenizer gives an id beyond them.
    """
    notes: list[str] = []
    _check_vocabulary(tokenizer, vocab_size)
    _check_frame(tokenizer, vocab_size)
    said = generation.get("eos_token_id")
    listed = list(said) if isinstance(said, list | tuple) else [] if said is None else [said]
    ends = [token for token in listed if _is_inside(token, vocab_size)]
    if outside := [token for token in listed if token not in ends]:
        notes.append(f"no text can end with token {_listed(outside)}: the embedding has {vocab_size} rows")
    eos = tokenizer.eos_token_id
    if eos is None:
        eos = ends[0] if ends else None
    elif eos not in ends:
        ends.append(eos)
    pads = {"the tokenizer's": tokenizer.pad_token_id, "config.json's": config.pad_token_id, "": eos, " ": 0}
    named = {whose: token for whose, token in pads.items() if token is not None}
    pad = next(token for token in named.values() if _is_inside(token, vocab_size))
    whose, first = next(iter(named.items()))
    if first != pad:
        notes.append(
            f"{whose} padding token {first!r} is outside the embedding's {vocab_size} rows: {pad} pads instead"
        )
    return SpecialTokens(pad=pad, eos=eos, ends=tuple(dict.fromkeys(ends)), notes=tuple(notes))


def without_foreign_ids(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose ids outside its vocabulary (-1 means none in some) are left out."""
    rows = settings.get("vocab_size")
    if not isinstance(rows, int):
        return dict(settings)

    def inside(value: object) -> object:
        if isinstance(value, list):
            return [token for token in value if _is_inside(token, rows)] or None
        return value if _is_inside(value, rows) else None

    keys = [f"{name}_token_id" for name in _OF_CONFIG]
    return {**settings, **{key: inside(settings[key]) for key in keys if settings.get(key) is not None}}


def written_generation(generation: Mapping[str, Any], tokens: SpecialTokens, vocab_size: int) -> dict[str, Any]:
    """``generation_config.json`` of the export: the checkpoint's, with the ids that were chosen."""
    ends = list(tokens.ends)
    kept = {key: value for key, value in generation.items() if not key.endswith("_token_id")}
    if _is_inside(generation.get("bos_token_id"), vocab_size):
        kept["bos_token_id"] = generation["bos_token_id"]
    if ends:
        kept["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return {**kept, "pad_token_id": tokens.pad}


def _check_vocabulary(tokenizer: Any, vocab_size: int) -> None:
    """Refuse ids that text can become and that have no row; a padding token comes from no text."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    beyond = sorted((index, token) for token, index in vocabulary.items() if not _is_inside(index, vocab_size))
    if tokenizer.pad_token_id not in {tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id}:
        beyond = [(index, token) for index, token in beyond if token != tokenizer.pad_token]
    if not beyond:
        return
    shown = ", ".join(f"{token!r} = {index}" for index, token in beyond[:_SHOWN])
    more = f" and {len(beyond) - _SHOWN} more" if len(beyond) > _SHOWN else ""
    msg = (
        f"the tokenizer has tokens beyond the embedding's {vocab_size} rows: {shown}{more}; text that holds them "
        "cannot be read: enlarge the embedding (model.resize_token_embeddings(len(tokenizer))) and save the model "
        "again, or take the tokens out of the tokenizer"
    )
    raise ModelUnsupportedError(msg)


def _check_frame(tokenizer: Any, vocab_size: int) -> None:
    """Refuse ids that the tokenizer puts around every text and that have no row."""
    if beyond := [index for index in tokenizer("a")["input_ids"] if not _is_inside(index, vocab_size)]:
        msg = (
            f"the tokenizer adds token {beyond[0]} to every text, which is beyond the embedding's {vocab_size} rows: "
            "correct the post_processor in tokenizer.json"
        )
        raise ModelUnsupportedError(msg)


def _is_inside(token: object, rows: int) -> bool:
    return isinstance(token, int) and not isinstance(token, bool) and 0 <= token < rows


def _listed(tokens: list[Any]) -> str:
    return ", ".join(repr(token) for token in tokens)
