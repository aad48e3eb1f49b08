"""Rounds of zero-order tuning that a device can replay: a part of its work."""

from __future__ import annotations

from typing import Annotated

import msgspec

from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import Count, Decay, Factor, Positive
from edge_runtime.formats.seed_pool import Noise


class PreconditionerStart(msgspec.Struct, frozen=True, kw_only=True):
    """The start of HiSo's diagonal H; the later rounds in the log, all at one cut, give its current value."""

    round_number: Positive
    """H starts before the steps of this round."""
    lower: Factor
    """Every element of H of the lower part."""
    upper: Factor
    """Every element of H of the upper part."""


class LoggedRound(msgspec.Struct, frozen=True, kw_only=True):
    """The changes that a round of zero-order tuning made to the tuned tensors: enough to repeat them, bit for bit."""

    round_number: Positive
    cut: Count
    """Number of blocks in the lower part; the embedding belongs to it too, but is not tuned."""
    lower_learning_rate: Decay
    """Learning rate of the lower part; 0 = its tensors were neither perturbed nor changed."""
    learning_rate: Factor
    """Learning rate of the upper part."""
    num_outer: Positive
    """Perturbations of the lower part in a step."""
    num_inner: Positive
    """Perturbations of the upper part for each perturbation of the lower part."""
    scalars: Annotated[bytes, msgspec.Meta(max_length=limits.MAX_MESSAGE_BYTES)]
    """Averages over the devices, float32, little-endian, ``[steps, num_outer, num_inner]``."""
    is_normalised: bool = False
    """See :class:`edge_runtime.wire.work.ZeroOrderWork` for this and the next two fields."""
    preconditioner: PreconditionerStart | None = None
    noise: Noise = "rademacher"
