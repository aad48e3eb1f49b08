"""Results from logits: probabilities, and the same sums as an artifact's evaluation graph.

Shape legend: ``B`` batch, ``L`` length, ``C`` classes or vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.evaluator import EvaluationResult

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


def softmax(logits: Float32) -> Float32:
    """Probabilities ``[B, C]`` from logits ``[B, C]``."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    out: Float32 = weights / weights.sum(axis=1, keepdims=True)
    return out


def score_batch(logits: Float32, batch: Batch) -> EvaluationResult:
    """Sums over a batch: logits ``[B, C]`` of sequences, or ``[B, L, C]`` of tokens."""
    rows, targets = batch.scored()
    if logits.ndim == 3:
        logits = logits.reshape(-1, logits.shape[-1])[rows]
    highest = logits.max(axis=1)
    log_sum = np.log(np.exp(logits - highest[:, None]).sum(axis=1)) + highest
    losses = log_sum - logits[np.arange(targets.size), targets]
    return EvaluationResult(
        loss_sum=float(losses.sum(dtype=np.float64)),
        num_targets=targets.size,
        num_correct=int((logits.argmax(axis=1) == targets).sum()),
    )
