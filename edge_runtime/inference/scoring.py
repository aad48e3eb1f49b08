"""What logits say: probabilities, and the sums that the evaluation graph of an artifact gives.

Shape legend: ``B`` batch, ``L`` length, ``C`` classes or vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.evaluator import EvaluationResult
from edge_runtime.wire import names

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


def softmax(logits: Float32) -> Float32:
    """Probabilities ``[B, C]`` from logits ``[B, C]``."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    out: Float32 = weights / weights.sum(axis=1, keepdims=True)
    return out


def score_classes(logits: Float32, labels: Int64) -> EvaluationResult:
    """Sums over a batch of examples: logits ``[B, C]``, labels int64 ``[B]``."""
    return _score(logits, labels)


def score_tokens(logits: Float32, labels: Int64) -> EvaluationResult:
    """Sums over a batch of sequences: logits ``[B, L, C]``, labels ``[B, L]``; position ``t`` predicts ``t + 1``."""
    targets = labels[:, 1:]
    is_target = targets != names.IGNORE_LABEL
    return _score(logits[:, :-1][is_target], targets[is_target])


def _score(logits: Float32, targets: Int64) -> EvaluationResult:
    highest = logits.max(axis=1)
    log_sum = np.log(np.exp(logits - highest[:, None]).sum(axis=1)) + highest
    losses = log_sum - logits[np.arange(targets.size), targets]
    return EvaluationResult(
        loss_sum=float(losses.sum(dtype=np.float64)),
        num_targets=targets.size,
        num_correct=int((logits.argmax(axis=1) == targets).sum()),
    )
