"""Importance: larger weights stay, matrices of different scales weigh the same, biases do not count."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from broker_server.methods.pruning.importance import magnitude_importance
from edge_runtime.formats.manifest import TensorSpec
from edge_runtime.formats.ranking import plan_at
from tests.broker_server import tiny

MANIFEST = tiny.manifest()


def weights(seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {spec.name: rng.normal(size=spec.shape).astype(np.float32) for spec in MANIFEST.tensors}


def scores(values: dict[str, npt.NDArray[np.float32]]) -> dict[tuple[int, str], npt.NDArray[np.float32]]:
    return magnitude_importance(MANIFEST, lambda spec: values[spec.name])


def test_formula() -> None:
    values = weights()
    query, output = values["layer.1.query.weight"], values["layer.1.output.weight"]
    expected = [
        np.linalg.norm(query[2 * head : 2 * head + 2]) / np.linalg.norm(query)
        + np.linalg.norm(output[:, 2 * head : 2 * head + 2]) / np.linalg.norm(output)
        for head in range(tiny.HEADS)
    ]
    assert scores(values)[1, "heads"] == pytest.approx(expected, rel=1e-6)


def test_scale_of_a_matrix_does_not_matter() -> None:
    values = weights()
    before = scores(values)
    values["layer.0.up.weight"] = values["layer.0.up.weight"] * 100
    after = scores(values)
    for key, value in before.items():
        np.testing.assert_allclose(value, after[key], rtol=1e-5)


def test_biases_do_not_count_and_are_not_read() -> None:
    read = []

    def remember(spec: TensorSpec) -> npt.NDArray[np.float32]:
        read.append(spec.name)
        return weights()[spec.name]

    magnitude_importance(MANIFEST, remember)
    assert len(read) == len(set(read)) == 4 * tiny.LAYERS
    assert not [name for name in read if name.endswith("bias") or name == "embedding"]


def test_zero_matrix_adds_nothing() -> None:
    values = weights()
    values["layer.0.up.weight"] = np.zeros_like(values["layer.0.up.weight"])
    assert np.isfinite(scores(values)[0, "channels"]).all()


def test_largest_units_stay_in_the_plan() -> None:
    values = weights()
    values["layer.0.up.weight"][3] *= 50
    assert plan_at(MANIFEST, scores(values), 0.75).kept(0, "channels").tolist() == [3]
