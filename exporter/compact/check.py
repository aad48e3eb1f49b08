"""Compares a compact model with PyTorch: the finished directory, through the code that devices run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from edge_runtime.inference import CompactModel
from exporter.errors import CompactParityError

TOLERANCE: Final = 1e-4
"""Largest difference of a float32 logit from PyTorch's; relative to the largest logit where that is beyond 1."""

_LENGTH: Final = 24
_PADDING: Final = 7
_THREADS: Final = 2

Float32 = npt.NDArray[np.float32]


def logits_difference(directory: Path, model: Any) -> tuple[float, float]:
    """Largest difference of a logit from PyTorch's, and the largest logit of PyTorch's.

    Two sequences of random tokens, the second padded on the right; a decoder also reads the first in steps, with its
    key/value cache.

    Args:
        directory: finished compact model.
        model: the pruned model that it was exported from.

    Raises:
        CompactModelError: a device could not open the directory.
        CompactParityError: a logit is not finite.
    """
    compact = CompactModel.open(directory, num_threads=_THREADS)
    text = compact.info.text
    length = min(_LENGTH, compact.info.max_length)
    ids = np.random.default_rng(0).integers(0, text.vocab_size, (2, length), dtype=np.int64)
    mask = np.ones_like(ids)
    mask[1, max(1, length - _PADDING) :] = 0
    ids[mask == 0] = text.pad_token_id
    with torch.inference_mode():
        expected: Float32 = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()
    got = compact.logits(ids, mask)
    if compact.info.task == "causal-lm":
        in_steps = compact.logits_in_steps(ids[:1], num_first=max(1, length - _PADDING))
        expected = np.concatenate([expected[mask == 1], expected[0]])
        got = np.concatenate([got[mask == 1], in_steps[0]])
    if not np.isfinite(got).all():
        msg = f"compact model gives logits that are not finite: {int((~np.isfinite(got)).sum())} of {got.size}"
        raise CompactParityError(msg)
    return float(np.abs(got - expected).max()), float(np.abs(expected).max())


def check_parity(directory: Path, model: Any) -> float:
    """Largest difference of a float32 logit from PyTorch's.

    Raises:
        CompactParityError: it is beyond :data:`TOLERANCE`.
        CompactModelError: a device could not open the directory.
    """
    difference, largest = logits_difference(directory, model)
    if difference > TOLERANCE * max(1.0, largest):
        msg = (
            f"compact model's logits are {difference:.2e} from PyTorch's (largest {largest:.1f}), "
            f"at most {TOLERANCE:.0e} is accepted: nothing was written; please report the model's architecture"
        )
        raise CompactParityError(msg)
    return difference
