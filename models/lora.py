"""The one linear layer that stages use: a frozen weight, an optional bias and, where factors are present, LoRA."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from edge_runtime.formats import names

Weights = Mapping[str, torch.Tensor]


def linear(weights: Weights, module: str, x: torch.Tensor) -> torch.Tensor:
    """``x W^T + b + s (x A^T) B^T`` (Hu et al. 2021, arXiv 2106.09685), the update scaled where it is ``rank`` wide.

    Args:
        weights: ``<module>.weight`` float ``[out, in]``; optionally ``<module>.bias`` ``[out]``, and the factors
            ``<module>.lora_A.weight`` ``[rank, in]`` and ``<module>.lora_B.weight`` ``[out, rank]`` with
            ``lora_scaling`` ``[]``.
        module: name of the layer within its stage.
        x: float ``[T, in]``, tokens of all sequences.

    Returns:
        Float ``[T, out]``.
    """
    out = functional.linear(x, weights[f"{module}.weight"], weights.get(f"{module}.bias"))
    a = weights.get(names.lora_a(module))
    if a is None:
        return out
    narrow = functional.linear(x, a) * weights[names.LORA_SCALING]
    return torch.addmm(out, narrow, weights[names.lora_b(module)].t())
