"""Names of models on the Hugging Face hub; without torch, to check a name before anything is loaded."""

from __future__ import annotations

import re
from typing import Final

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def is_hub_id(name: str) -> bool:
    """Could this be the id of a model on the hub?

    >>> [is_hub_id(name) for name in ("gpt2", "Qwen/Qwen2.5-0.5B", "./model", "/models/x", "a/b/c")]
    [True, True, False, False, False]
    """
    return _HUB_ID.fullmatch(name) is not None
