"""Names in a run's directory (docs/architecture.md): the server writes them, and the exporter reads them."""

from __future__ import annotations

import re
from typing import Final

ARTIFACTS_FOLDER: Final = "artifacts"
"""Folder of the artifacts, each under its digest."""
ADAPTERS_FOLDER: Final = "adapters"
IMPORTANCE_FILE: Final = "importance.safetensors"
"""File of the current importance scores."""
STATE_FILE: Final = "state.sqlite"

_ROUND: Final = re.compile(r"round-([0-9]{4,9})\.safetensors")


def round_file(round_number: int) -> str:
    """Name of the file of a round, 0 = before training.

    >>> round_file(12)
    'round-0012.safetensors'
    """
    return f"round-{round_number:04d}.safetensors"


def round_of(name: str) -> int | None:
    """The round of a file by its name; None = the file belongs to no round.

    >>> round_of("round-0012.safetensors"), round_of("round-x.safetensors")
    (12, None)
    """
    match = _ROUND.fullmatch(name)
    return None if match is None else int(match[1])
