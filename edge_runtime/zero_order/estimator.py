"""Scalars from losses, and the gradient's energy in the lower and the upper part from scalars.

Shape legend: ``P1`` outer and ``P2`` inner perturbations.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import TensorError

Array = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def central_differences(
    plus: Float64, minus: Float64, epsilon: float, largest: float | None = None
) -> tuple[Array, int]:
    """Derivatives along the perturbations: ``rho = (L(theta + eps z) - L(theta - eps z)) / (2 eps)``.

    SPSA (Spall 1992) in the form of MeZO (arXiv 2305.17333). A scalar that is not finite becomes 0. A scalar that is
    too large is clipped, not left out, since leaving out large scalars would bias the mean.

    Args:
        plus: mean losses at theta + eps z, float64, any shape.
        minus: the same at theta - eps z.
        epsilon: size of the perturbation.
        largest: magnitude that scalars are cut to; None = none is.

    Returns:
        Rho, float32 of the losses' shape, all finite, and the number of scalars that were not finite.
    """
    with np.errstate(invalid="ignore"):
        differences = np.asarray(plus, np.float64) - minus
    return _quotients(differences, 2 * epsilon, largest)


def one_sided_differences(
    perturbed: Float64, clean: float, epsilon: float, largest: float | None = None
) -> tuple[Array, int]:
    """Derivatives along the perturbations from one side: ``rho = (L(theta + eps z) - L(theta)) / eps``.

    It takes about half the passes, but is biased by the loss's curvature along z. FZOO uses it, and divides the step by
    the standard deviation of the scalars (``is_normalised``).

    Args:
        perturbed: mean losses at theta + eps z, float64, any shape.
        clean: mean loss at theta on the same batch.
        epsilon: size of the perturbation.
        largest: magnitude that scalars are cut to; None = none is.

    Returns:
        As :func:`central_differences`.
    """
    with np.errstate(invalid="ignore"):
        differences = np.asarray(perturbed, np.float64) - clean
    return _quotients(differences, epsilon, largest)


def _quotients(differences: Float64, distance: float, largest: float | None) -> tuple[Array, int]:
    with np.errstate(over="ignore", invalid="ignore"):
        scalars = (differences / distance).astype(np.float32)
    is_finite = np.isfinite(scalars)
    scalars = np.where(is_finite, scalars, np.float32(0))
    if largest is not None:
        scalars = np.clip(scalars, np.float32(-largest), np.float32(largest))
    return scalars, int(scalars.size - np.count_nonzero(is_finite))


def gradient_energies(scalars: Array) -> tuple[float, float]:
    """Squared norms of the gradient in the lower and the upper part, estimated without additional passes.

    Ours, exact for a locally linear loss: ``rho_pj = z1_p . g1 + z2_pj . g2`` with +-1 noise, so that ``Var_j(rho_pj)``
    within an outer perturbation is ``|g2|^2`` on average, and the mean over j has the second moment ``|g1|^2 + |g2|^2 /
    P2``.

    Args:
        scalars: rho, float32 ``[..., P1, P2]`` with P2 of at least 2.

    Returns:
        ``|g1|^2`` and ``|g2|^2``. They are unbiased, so the first may be below 0 if it is small.

    Raises:
        TensorError: there is only one inner perturbation, which cannot separate the parts.
    """
    num_inner = scalars.shape[-1]
    if num_inner < 2:
        msg = f"the parts' shares of the gradient need 2 inner perturbations or more, got {num_inner}"
        raise TensorError(msg)
    values = scalars.astype(np.float64)
    upper = float(values.var(axis=-1, ddof=1).mean())
    lower = float(np.square(values.mean(axis=-1)).mean()) - upper / num_inner
    return lower, upper


def check_epsilon(values: Array, epsilon: float) -> None:
    """Refuse a perturbation that float32 does not resolve beside the values.

    Args:
        values: values to perturb, float32, any shape.
        epsilon: size of the perturbation.

    Raises:
        TensorError: the spacing of float32 at the largest value is more than an eighth of epsilon (ours).
    """
    largest = np.float32(np.abs(values).max(initial=0))
    least = 8 * float(np.spacing(largest))
    if not epsilon >= least:
        msg = f"epsilon {epsilon:g} is lost in float32 beside values of {largest:g}: choose {least:.1g} or more"
        raise TensorError(msg)
