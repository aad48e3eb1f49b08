"""Perturbations and steps of zero-order tuning, in float32 and in one order of operations, for devices and server.

The seed and the scalars determine the steps: of a device in its assignment, of the server on averages, and of a device
that replays a log. Each operation is one IEEE 754 operation on arrays, and sums are element-wise additions in the
documented order. So results are the same bits on every platform.

Shape legend: ``N`` elements of the flat vector, ``K`` steps, ``P1`` outer and ``P2`` inner perturbations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import TensorError
from edge_runtime.formats.seed_pool import Noise
from edge_runtime.wire.logged_rounds import LoggedRound
from edge_runtime.wire.work import ZeroOrderWork
from edge_runtime.zero_order.noise import draw
from edge_runtime.zero_order.parts import TunedParts, TunedTensor, Which

Array = npt.NDArray[np.float32]

LEAST_DEVIATION: Final = 1e-10
"""Smallest standard deviation of a step's scalars to divide by (ours): far below differences of float32 losses."""


def perturb(  # noqa: PLR0913, PLR0917 - what to write where, and the four numbers that name the noise
    flat: Array,
    parts: TunedParts,
    which: Which,
    epsilon: float,
    seed: int,
    round_number: int,
    step: int,
    perturbation: int,
    out: Array,
    scale: Array | None = None,
    noise: Noise = "rademacher",
) -> None:
    """Write theta + epsilon * z of one part.

    It writes to another buffer, because adding and subtracting in place does not restore the last bit.

    Args:
        flat: theta, float32 ``[N]``.
        parts: the tuned tensors.
        which: the part that is written.
        epsilon: size of the perturbation with its sign; rounded to float32.
        seed: seed of the noise, see :func:`edge_runtime.zero_order.noise.signs` for this and the next three.
        round_number: round of the assignment.
        step: step of the assignment, 1-based.
        perturbation: p of the lower part, p * num_inner + j of the upper part.
        out: float32 ``[N]``; elements of other tensors are unchanged.
        scale: factor of the noise, float32 ``[N]``
            (:class:`edge_runtime.zero_order.preconditioner.Preconditioner`); None = 1.
        noise: distribution of the noise.
    """
    size = np.float32(epsilon)
    for tensor in parts.part(which):
        drawn = draw(noise, seed, round_number, step, perturbation, tensor.index, tensor.size)
        if scale is not None:
            drawn *= scale[tensor.place]
        drawn *= size
        np.add(flat[tensor.place], drawn, out=out[tensor.place])


def apply_step(
    flat: Array,
    parts: TunedParts,
    numbers: LoggedRound | ZeroOrderWork,
    seed: int,
    round_number: int,
    step: int,
    scalars: Array,
    scale: Array | None = None,
) -> None:
    """Do one step, in place.

    Upper part: ``g = sum over (p, j) of rho_pj * z2_pj`` in that order, ``theta -= float32(lr / (P1 P2)) * g``. Lower
    part: ``m_p = (sum over j of rho_pj) / P2``, ``g = sum over p of m_p * z1_p``, ``theta -= float32(lower_lr / P1) *
    g``. All in float32, except that rates are divided in float64 and then rounded. If ``P2`` is 1 this is MeZO (arXiv
    2305.17333) with several perturbations, else FedSPZO's form with two blocks (arXiv 2502.10239); a rate for each part
    is ours. With ``is_normalised`` both rates are divided by the standard deviation of the step's scalars, as in FZOO
    (arXiv 2506.09034), in float64 before the rounding; below ``LEAST_DEVIATION`` theta does not change.

    Args:
        flat: theta, float32 ``[N]``.
        parts: the tuned tensors, at the cut of ``numbers``.
        numbers: rates and counts.
        seed: seed of the noise.
        round_number: round of the assignment.
        step: step of the assignment, 1-based.
        scalars: rho, float32 ``[P1, P2]``.
        scale: factor of the noise, float32 ``[N]``; None = 1.
    """
    divisor = _deviation(scalars) if numbers.is_normalised else 1.0
    if divisor < LEAST_DEVIATION:
        return
    key = (seed, round_number, step)
    with np.errstate(over="ignore", invalid="ignore"):  # the evaluation finds a model that diverged
        for tensors, rate, weights in step_weights(parts, numbers, scalars):
            size = np.float32(rate / len(weights) / divisor)
            for tensor in tensors:
                direction = weighted_noise(tensor, weights, key, scale, numbers.noise)
                direction *= size
                flat[tensor.place] -= direction


