"""The loss: cross entropy, its gradient with respect to the scores, and the counts of an evaluation."""

from __future__ import annotations

import torch

from edge_runtime.formats import names


def cross_entropy(scores: torch.Tensor, targets: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
    """Negative log-likelihoods (nats) and counts.

    Args:
        scores: float ``[T, C]``.
        targets: int64 ``[T]``, in [0, C).
        scale: float ``[]``, factor of the sum; 1 / T makes it the mean.

    Returns:
        ``loss`` (scaled), ``loss_sum``, float ``[]``; ``num_correct``, int64 ``[]``.
    """
    loss_sum = -scores.log_softmax(dim=-1).gather(1, targets.unsqueeze(1)).sum()
    return {
        names.LOSS: loss_sum * scale,
        names.LOSS_SUM: loss_sum,
        names.NUM_CORRECT: (scores.argmax(dim=-1) == targets).sum(),
    }
