"""HiSo's diagonal preconditioner H: it is never sent, because it follows from the scalars of the log bit by bit.

HiSo (arXiv 2506.02370) and its public code: noise is ``z = H^-1/2 u``, and after a round, for each of its steps, ``H <-
0.95 H + 0.05 e^2`` with the step's estimate ``e``, the mean of ``rho z`` over the perturbations. Three things are ours:
+-1 in place of Gaussian noise; H restarts after some rounds from one number for each part, so that a log of bounded
length determines it; and bounds that keep H^-1/2 finite where nothing is learnt for long. H holds little information on
single elements: docs/zero-order.md.

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
"""Share of H that stays from one step to the next."""
ADDED: Final = np.float32(0.05)
"""Weight of the squared estimate."""
LEAST: Final = np.float32(1e-8)
"""Smallest element of H: noise is at most 10,000 times its size without H."""
MOST: Final = np.float32(1e8)
"""Largest element of H: noise is at least a ten-thousandth of its size without H."""


class Preconditioner:
    """H before some round, and the factor of that round's noise.

    Args:
        parts: the tuned tensors, at the cut of all rounds since the start.
        start: the start of H.
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
            parts: the tuned tensors, at the cut of all rounds since the start.
            seed: seed of the noise.
            log: rounds by ascending number; rounds with another start are skipped.
            start: the start of H.

        Raises:
            TensorError: a round is at another cut, or its scalars are malformed.
        """
        made = cls(parts, start)
        for logged in log:
            if logged.preconditioner == start:
                made.add(seed, logged)
        return made

    def mean(self, which: Which) -> float:
        """Mean of H over the elements of a part; 1 if the part is empty."""
        values = [self.diagonal[tensor.place] for tensor in self._parts.part(which)]
        return float(np.concatenate(values).mean(dtype=np.float64)) if values else 1.0

    @property
    def scale(self) -> Array:
        """H^-1/2, float32 ``[N]``; the same for all steps of a round."""
        return np.divide(np.float32(1), np.sqrt(self.diagonal), dtype=np.float32)

    def add(self, seed: int, logged: LoggedRound) -> None:
        """Update H by the steps of a round.

        Args:
            seed: seed of the noise.
            logged: the next round of the log.

        Raises:
            TensorError: the round is at another cut, or its scalars are malformed.
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
    """Replay the rounds of a log, in place.

    Args:
        flat: theta at the beginning of round ``first``, float32 ``[N]``.
        manifest: manifest of the artifact.
        rank: rank of the adapter.
        seed: seed of the noise.
        log: rounds by ascending number; with a preconditioner, from its start on.
        first: theta contains the rounds with lower numbers already; they are replayed for H alone.

    Raises:
        TensorError: a round does not fit the artifact, or its scalars are malformed.
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