Weights = list[tuple[int, np.float32]]
"""Perturbations by ascending number, each with the weight of its noise."""


def step_weights(
    parts: TunedParts, numbers: LoggedRound | ZeroOrderWork, scalars: Array
) -> Iterator[tuple[tuple[TunedTensor, ...], float, Weights]]:
    """Yield the weights of a step's noise for each part.

    Args:
        parts: the tuned tensors, at the cut of ``numbers``.
        numbers: rates and counts.
        scalars: rho, float32 ``[P1, P2]``.

    Yields:
        Tensors of a part, its learning rate, and its weights; the lower part only if its rate is not 0.
    """
    yield parts.upper, numbers.learning_rate, list(enumerate(scalars.reshape(-1)))
    if numbers.lower_learning_rate > 0:
        means = [_sum(row) / np.float32(numbers.num_inner) for row in scalars]
        yield parts.lower, numbers.lower_learning_rate, list(enumerate(means))


def weighted_noise(
    tensor: TunedTensor, weights: Weights, key: tuple[int, int, int], scale: Array | None, noise: Noise
) -> Array:
    """Weighted sum of a tensor's noise, from left to right; only one vector of noise is in memory.

    Args:
        tensor: a tensor of one part.
        weights: weights of this part.
        key: seed, round and step.
        scale: factor of the sum, float32 ``[N]``; None = 1.
        noise: distribution of the noise.

    Returns:
        Float32 ``[size]``.
    """
    total = np.zeros(tensor.size, np.float32)
    for perturbation, weight in weights:
        drawn = draw(noise, *key, perturbation, tensor.index, tensor.size)
        drawn *= weight
        total += drawn
    if scale is not None:
        total *= scale[tensor.place]
    return total


def apply_round(flat: Array, parts: TunedParts, seed: int, logged: LoggedRound, scale: Array | None = None) -> None:
    """Replay the steps of a round, in place.

    Args:
        flat: theta at the round's start, float32 ``[N]``.
        parts: the tuned tensors, at the round's cut: ``TunedParts.of(manifest, rank, logged.cut)``.
        seed: seed of the noise.
        logged: the round.
        scale: factor of the noise, float32 ``[N]``; None = 1.

    Raises:
        TensorError: the parts are at another cut, a scale is missing or not expected, or the scalars are malformed.
    """
    if (scale is None) != (logged.preconditioner is None):
        missing = "none is given" if scale is None else "one is given"
        msg = f"a scale belongs to the noise of a round with a preconditioner: round {logged.round_number}, {missing}"
        raise TensorError(msg)
    check_cut(parts, logged)
    for step, scalars in enumerate(scalars_of(logged), start=1):
        apply_step(flat, parts, logged, seed, logged.round_number, step, scalars, scale)


def check_cut(parts: TunedParts, logged: LoggedRound) -> None:
    """Refuse parts that do not fit a round.

    Raises:
        TensorError: the parts are at another cut.
    """
    if parts.cut != logged.cut:
        msg = f"round {logged.round_number} was at a cut of {logged.cut}, not at {parts.cut}"
        raise TensorError(msg)


def scalars_of(logged: LoggedRound) -> Array:
    """The scalars of a round, float32 ``[K, P1, P2]``.

    Raises:
        TensorError: there are none, they are not whole steps, or one is not finite.
    """
    size = 4 * logged.num_outer * logged.num_inner
    if not logged.scalars or len(logged.scalars) % size:
        msg = f"round {logged.round_number} has {len(logged.scalars)} bytes of scalars, expected steps of {size} bytes"
        raise TensorError(msg)
    scalars = np.frombuffer(logged.scalars, "<f4").astype(np.float32)
    if not np.isfinite(scalars).all():
        msg = f"round {logged.round_number} has scalars that are not finite"
        raise TensorError(msg)
    return scalars.reshape(-1, logged.num_outer, logged.num_inner)


def _sum(row: Array) -> np.float32:
    """Sum from left to right; the order of numpy's own sum is not fixed."""
    total = np.float32(0)
    for value in row:
        total += value
    return total


def _deviation(scalars: Array) -> float:
    """Standard deviation of a step's scalars (divisor: their number), by exact sums that are rounded once."""
    values = [float(value) for value in scalars.reshape(-1)]
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) * (value - mean) for value in values) / len(values))
