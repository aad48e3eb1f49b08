"""A pool of seeds: all weights of a tuned model as a number for each, on the wire and on disk."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import Seed
from edge_runtime.errors import TensorError

Noise = Literal["rademacher", "gaussian"]
"""Law of the perturbations' elements: +-1, or a Gaussian's quantiles; the same bits on every platform."""


class SeedPool(msgspec.Struct, frozen=True, kw_only=True):
    """Distance of all weights of a model from their start, along the noise of each seed of a pool (FedKSeed).

    A weight is ``start - sum over j of coefficients[j] * z_j``: whoever has the model that was exported, the head that
    training began with and this has the tuned model, to the last bit.
    """

    seed: Seed
    """Key of the noise."""
    noise: Noise = "rademacher"
    coefficients: Annotated[bytes, msgspec.Meta(min_length=4, max_length=4 * limits.MAX_SEEDS)]
    """Of each seed of the pool, float32, little-endian."""

    def __post_init__(self) -> None:
        """Refuse what are not whole numbers of float32.

        Raises:
            ValueError: they are not.
        """
        if len(self.coefficients) % 4:
            msg = f"coefficients of {len(self.coefficients)} bytes are not float32"
            raise ValueError(msg)

    @property
    def num_seeds(self) -> int:
        """K."""
        return len(self.coefficients) // 4


def pool_octets(pool: SeedPool) -> npt.NDArray[np.uint8]:
    """A pool as it lies in a file beside the adapter of a round."""
    return np.frombuffer(msgspec.msgpack.encode(pool), np.uint8)


def pool_of(octets: npt.NDArray[np.uint8]) -> SeedPool:
    """A pool from such a file.

    Raises:
        TensorError: it is damaged.
    """
    try:
        pool = msgspec.msgpack.decode(octets.tobytes(), type=SeedPool)
    except msgspec.DecodeError as error:
        msg = f"the pool of seeds is damaged: {error}"
        raise TensorError(msg) from error
    coefficients_of(pool)
    return pool


def coefficients_of(pool: SeedPool) -> npt.NDArray[np.float32]:
    """Of each seed, float32 ``[K]``.

    Raises:
        TensorError: one is not finite.
    """
    values = np.frombuffer(pool.coefficients, "<f4").astype(np.float32)
    if not np.isfinite(values).all():
        msg = "a pool of seeds has coefficients that are not finite"
        raise TensorError(msg)
    return values
