"""Losses: cross entropy, its gradient with respect to the scores, and what an evaluation counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edge_runtime.wire import names

if TYPE_CHECKING:
    from edge_runtime.wire.manifest import Task


def rows_and_targets(logits: torch.Tensor, labels: torch.Tensor, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores with the label that each row is to predict.

    Args:
        logits: float ``[B, C]``, or ``[B, S, C]`` for causal-lm.
        labels: int64 ``[B]``, or ``[B, S]`` for causal-lm, where position ``s`` predicts label ``s + 1``.
        task: tells the two apart.

    Returns:
        Float ``[T, C]`` and int64 ``[T]``.
    """
    if task == "text-classification":
        return logits, labels
    # Labels are shifted, not scores: the last position gets no target, and the large tensor is not copied.
    nothing = torch.full_like(labels[:, :1], names.IGNORE_LABEL)
    return logits.flatten(0, 1), torch.cat((labels[:, 1:], nothing), dim=1).flatten()


def cross_entropy(rows: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """Negative log-likelihoods (nats) and counts; rows whose target is -100 do not count.

    Args:
        rows: float ``[T, C]`` scores.
        targets: int64 ``[T]``.

    Returns:
        ``loss`` (mean over the targets; 0 without any), ``loss_sum``, float ``[]``; ``num_targets``, ``num_correct``,
        int64 ``[]``.
    """
    valid = targets != names.IGNORE_LABEL
    index = torch.where(valid, targets, 0).unsqueeze(1)
    likelihoods = rows.log_softmax(dim=-1).gather(1, index).squeeze(1)
    loss_sum = torch.where(valid, -likelihoods, 0.0).sum()
    num_targets = valid.sum()
    return {
        names.LOSS: loss_sum / num_targets.clamp(min=1).to(torch.float32),
        names.LOSS_SUM: loss_sum,
        names.NUM_TARGETS: num_targets,
        names.NUM_CORRECT: ((rows.argmax(dim=-1) == targets) & valid).sum(),
    }
