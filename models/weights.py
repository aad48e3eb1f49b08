"""Compares a checkpoint's weights with those that the stages take: none lost, none left over, none contradicted."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import safetensors
import torch

from edge_runtime.formats import names
from models.checkpoint_files import file_of
from models.errors import ModelNotFoundError, ModelUnsupportedError

if TYPE_CHECKING:
    from models.family import Family

_OF_STACK: Final = re.compile(r"(^|\.)(layers?\.\d+|embed_tokens|embeddings|norm)\.")
"""In names of weights that heads of other tasks do not have."""
_NO_WEIGHT: Final = re.compile(r"(inv_freq|_ids)$")
_FILE: Final = names.CHECKPOINT_FILE
_OUTPUT: Final = "lm_head.weight"


def check_missing(model: str | Path, family: Family, missing: Collection[str]) -> list[str]:
    """Refuse a checkpoint that lacks weights.

    Args:
        model: the model that the user named, for the error.
        family: declares the weights that a checkpoint may lack.
        missing: names of the weights that it lacks.

    Returns:
        A line for a person, if the model goes without something.

    Raises:
        ModelNotFoundError: names the first.
    """
    if lost := sorted(set(missing) - set(family.dense) - set(family.may_lack)):
        msg = f"the checkpoint of {model} lacks {len(lost)} weights, for example {lost[0]!r}: it is not complete"
        raise ModelNotFoundError(msg)
    lacking = sorted(set(missing) & set(family.may_lack))
    return [f"the checkpoint has no {', '.join(lacking)}: random values, which are not trained"] if lacking else []


def check_unused(model: str | Path, unused: Collection[str]) -> None:
    """Refuse a checkpoint that holds weights of blocks or embeddings which its configuration has no place for.

    Args:
        model: the model that the user named, for the error.
        unused: names of weights that transformers did not take; heads of other tasks may be among them.

    Raises:
        ModelUnsupportedError: names the first.
    """
    found = sorted(name for name in unused if _OF_STACK.search(name) and not _NO_WEIGHT.search(name))
    if found:
        msg = (
            f"the checkpoint of {model} holds {len(found)} weights that its config.json has no place for, for example "
            f"{found[0]!r}: it may be of another architecture, or config.json lacks a setting such as attention_bias"
        )
        raise ModelUnsupportedError(msg)


def check_tied(model: str | Path, family: Family, state: Mapping[str, torch.Tensor]) -> None:
    """Refuse a checkpoint that says of its output matrix that it is the embedding, and stores another one.

    transformers 4 takes the embedding there, and version 5 the stored matrix.

    Args:
        model: local directory, or id on the hub.
        family: its family.
        state: weights as transformers loaded them.

    Raises:
        ModelUnsupportedError: the two differ.
    """
    if family.dense or any(param.name == _OUTPUT for param in family.head_params):
        return
    stored = _stored(model, _OUTPUT)
    table = state[family.word_embedding]
    if stored is not None and not (stored.shape == table.shape and torch.equal(stored.to(table.dtype), table)):
        msg = (
            f"config.json of {model} says tie_word_embeddings = True, but the checkpoint holds {_OUTPUT} of other "
            f"values than {family.word_embedding}: set it to false if the model was trained so, or take the weight out"
        )
        raise ModelUnsupportedError(msg)


def _stored(model: str | Path, name: str) -> torch.Tensor | None:
    """A weight as it lies in safetensors files; None if it is in none."""
    index = file_of(model, f"{_FILE}.index.json")
    if index is None:
        path = file_of(model, _FILE)
    else:
        shard = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).get(name)
        path = None if shard is None else file_of(model, shard)
    if path is None:
        return None
    with safetensors.safe_open(path, framework="pt") as file:
        return file.get_tensor(name) if name in file.keys() else None  # noqa: SIM118 - no mapping
