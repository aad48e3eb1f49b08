"""Blobs of the probe: sums are exact in any order and however examples are split; what no examples give is refused."""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from edge_runtime.errors import TensorError
from edge_runtime.formats.head import Head
from edge_runtime.formats.manifest import DenseSpec, Manifest
from edge_runtime.formats.probe import (
    COUNT,
    CROSS,
    FRACTION_BITS,
    GRAM,
    ONE,
    Statistics,
    decode_head,
    decode_statistics,
    encode_head,
    encode_statistics,
    sum_features,
)
from edge_runtime.formats.tensors import encode_integers, encode_tensors

HEAD = Head(weight="classifier.weight", bias="classifier.bias", num_classes=3, num_features=5)
RNG = np.random.default_rng(0)
FEATURES = np.tanh(RNG.normal(size=(400, 5)) * 3).astype(np.float32)
LABELS = RNG.integers(0, 3, 400)


def equal(a: Statistics, b: Statistics) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("gram", "cross", "count"))


@pytest.mark.parametrize("num_devices", [2, 7, 40])
def test_sums_are_the_same_whatever_the_split_and_the_order(num_devices: int) -> None:
    whole = sum_features(FEATURES, LABELS, 3)
    rng = np.random.default_rng(num_devices)
    order = rng.permutation(400)
    cuts = np.sort(rng.integers(0, 401, num_devices - 1))
    pieces = [sum_features(FEATURES[rows], LABELS[rows], 3) for rows in np.split(order, cuts)]
    assert equal(functools.reduce(operator.add, pieces), whole)
    assert equal(functools.reduce(operator.add, reversed(pieces)), whole)


def test_sums_are_those_of_the_rounded_features() -> None:
    rounded = np.rint(FEATURES.astype(np.float64) * ONE).astype(np.int64)
    rows = np.concatenate([rounded, np.full((400, 1), ONE)], axis=1).astype(object)
    sums = sum_features(FEATURES, LABELS, 3)
    assert (sums.gram == rows.T @ rows).all()
    assert (sums.cross == np.eye(3, dtype=int).astype(object)[LABELS].T @ rows).all()
    gram, cross = sums.as_float()
    with_bias = np.concatenate([FEATURES.astype(np.float64), np.ones((400, 1))], axis=1)
    np.testing.assert_allclose(gram, with_bias.T @ with_bias, atol=400 * 2.0**-FRACTION_BITS)
    np.testing.assert_allclose(cross, np.eye(3)[LABELS].T @ with_bias, atol=400 * 2.0**-FRACTION_BITS)


def test_large_features_are_summed_in_smaller_pieces_exactly() -> None:
    features = (FEATURES * 30).astype(np.float32)
    rows = np.rint(features.astype(np.float64) * ONE).astype(np.int64).astype(object)
    assert (sum_features(features, LABELS, 3).gram[:-1, :-1] == rows.T @ rows).all()


def test_features_that_cannot_be_summed_exactly_are_refused() -> None:
    with pytest.raises(TensorError, match="too large to be summed exactly"):
        sum_features(np.full((2, 5), 2e3, np.float32), LABELS[:2], 3)
    with pytest.raises(TensorError, match="too large"):
        sum_features(np.full((2, 5), np.nan, np.float32), LABELS[:2], 3)


def test_sums_survive_the_wire() -> None:
    sums = sum_features(FEATURES, LABELS, 3)
    assert equal(decode_statistics(encode_statistics(sums), HEAD), sums)
    assert sums.num_examples == 400


def bent(name: str, index: Any, value: int) -> bytes:
    sums = sum_features(FEATURES, LABELS, 3)
    tensors = {GRAM: sums.gram.copy(), CROSS: sums.cross.copy(), COUNT: sums.count.copy()}
    tensors[name][index] = value
    return encode_integers(tensors)


@pytest.mark.parametrize(
    "blob",
    [
        bent(GRAM, (0, 1), 3),
        bent(GRAM, (2, 2), -1),
        bent(GRAM, (2, 2), 2**63 - 1),
        bent(GRAM, (5, 5), 7),
        bent(CROSS, (1, 2), 12345),
        bent(CROSS, (0, 5), 0),
        bent(COUNT, 0, -1),
        bent(COUNT, 2, 10**9),
        bent(GRAM, slice(0, 0), 0)[:-8],
        encode_integers({GRAM: np.zeros((6, 6), np.int64)}),
        encode_statistics(sum_features(FEATURES[:, :4], LABELS, 3)),
        encode_tensors({GRAM: np.zeros((6, 6), np.float32)}),
        b"",
    ],
    ids=range(13),
)
def test_what_no_examples_give_is_refused(blob: bytes) -> None:
    with pytest.raises(TensorError):
        decode_statistics(blob, HEAD)


def test_sums_beyond_an_integer_are_not_added() -> None:
    sums = sum_features(FEATURES, LABELS, 3)
    huge = dataclasses.replace(sums, gram=np.full_like(sums.gram, 2**62 - 1))
    with pytest.raises(TensorError, match="outside"):
        _ = sums + huge
    with pytest.raises(TensorError, match="different heads"):
        _ = sums + sum_features(FEATURES[:, :4], LABELS, 3)


def test_a_head_survives_the_wire_and_is_found_among_other_tensors() -> None:
    tensors = {HEAD.weight: FEATURES[:3], HEAD.bias: np.zeros(3, np.float32)}
    np.testing.assert_array_equal(decode_head(encode_head(HEAD, tensors), HEAD)[HEAD.weight], FEATURES[:3])
    adapter = encode_tensors({**tensors, "x.lora_A.weight": np.zeros((2, 5), np.float32)})
    assert set(decode_head(adapter, HEAD, with_others=True)) == {HEAD.weight, HEAD.bias}
    with pytest.raises(TensorError, match="lora_A"):
        decode_head(adapter, HEAD)


@pytest.mark.parametrize(
    "changes",
    [
        {HEAD.bias: np.zeros(4, np.float32)},
        {HEAD.weight: np.zeros((3, 4), np.float32)},
        {HEAD.bias: np.full(3, np.inf, np.float32)},
        {"more": np.zeros(3, np.float32)},
    ],
)
def test_another_head_is_refused(changes: dict[str, Any]) -> None:
    tensors = {HEAD.weight: FEATURES[:3], HEAD.bias: np.zeros(3, np.float32), **changes}
    with pytest.raises(TensorError):
        decode_head(encode_tensors(tensors), HEAD)
    with pytest.raises(TensorError):
        encode_head(HEAD, tensors)


def test_the_head_of_an_artifact_is_its_classifier(manifest: Manifest) -> None:
    dense = (DenseSpec(name="classifier.weight", shape=(3, 5)), DenseSpec(name="classifier.bias", shape=(3,)))
    assert Head.of(structs.replace(manifest, dense=dense)) == HEAD
    for wrong in ((), dense[:1], (*dense, DenseSpec(name="pooler.weight", shape=(5, 5)))):
        with pytest.raises(TensorError, match="a classifier with one weight and one bias is needed"):
            Head.of(structs.replace(manifest, dense=wrong))
