"""The choice of the next token from its logits."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from edge_runtime.inference.errors import SamplingError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The rule by which the next token is chosen.

    Raises:
        SamplingError: a value outside its range.
    """

    temperature: float = 0.0
    """0 = greedy (the arg-max, nothing random); otherwise logits are divided by it before a token is drawn."""
    top_k: int = 0
    """Only this many of the likeliest tokens are drawn from; 0 = all."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            msg = f"temperature is {self.temperature}, expected 0 (greedy) or a positive number"
            raise SamplingError(msg)
        if self.top_k < 0:
            msg = f"top_k is {self.top_k}, expected 0 (all tokens) or more"
            raise SamplingError(msg)


def choose(logits: npt.NDArray[np.float32], sampling: Sampling, rng: np.random.Generator) -> int:
    """Next token id from logits ``[vocab]``; greedy, the smallest of equally likely ids.

    >>> choose(np.array([0.0, 3.0, 3.0], np.float32), Sampling(), np.random.default_rng(0))
    1
    """
    if sampling.temperature == 0.0:
        return int(logits.argmax())
    # The shift comes first: a difference of float32 values fits a float64, and the quotient is then at most 0.
    scaled = (logits.astype(np.float64) - float(logits.max())) / sampling.temperature
    if 0 < sampling.top_k < scaled.size:
        scaled[np.argpartition(scaled, -sampling.top_k)[: -sampling.top_k]] = -np.inf
    weights = np.exp(scaled)
    return int(rng.choice(scaled.size, p=weights / weights.sum()))
