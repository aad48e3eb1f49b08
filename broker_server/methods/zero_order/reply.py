"""Replies of scalars, as they arrive."""

from __future__ import annotations

from typing import Final

import numpy as np

from edge_runtime.errors import TensorError
from edge_runtime.formats.zero_order import decode_reply

HEADER_BYTES: Final = 4096
"""Allowance for the safetensors header of a reply, which has two tensors."""


def check_reply(blob: bytes, shape: tuple[int, int], largest: float | None) -> None:
    """Refuse what are not the scalars that were asked for, within their bound.

    Args:
        blob: from the network.
        shape: of the scalars.
        largest: what they were to be cut to; None = nothing.

    Raises:
        TensorError: they are not.
    """
    magnitude = float(np.abs(decode_reply(blob, shape).scalars).max())
    if largest is not None and magnitude > np.float32(largest):
        msg = f"a scalar has the magnitude {magnitude:g}, and was to be cut to {largest:g}"
        raise TensorError(msg)
