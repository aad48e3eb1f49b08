"""Rounds of zero-order tuning that a device can repeat, as its work carries them."""

from __future__ import annotations

from typing import Annotated

import msgspec

from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import Count, Decay, Factor, Positive
from edge_runtime.formats.seed_pool import Noise


class PreconditionerStart(msgspec.Struct, frozen=True, kw_only=True):
    """The start of HiSo's diagonal H; the rounds from there on in the log, all at one cut, give its present value."""

    round_number: Positive
    """Before its steps."""
    lower: Factor
    """Every element of H of the lower part."""
    upper: Factor
    """Every element of H of the upper part."""


class LoggedRound(msgspec.Struct, frozen=True, kw_only=True):
    """The changes that a round of zero-order tuning made to the tuned tensors: enough to repeat them, bit for bit."""

    round_number: Positive
    cut: Count
    """Blocks below it are the lower part; so is the embedding, which is not tuned."""
    lower_learning_rate: Decay
    """Of the lower part's tensors; 0 = they were neither perturbed nor changed."""
    learning_rate: Factor
    """Of the upper part's tensors."""
    num_outer: Positive
    """Perturbations of the lower part in a step."""
    num_inner: Positive
    """Perturbations of the upper part for each of those."""
    scalars: Annotated[bytes, msgspec.Meta(max_length=limits.MAX_MESSAGE_BYTES)]
    """Averages over the devices, float32, little-endian, ``[steps, num_outer, num_inner]``."""
    is_normalised: bool = False
    """See :class:`edge_runtime.wire.work.ZeroOrderWork`, as for the next two."""
    preconditioner: PreconditionerStart | None = None
    noise: Noise = "rademacher"
