"""Gaussian noise on hidden states before they are coded and leave the device.

``h + sigma * rms(h) * z`` for the hidden state ``h`` of each token, with ``rms(h)`` the root of the mean of its squares
and ``z`` standard Gaussian. The scale is that of the row, because hidden states of different models and cuts differ in
size by orders of magnitude, and those of a model's tokens by much too.

``z`` follows from a secret of this device and from what it is added to. The server does not know the secret, so it
cannot subtract the noise. Who asks for the same hidden states again, in another run too, gets the same bits, so he
cannot average the noise away. Another cut, sigma or artifact gives noise of its own: were ``z`` the same at two sigmas,
two replies would give ``h``. Bits are those of SHAKE-256 (FIPS 202), not of Philox, whose key can be had from its
output. The law of ``z`` is that of :func:`edge_runtime.zero_order.noise.quantiles`.

The noise makes attacks harder, see docs/split.md. It gives no differential privacy: its scale follows from the example.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import struct
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_runtime.system.files import DiskFullError, write_atomically
from edge_runtime.zero_order.noise import quantiles

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]

KEY_BYTES: Final = 32
"""Of a device's secret."""
_KEY_FILE: Final = "noise-key"


class CutNoise:
    """Noise on the hidden states of one model at one cut.

    Args:
        key: secret of the device, :data:`KEY_BYTES`.
        artifact_digest: SHA-256 of the artifact, hexadecimal.
        cut: blocks that the hidden states are after.
        sigma: standard deviation, as a share of the rms of each row; more than 0.
    """

    def __init__(self, key: bytes, artifact_digest: str, cut: int, sigma: float) -> None:
        self._sigma = sigma
        self._prefix = key + bytes.fromhex(artifact_digest) + struct.pack("<Id", cut, sigma)

    def added(self, tokens: Int32, rows: Array) -> Array:
        """An example's hidden states with its noise.

        Args:
            tokens: of the example, int32 ``[n]``.
            rows: hidden states, float32 ``[n, H]``; not changed.

        Returns:
            Float32 ``[n, H]``; the same bits whenever it is asked.
        """
        stream = hashlib.shake_256(self._prefix + tokens.astype("<i4").tobytes()).digest(2 * rows.size)
        drawn = np.take(quantiles(), np.frombuffer(stream, "<u2")).reshape(rows.shape)
        mean_squares = np.square(rows, dtype=np.float64).mean(axis=1, keepdims=True)
        noisy: Array = rows + (self._sigma * np.sqrt(mean_squares)).astype(np.float32) * drawn
        return noisy


def noise_key(folder: Path | None) -> bytes:
    """This device's secret, made once.

    Args:
        folder: where it lies, private to this user; None = it is not kept, and there is a new one each time.
    """
    path = None if folder is None else folder / _KEY_FILE
    try:
        if path is not None and path.exists():
            if len(known := path.read_bytes()) == KEY_BYTES:
                return known
            logger.warning("%s has %d bytes, expected %d: a new one is made", path, len(known), KEY_BYTES)
        made = secrets.token_bytes(KEY_BYTES)
        if path is not None:
            write_atomically(path, made, is_private=True)
    except (DiskFullError, OSError) as error:
        logger.warning("the key of the noise is not kept, so who asks twice gets different noise: %s", error)
        return secrets.token_bytes(KEY_BYTES)
    return made
