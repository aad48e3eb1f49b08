"""A pool of seeds on the wire and on disk: one number per seed describes all weights of a tuned model."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import Seed
from edge_runtime.errors import TensorError

Noise = Literal["rademacher", "gaussian"]
"""Distribution of the perturbations' elements: +-1, or quantiles of a Gaussian; the same bits on every platform."""


class SeedPool(msgspec.Struct, frozen=True, kw_only=True):
    """The change of all weights of a model since the start, along the noise of each seed of a pool (FedKSeed).

    A weight is ``start - sum over j of coefficients[j] * z_j``. So the exported model, the initial head and the pool
    give the tuned model to the last bit.
    """

    seed: Seed
    """Key of the noise."""
    noise: Noise = "rademacher"
    coefficients: Annotated[bytes, msgspec.Meta(min_length=4, max_length=4 * limits.MAX_SEEDS)]
    """Coefficient of each seed of the pool, float32, little-endian."""

    def __post_init__(self) -> None:
        """Refuse coefficients that are not whole float32 values.

        Raises:
            ValueError: the number of bytes is not a multiple of four.
        """
        if len(self.coefficients) % 4:
            msg = f"coefficients of {len(self.coefficients)} bytes are not float32"
            raise ValueError(msg)

    @property
    def num_seeds(self) -> int:
        """Number of seeds, K."""
        return len(self.coefficients) // 4


def pool_octets(pool: SeedPool) -> npt.NDArray[np.uint8]:
    """The bytes of a pool for a file, beside the adapter of a round."""
    return np.frombuffer(msgspec.msgpack.encode(pool), np.uint8)


def pool_of(octets: npt.NDArray[np.uint8]) -> SeedPool:
    """Decode a pool from :func:`pool_octets`.

    Raises:
        TensorError: the bytes are damaged.
    """
    try:
        pool = msgspec.msgpack.decode(octets.tobytes(), type=SeedPool)
    except msgspec.DecodeError as error:
        msg = f"the pool of seeds is damaged: {error}"
        raise TensorError(msg) from error
    coefficients_of(pool)
    return pool


def coefficients_of(pool: SeedPool) -> npt.NDArray[np.float32]:
    """Coefficient of each seed, float32 ``[K]``.

    Raises:
        TensorError: a coefficient is not finite.
    """
    values = np.frombuffer(pool.coefficients, "<f4").astype(np.float32)
    if not np.isfinite(values).all():
        msg = "a pool of seeds has coefficients that are not finite"
        raise TensorError(msg)
    return values
