"""The order of the upper blocks' forward passes: one adapter after the other, or block by block.

MobiZO (arXiv 2409.15520) makes perturbations rows of one batch, so that weights are read once for all of them. With
onnxruntime's products this helps only very small batches (docs/zero-order.md). Weights that are stored in fewer bits
are converted each time that their block is loaded. If several perturbations pass a block before the next block is
loaded, one conversion serves all of them. Both orders give the same results to the last bit, so each device takes the
order that it measured as faster.
"""

from __future__ import annotations

import logging
from typing import Final

import numpy as np

from edge_runtime.formats.manifest import Manifest

logger = logging.getLogger(__name__)

TRIALS: Final = 3
"""Steps that are timed in each order. The shortest counts: the first step loads graphs, and other processes run too."""
MEMORY_SHARE: Final = 1 / 100
"""Share of the memory of evaluation for hidden states that wait for a block."""


class Ways:
    """The choice of the order, from times of steps and the memory for hidden states.

    Args:
        manifest: manifest of the artifact.
        memory_bytes: memory of evaluation.
    """

    def __init__(self, manifest: Manifest, memory_bytes: int) -> None:
        matrices = [spec for spec in manifest.tensors if spec.layer is not None and len(spec.shape) > 1]
        self._is_converted = any(spec.dtype != "float32" for spec in matrices)
        self._token_bytes = 2 * manifest.hidden_size * np.dtype(np.float32).itemsize
        self._spare_bytes = MEMORY_SHARE * memory_bytes
        self._times: dict[bool, list[float]] = {False: [], True: []}

    def group_size(self, num_tokens: int, count: int) -> int:
        """Number of adapters that may pass a block together; each after the first takes two arrays of hidden states.

        Args:
            num_tokens: tokens of the batch, padding included.
            count: number of adapters.
        """
        most = 1 + int(self._spare_bytes / (self._token_bytes * num_tokens)) if self._is_converted else 1
        return min(most, count)

    def is_by_block(self) -> bool:
        """Return whether the next step should go block by block: the order with fewer trials, then the quicker one."""
        in_turn, by_block = self._times[False], self._times[True]
        if min(len(in_turn), len(by_block)) < TRIALS:
            return len(by_block) < len(in_turn)
        return min(by_block) < min(in_turn)

    def add(self, seconds: float, *, is_by_block: bool) -> None:
        """Record the time of a step, seconds per token."""
        times = self._times[is_by_block]
        if len(times) < TRIALS:
            times.append(seconds)
            if all(len(kept) == TRIALS for kept in self._times.values()):
                ratio, order = min(self._times[True]) / min(self._times[False]), "block by block"
                chosen = order if self.is_by_block() else "in turn"
                logger.info("%s, a step takes %.2f of the time of one in turn: going on %s", order, ratio, chosen)
