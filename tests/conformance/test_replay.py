"""Zero-order tuning on a device: golden bytes of the noise, and rounds done again to another machine's very bits."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats.seed_pool import SeedPool
from edge_runtime.wire.logged_rounds import LoggedRound
from edge_runtime.zero_order.noise import gaussian, quantiles, signs
from edge_runtime.zero_order.pool import PIECE, Direction, moved
from edge_runtime.zero_order.preconditioner import apply_log


@pytest.mark.parametrize(
    ("key", "golden"),
    [
        ((7, 3, 2, 5, 11), "4a4541c037a10efd01e1528444c91a11a47a121ab7f813395890521d1c5c61aa"),
        ((2**63 - 1, 2**31 - 1, 2**31 - 1, 9, 3), "7d3b47d9be08962f83"),
    ],
)
def test_noise_has_its_golden_bytes(key: tuple[int, int, int, int, int], golden: str) -> None:
    noise = signs(*key, 4 * len(golden))
    assert noise.dtype == np.float32
    assert np.array_equal(np.abs(noise), np.ones(noise.size))
    assert np.packbits(noise > 0, bitorder="little").tobytes().hex() == golden


def test_gaussian_noise_has_its_golden_bytes() -> None:
    noise = gaussian(7, 3, 2, 5, 11, 8).astype("<f4")
    assert noise.tobytes().hex() == "645d1cbf267a2d3f6d93a93eb18111407db7953f0e672d3dea164b3fa3ffbfbf"
    table = hashlib.sha256(quantiles().astype("<f4").tobytes()).hexdigest()
    assert table == "8babbcaf96568f10165a1eab530c0e5c92d04de96761b6dbb3dadfa94baba37f"


def test_weights_along_a_pool_of_seeds_have_their_golden_bytes() -> None:
    coefficients, digests = np.array([0.125, 0, 3e-3], "<f4").tobytes(), []
    start = np.array(np.arange(2 * PIECE + 100) % 255 - 127, np.float32) / np.float32(64)
    for noise in ("rademacher", "gaussian"):
        pool = SeedPool(seed=9, noise=noise, coefficients=coefficients)
        digests.append(hashlib.sha256(moved(start, 2, Direction.of(pool)).astype("<f4").tobytes()).hexdigest()[:16])
    assert digests == ["b5b39254a1c2c19b", "ab47efaff6b196ca"]


def test_rounds_done_again_end_at_the_same_bits(family_dir: Path) -> None:
    seed, rank, rounds = msgspec.msgpack.decode(
        (family_dir / "replay" / "rounds.msgpack").read_bytes(), type=tuple[int, int, list[LoggedRound]]
    )
    manifest = Artifact.open(family_dir / "artifact").manifest
    expected = load_file(family_dir / "replay" / "theta.safetensors")
    flat = expected["start"].copy()
    apply_log(flat, manifest, rank, seed, rounds)
    assert np.abs(flat - expected["start"]).max() > 0.01
    assert flat.tobytes() == expected["end"].tobytes()
