"""The sizes of a ``config.json``, each against a range, before anything is made of them.

transformers loops over the number of blocks and of classes while it reads a configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edge_runtime.bounds import limits
from models.errors import ModelUnsupportedError

_MAX_ROWS: Final = 1 << 24
"""Most tokens of a vocabulary, and of a text."""
_MOST: Final[dict[str, int]] = {
    "num_hidden_layers": limits.MAX_LAYERS,
    "hidden_size": limits.MAX_UNITS,
    "num_attention_heads": limits.MAX_UNITS,
    "num_key_value_heads": limits.MAX_UNITS,
    "head_dim": limits.MAX_UNITS,
    "intermediate_size": limits.MAX_UNITS,
    "vocab_size": _MAX_ROWS,
    "type_vocab_size": _MAX_ROWS,
    "max_position_embeddings": _MAX_ROWS,
    "sliding_window": limits.MOST,
    "num_labels": limits.MAX_LABELS,
    "_num_labels": limits.MAX_LABELS,
}


def check_sizes(raw: Mapping[str, Any]) -> None:
    """Refuse a configuration with a size that no model has.

    Args:
        raw: ``config.json``; transformers sets keys that are missing or null.

    Raises:
        ModelUnsupportedError: names the first key and its range.
    """
    for key, most in _MOST.items():
        value = raw.get(key)
        if value is None or (key == "sliding_window" and _has_no_window(raw)):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            text = repr(value)
            shown = text if len(text) <= 40 else f"{text[:37]}..."
            msg = f"config.json says {key} = {shown}, expected a whole number from 1 to {most}: copy the model again"
            raise ModelUnsupportedError(msg)


def _has_no_window(raw: Mapping[str, Any]) -> bool:
    """Return whether the size of a window is not used; qwen2 uses none unless it is told to."""
    return raw.get("use_sliding_window", None if raw.get("model_type") == "qwen2" else True) in {False, None}
