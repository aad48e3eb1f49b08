"""HiSo's diagonal from scalars alone: it is never sent, because everyone with the log has it to the last bit.

HiSo (arXiv 2506.02370) and its public code: noise is ``z = H^-1/2 u``, and after a round, for each of its steps, ``H <-
0.95 H + 0.05 e^2`` with the step's estimate ``e``, the mean of ``rho z`` over the perturbations. Ours: +-1 for its
Gaussian; H begins anew at a number for each part after some rounds, so that a log of bounded length has all of it;
bounds, so that H^-1/2 stays finite where nothing is learnt for long. What H knows of single elements is little:
docs/zero-order.md.

Shape legend: ``N`` elements of the flat vector.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from edge_runtime.formats.manifest import Manifest
from edge_runtime.wire.logged_rounds import LoggedRound, PreconditionerStart
from edge_runtime.zero_order.parts import TunedParts, Which
from edge_runtime.zero_order.replay import apply_round, check_cut, scalars_of, step_weights, weighted_noise

Array = npt.NDArray[np.float32]

KEPT: Final = np.float32(0.95)
"""Of H, from one step to the next."""
ADDED: Final = np.float32(0.05)
"""Of the squared estimate."""
LEAST: Final = np.float32(1e-8)
"""Of H: noise is at most 10,000 times as large as without."""
MOST: Final = np.float32(1e8)
"""Largest element of H: noise is at least a ten-thousandth of its size without H."""


class Preconditioner:
    """H before some round, and the factor of that round's noise.

    Args:
        parts: what is tuned, at the cut of all rounds since the start.
        start: where H began.
    """

    def __init__(self, parts: TunedParts, start: PreconditionerStart) -> None:
        self._parts = parts
        self.diagonal: Array = np.ones(parts.num_elements, np.float32)
        """H, float32 ``[N]``; 1 if nothing is tuned."""
        for tensors, value in ((parts.lower, start.lower), (parts.upper, start.upper)):
            for tensor in tensors:
                self.diagonal[tensor.place] = np.clip(np.float32(value), LEAST, MOST)

    @classmethod
    def after(cls, parts: TunedParts, seed: int, log: Iterable[LoggedRound], start: PreconditionerStart) -> Self:
        """H after the rounds of a log.

        Args:
            parts: what is tuned, at the cut of all rounds since the start.
            seed: of the noise.
            log: rounds by ascending number; those of another start are passed over.
            start: where H began.

        Raises:
            TensorError: a round is at another cut, or its scalars are not what a round has.
        """
        made = cls(parts, start)
        for logged in log:
            if logged.preconditioner == start:
                made.add(seed, logged)
        return made

    def mean(self, which: Which) -> float:
        """Of H, over the elements of a part; 1 if it has none."""
        values = [self.diagonal[tensor.place] for tensor in self._parts.part(which)]
        return float(np.concatenate(values).mean(dtype=np.float64)) if values else 1.0

    @property
    def scale(self) -> Array:
        """H^-1/2, float32 ``[N]``; the same for all steps of a round."""
        return np.divide(np.float32(1), np.sqrt(self.diagonal), dtype=np.float32)

    def add(self, seed: int, logged: LoggedRound) -> None:
        """Take the steps of a round into H.

        Args:
            seed: of the noise.
            logged: the round that H is that of before.

        Raises:
            TensorError: it is at another cut, or its scalars are not what a round has.
        """
        check_cut(self._parts, logged)
        scale = self.scale
        with np.errstate(over="ignore"):
            for step, scalars in enumerate(scalars_of(logged), start=1):
                key = (seed, logged.round_number, step)
                for tensors, _, weights in step_weights(self._parts, logged, scalars):
                    for tensor in tensors:
                        estimate = weighted_noise(tensor, weights, key, scale, logged.noise)
                        estimate /= np.float32(len(weights))
                        estimate *= estimate
                        estimate *= ADDED
                        values = self.diagonal[tensor.place]  # a view
                        values *= KEPT
                        values += estimate
                        np.clip(values, LEAST, MOST, out=values)


def apply_log(
    flat: Array, manifest: Manifest, rank: int, seed: int, log: Iterable[LoggedRound], first: int = 1
) -> None:
    """Do the rounds of a log again, in place.

    Args:
        flat: theta at the beginning of round ``first``, float32 ``[N]``.
        manifest: of the artifact.
        rank: of the adapter.
        seed: of the noise.
        log: rounds by ascending number; where they have a preconditioner, from where that began.
        first: rounds below it are in theta already; they count for H alone.

    Raises:
        TensorError: a round does not fit the artifact, or its scalars are not what a round has.
    """
    start: PreconditionerStart | None = None
    preconditioner: Preconditioner | None = None
    for logged in log:
        parts = TunedParts.of(manifest, rank, logged.cut)
        if logged.preconditioner != start:
            start = logged.preconditioner
            preconditioner = None if start is None else Preconditioner(parts, start)
        if logged.round_number >= first:
            apply_round(flat, parts, seed, logged, None if preconditioner is None else preconditioner.scale)
        if preconditioner is not None:
            preconditioner.add(seed, logged)
