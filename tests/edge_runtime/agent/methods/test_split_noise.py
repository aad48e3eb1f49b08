"""Noise on the activations of split tuning: its law, its bits, and who can know it."""

from __future__ import annotations

import hashlib
import math
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.agent.methods.split.noise import KEY_BYTES, CutNoise, noise_key
from edge_runtime.errors import TensorError
from edge_runtime.formats.activations import Form, decode_activations
from tests.edge_runtime.agent.methods.runners import Make
from tests.edge_runtime.agent.methods.test_split_method import LENGTH, decoded, run

KEY, DIGEST = bytes(range(KEY_BYTES)), "ab" * 32
TOKENS = np.array([3, 1, 4, 1, 5], np.int32)


def rows_of(num_tokens: int, size: int) -> np.ndarray:
    sizes = np.logspace(-2, 2, num_tokens)[:, None]
    return (np.random.default_rng(0).standard_normal((num_tokens, size)) * sizes).astype(np.float32)


def test_noise_is_gaussian_with_the_asked_share_of_the_rms_of_each_row() -> None:
    rows = rows_of(5, 60_000)
    rms = np.sqrt(np.mean(np.square(rows, dtype=np.float64), axis=1, keepdims=True))
    noise = (CutNoise(KEY, DIGEST, 1, 0.5).added(TOKENS, rows).astype(np.float64) - rows) / (0.5 * rms)
    deviation = 1 / math.sqrt(rows.shape[1])
    assert np.abs(noise.mean(axis=1)).max() < 4 * deviation
    assert np.abs(noise.var(axis=1) - 1).max() < 4 * math.sqrt(2) * deviation
    assert abs(np.mean(noise**4) - 3) < 4 * math.sqrt(96 / noise.size)
    within = [np.mean(np.abs(noise) < bound) for bound in (1, 2, 3)]
    np.testing.assert_allclose(within, [0.6827, 0.9545, 0.9973], atol=0.004)
    correlation = np.corrcoef(np.concatenate([noise, rows]))[np.triu_indices(10, 1)][:35]
    assert np.abs(correlation).max() < 5 * deviation, "rows are independent of one another"


def test_noise_has_the_golden_bytes() -> None:
    rows = np.arange(1, 21, dtype=np.float32).reshape(5, 4)
    added = CutNoise(KEY, DIGEST, 2, 0.25).added(TOKENS, rows)
    assert added.dtype == np.float32
    assert (
        hashlib.sha256(added.astype("<f4").tobytes()).hexdigest()
        == "3fd1bf76949c8700ca19bc71e6203ed58488a2a4c2408ce0952066068025dd71"
    )


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ((bytes(KEY_BYTES), DIGEST, 2, 0.25), TOKENS),
        ((KEY, "ac" * 32, 2, 0.25), TOKENS),
        ((KEY, DIGEST, 1, 0.25), TOKENS),
        ((KEY, DIGEST, 2, 0.5), TOKENS),
        ((KEY, DIGEST, 2, 0.25), TOKENS[::-1]),
    ],
)
def test_other_secrets_artifacts_cuts_sigmas_and_examples_have_other_noise(given: Any, tokens: np.ndarray) -> None:
    rows = np.ones((5, 64), np.float32)
    first = CutNoise(KEY, DIGEST, 2, 0.25).added(TOKENS, rows) - 1
    other = (CutNoise(*given).added(tokens, rows) - 1) * (0.25 / given[3])
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.25
    np.testing.assert_array_equal(first, CutNoise(KEY, DIGEST, 2, 0.25).added(TOKENS, rows) - 1)


def test_the_reply_has_the_noise_that_the_work_asks_for_before_it_is_coded(make_runner: Make, tmp_path: Path) -> None:
    plain, noisy = make_runner(), make_runner()
    exact = decoded(plain, *run(plain))
    key_file = tmp_path / "methods" / "split" / "noise-key"
    assert not key_file.exists()
    assert run(make_runner(), noise=0.0)[1] == run(make_runner())[1]
    update, blob = run(noisy, noise=0.3)
    found, dataset = decoded(noisy, update, blob), noisy.load(LENGTH)
    noise = CutNoise(key_file.read_bytes(), noisy.digest, 1, 0.3)
    for begin, end in zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True):
        expected = noise.added(dataset.tokens[begin:end], exact.rows(begin, end))
        np.testing.assert_array_equal(found.rows(begin, end), expected)
    np.testing.assert_array_equal(found.labels, exact.labels)
    coded = decoded(noisy, *run(make_runner(), noise=0.3, dtype="int8"), dtype="int8")
    rows = found.rows(0, len(found.hidden))
    error = np.abs(coded.rows(0, len(rows)) - rows).max(axis=1)
    assert (error <= np.abs(rows).max(axis=1) / 253).all()


def test_a_device_that_is_asked_again_sends_the_same_bits_and_another_device_does_not(
    make_runner: Make, tmp_path: Path
) -> None:
    first = run(make_runner(), noise=0.3)[1]
    assert run(make_runner(), noise=0.3)[1] == first
    other = make_runner(methods=tmp_path / "other")
    form = Form.of(other.artifact.manifest, other.digest, 1, "float32", LENGTH)
    there, here = (decode_activations(blob, form).hidden for blob in (run(other, noise=0.3)[1], first))
    assert np.mean(there == here) < 0.01


def test_noise_that_leaves_the_bound_is_refused(make_runner: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_runtime.formats.activations.LARGEST", 20.0)
    run(make_runner())
    with pytest.raises(TensorError, match=r"a hidden state at the cut has the magnitude .*, at most 20"):
        run(make_runner(), noise=50.0)


def test_the_secret_is_private_and_kept_and_a_damaged_one_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = noise_key(tmp_path)
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(key) == KEY_BYTES
    assert noise_key(tmp_path) == key
    file.write_bytes(key[:-1])
    assert noise_key(tmp_path) not in {key, key[:-1]}
    assert "has 31 bytes, expected 32: a new one is made" in caplog.text
    assert noise_key(tmp_path) == file.read_bytes()
    assert noise_key(None) != noise_key(None)
    caplog.clear()
    assert len(noise_key(tmp_path / "missing")) == KEY_BYTES
    assert "the key of the noise is not kept" in caplog.text
