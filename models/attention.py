"""Scaled dot-product attention with a backward of its own, of fewer passes over the weights than autograd's."""

from __future__ import annotations

import math
from typing import Any

import torch


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        scores = torch.bmm(query, key.transpose(1, 2)) / math.sqrt(query.shape[2])
        batch, num_rows, length = mask.shape[0], mask.shape[2], mask.shape[3]
        heads = scores.shape[0] * scores.shape[1] // (batch * num_rows)
        probabilities = (scores.view(batch, heads, num_rows, length) + mask).softmax(dim=-1).view(scores.shape)
        mixed = torch.bmm(probabilities, value)
        ctx.save_for_backward(query, key, value, probabilities, mixed)
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        (gradient,) = gradients
        query, key, value, probabilities, mixed = ctx.saved_tensors
        scale = math.sqrt(query.shape[2])
        value_gradient = torch.bmm(probabilities.transpose(1, 2), gradient)
        inner = (gradient * mixed).sum(dim=-1, keepdim=True)
        scores_gradient = probabilities * (torch.bmm(gradient, value.transpose(1, 2)) - inner)
        query_gradient = torch.bmm(scores_gradient, key) / scale
        key_gradient = torch.bmm(scores_gradient.transpose(1, 2), query) / scale
        return query_gradient, key_gradient, value_gradient, None


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """``softmax(Q K^T / sqrt(D) + mask) V`` (Vaswani et al. 2017, arXiv 1706.03762, equation 1).

    Its backward takes ``rowsum(P * dP)`` as ``rowsum(dO * O)``, D wide in place of L (Dao et al. 2022, appendix B.2 of
    arXiv 2205.14135).

    Args:
        query: float ``[N, G * Q, D]``: the G groups of query heads that share a key, of each head and example.
        key: float ``[N, L, D]``.
        value: float ``[N, L, D]``.
        mask: float ``[B, 1, Q or 1, L]``, added to the scores; no gradient flows into it.

    Returns:
        Float ``[N, G * Q, D]``.
    """
    mixed: torch.Tensor = _Attention.apply(query, key, value, mask)  # type: ignore[no-untyped-call]
    return mixed
