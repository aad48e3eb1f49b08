"""Update transforms: clipping keeps the direction, noise is the same after a restart, an empty chain changes no bit."""

from __future__ import annotations

import numpy as np
import pytest

from edge_runtime.formats.adapter import Tensors
from edge_runtime.formats.transforms import Change, TransformError, apply_transforms, parse_transforms

SHAPES = {"a": (3, 4), "b": (5,)}


def change(scale: float = 1.0) -> tuple[Change, dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    moved = {name: rng.normal(scale=scale, size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    tensors = {name: start[name] + moved[name] for name in SHAPES} | {"scores": np.ones(2, np.float32)}
    return Change(tensors=tensors, start=start.__getitem__, shapes=SHAPES), start, tensors


def norm(tensors: Tensors, start: Tensors) -> float:
    return float(np.linalg.norm(np.concatenate([(tensors[n] - start[n]).ravel() for n in SHAPES])))


def test_an_empty_chain_gives_the_tensors_themselves() -> None:
    made, _, tensors = change()
    assert apply_transforms(parse_transforms(""), made, (0, 1), "a") is tensors


def test_clipping_bounds_the_norm_and_keeps_the_direction() -> None:
    made, start, tensors = change()
    out = apply_transforms(parse_transforms("clip:0.5"), made, (0, 1), "a")
    assert norm(tensors, start) > 0.5
    assert norm(out, start) == pytest.approx(0.5, rel=1e-5)
    ratios = (out["a"] - start["a"]) / (tensors["a"] - start["a"])
    assert np.allclose(ratios, ratios[0, 0], rtol=1e-4)
    assert out["a"].dtype == np.float32
    assert out["scores"] is tensors["scores"]


def test_a_small_change_passes_clipping_to_the_bit() -> None:
    made, _, tensors = change(scale=0.01)
    assert apply_transforms(parse_transforms("clip:1"), made, (0, 1), "a") is tensors


def test_noise_has_its_standard_deviation_and_is_drawn_again_the_same() -> None:
    shapes = {"a": (400, 100)}
    zero = {"a": np.zeros((400, 100), np.float32)}
    made = Change(tensors=zero, start=zero.__getitem__, shapes=shapes)
    out = apply_transforms(parse_transforms("noise:0.25"), made, (7, 1), "a")
    assert out["a"].std() == pytest.approx(0.25, rel=0.02)
    assert abs(out["a"].mean()) < 0.01
    again = apply_transforms(parse_transforms("noise:0.25"), made, (7, 1), "a")
    assert np.array_equal(out["a"], again["a"])
    assert np.array_equal(out["a"], out["a"])
    for seed, device_id in (((7, 2), "a"), ((8, 1), "a"), ((7, 1), "b")):
        other = apply_transforms(parse_transforms("noise:0.25"), made, seed, device_id)
        assert abs(np.corrcoef(out["a"].ravel(), other["a"].ravel())[0, 1]) < 0.03


def test_transforms_apply_in_their_order() -> None:
    """Noise after clipping goes beyond the bound; clipping after noise does not."""
    made, start, _ = change()
    noisy = apply_transforms(parse_transforms("clip:0.5, noise:1.0"), made, (0, 1), "a")
    bounded = apply_transforms(parse_transforms("noise:1.0,clip:0.5"), made, (0, 1), "a")
    assert norm(noisy, start) > 1.0
    assert norm(bounded, start) == pytest.approx(0.5, rel=1e-5)


def test_two_tensors_of_one_shape_have_noise_of_their_own() -> None:
    zero = dict.fromkeys("ab", np.zeros(50, np.float32))
    made = Change(tensors=zero, start=zero.__getitem__, shapes=dict.fromkeys("ab", (50,)))
    out = apply_transforms(parse_transforms("noise:1"), made, (0, 1), "a")
    assert not np.array_equal(out["a"], out["b"])


@pytest.mark.parametrize(
    "text", ["clip", "clip:", "clip:0", "clip:-1", "clip:nan", "clip:inf", "clip:1e7", "mask:1", "clip:1,", ":1"]
)
def test_what_is_no_transform_is_refused(text: str) -> None:
    with pytest.raises(TransformError, match="update transform"):
        parse_transforms(text)
