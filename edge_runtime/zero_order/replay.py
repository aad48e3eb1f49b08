"""Perturbations and steps of zero-order tuning, in float32 and in one order of operations, the same on both sides.

Whoever has the seed and the scalars does the same steps: a device in its assignment, the server on the averages, and a
device that brings itself up to date. Each operation is a single one of IEEE 754 on arrays, and nothing is summed by
anything but element-wise additions in the order that is said here; so results are the same bits on every platform.

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
"""Least deviation of a step's scalars to normalise by (ours): far below differences of float32 losses."""


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

    Always from theta into another buffer, because adding and subtracting in place does not restore the last bit.

    Args:
        flat: theta, float32 ``[N]``.
        parts: what is tuned.
        which: the part that is written.
        epsilon: size of the perturbation with its sign; taken as float32.
        seed: see :func:`edge_runtime.zero_order.noise.signs`, as are the next three.
        round_number: of the assignment.
        step: within the assignment, 1-based.
        perturbation: p of the lower part, p * num_inner + j of the upper part.
        out: float32 ``[N]``; elements of other tensors stay as they are.
        scale: what the noise is multiplied by, float32 ``[N]``
            (:class:`edge_runtime.zero_order.preconditioner.Preconditioner`); None = nothing.
        noise: its law.
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
    g``. All in float32, but for the rates' divisions, which are in float64 before they are rounded. These are MeZO
    (arXiv 2305.17333) with more than one perturbation where ``P2`` is 1, and two blocks in the form of FedSPZO (arXiv
    2502.10239) where it is not; a rate for each part is ours. Where the numbers say ``is_normalised``, both rates are
    divided by the standard deviation of the step's scalars, as in FZOO (arXiv 2506.09034), in float64 and before they
    are rounded; where that is below ``LEAST_DEVIATION``, nothing moves.

    Args:
        flat: theta, float32 ``[N]``.
        parts: what is tuned, at the numbers' cut.
        numbers: rates and counts.
        seed: of the noise.
        round_number: of the assignment.
        step: within the assignment, 1-based.
        scalars: rho, float32 ``[P1, P2]``.
        scale: what the noise is multiplied by, float32 ``[N]``; None = nothing.
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
"""Numbers of perturbations, ascending, and the weight of each one's noise."""


def step_weights(
    parts: TunedParts, numbers: LoggedRound | ZeroOrderWork, scalars: Array
) -> Iterator[tuple[tuple[TunedTensor, ...], float, Weights]]:
    """Yield the weights of a step's noise in either part.

    Args:
        parts: what is tuned, at the numbers' cut.
        numbers: rates and counts.
        scalars: rho, float32 ``[P1, P2]``.

    Yields:
        Tensors of a part, its learning rate, and its weights; no lower part where its rate is 0.
    """
    yield parts.upper, numbers.learning_rate, list(enumerate(scalars.reshape(-1)))
    if numbers.lower_learning_rate > 0:
        means = [_sum(row) / np.float32(numbers.num_inner) for row in scalars]
        yield parts.lower, numbers.lower_learning_rate, list(enumerate(means))


def weighted_noise(
    tensor: TunedTensor, weights: Weights, key: tuple[int, int, int], scale: Array | None, noise: Noise
) -> Array:
    """Sum of a tensor's noise, from left to right: no more than one tensor's noise is held.

    Args:
        tensor: of either part.
        weights: of that part.
        key: seed, round and step.
        scale: factor of the sum, float32 ``[N]``; None = 1.
        noise: its law.

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
    """Do the steps of a round again, in place.

    Args:
        flat: theta at the round's start, float32 ``[N]``.
        parts: what is tuned, at the round's cut: ``TunedParts.of(manifest, rank, logged.cut)``.
        seed: of the noise.
        logged: the round.
        scale: what the noise was multiplied by, float32 ``[N]``; None = nothing.

    Raises:
        TensorError: the parts are at another cut, a scale is missing or too many, or the scalars are not what a round
            has.
    """
    if (scale is None) != (logged.preconditioner is None):
        missing = "none is given" if scale is None else "one is given"
        msg = f"a scale belongs to the noise of a round with a preconditioner: round {logged.round_number}, {missing}"
        raise TensorError(msg)
    check_cut(parts, logged)
    for step, scalars in enumerate(scalars_of(logged), start=1):
        apply_step(flat, parts, logged, seed, logged.round_number, step, scalars, scale)


def check_cut(parts: TunedParts, logged: LoggedRound) -> None:
    """Refuse parts that are not those of a round.

    Raises:
        TensorError: they are at another cut.
    """
    if parts.cut != logged.cut:
        msg = f"round {logged.round_number} was at a cut of {logged.cut}, not at {parts.cut}"
        raise TensorError(msg)


def scalars_of(logged: LoggedRound) -> Array:
    """The scalars of a round, float32 ``[K, P1, P2]``.

    Raises:
        TensorError: they are not whole steps, none, or not all finite.
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
    """From left to right: numpy's own sum takes the order that is fastest."""
    total = np.float32(0)
    for value in row:
        total += value
    return total


def _deviation(scalars: Array) -> float:
    """Of all scalars of a step, over their number; sums are exact until they are rounded, whatever the Python."""
    values = [float(value) for value in scalars.reshape(-1)]
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) * (value - mean) for value in values) / len(values))
