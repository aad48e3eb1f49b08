"""Payloads: the round trip, what is float32 in any case, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import TensorError
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import Payload, check_payload, decode_payload, encode_payload, restrict_merged
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.tensors import decode_tensors, encode_tensors

Array = npt.NDArray[np.float32]
RANK = 2


def random(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def adapter(manifest: Manifest, plan: Plan, trainable: Any = "all") -> dict[str, Array]:
    rng = np.random.default_rng(0)
    layout = AdapterLayout.of(manifest, plan, RANK).trained(trainable)
    return {name: random(rng, *shape) for name, shape in layout.shapes.items()}


def scores(plan: Plan) -> dict[tuple[int, str], Array]:
    return {key: np.ones(units.size, np.float32) for key, units in plan.units.items()}


@pytest.fixture
def plan(manifest: Manifest) -> Plan:
    return Plan.from_kept(manifest, {(0, "heads"): [1, 3], (1, "channels"): [0, 4, 9]})


def arrays(payload: Payload) -> dict[object, Array]:
    """All arrays of a payload in one map."""
    out: dict[object, Array] = {}
    out.update(payload.adapter.items())
    out.update(payload.importance.items())
    for module, (a, b) in payload.merged.items():
        out[module, "A"], out[module, "B"] = a, b
    return out


def same(first: Payload, second: Payload) -> bool:
    mine, theirs = arrays(first), arrays(second)
    return mine.keys() == theirs.keys() and all(np.array_equal(mine[key], theirs[key]) for key in mine)


@given(st.integers(0, 99), st.integers(0, 5), st.sets(st.sampled_from(["importance", "merged"])))
def test_everything_survives_the_round_trip(manifest: Manifest, seed: int, layer: int, extras: set[str]) -> None:
    rng = np.random.default_rng(seed)
    payload = Payload(
        adapter={"l0.q.lora_A.weight": random(rng, 2, 3)},
        importance={(layer, "heads"): random(rng, 4), (0, "channels"): random(rng, 1)}
        if "importance" in extras
        else {},
        merged={t.module: (random(rng, 3, 2), random(rng, 5, 3)) for t in manifest.targets}
        if "merged" in extras
        else {},
    )
    assert same(decode_payload(encode_payload(payload)), payload)


def test_without_extras_it_is_the_bytes_of_an_adapter(manifest: Manifest, plan: Plan) -> None:
    tensors = adapter(manifest, plan)
    assert encode_payload(Payload(adapter=tensors)) == encode_tensors(tensors)


def test_scores_are_float32_in_any_case() -> None:
    value = np.array([1e-9, 1e9], np.float32)
    payload = Payload(adapter={"w": np.array([1 / 3], np.float32)}, importance={(0, "heads"): value})
    again = decode_payload(encode_payload(payload, "float16"))
    assert np.array_equal(again.importance[0, "heads"], value)
    assert again.adapter["w"][0] == np.float32(np.float16(1 / 3))


def test_names_are_the_documented_ones() -> None:
    one = np.ones((1, 1), np.float32)
    payload = Payload(adapter={}, importance={(3, "heads"): one[0]}, merged={"a.b": (one, one)})
    assert sorted(decode_tensors(encode_payload(payload))) == [
        "a.b.merged_A.weight",
        "a.b.merged_B.weight",
        "importance/3.heads",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "importance/heads",
        "importance/x.heads",
        "importance/03.heads",
        "importance/-1.heads",
        "importance/1.",
        "a.merged_A.weight",
    ],
)
def test_malformed_names_are_refused(name: str) -> None:
    with pytest.raises(TensorError):
        decode_payload(encode_tensors({name: np.ones(1, np.float32)}))


def test_what_fits_is_accepted(manifest: Manifest, plan: Plan) -> None:
    tensors, rng = adapter(manifest, plan), np.random.default_rng(0)
    full = {t.module: (random(rng, 3, t.in_features), random(rng, t.out_features, 3)) for t in manifest.targets}
    merged = restrict_merged(manifest, full, plan)
    check_payload(manifest, plan, RANK, Payload(adapter=tensors, merged=merged), is_update=False)
    check_payload(manifest, plan, RANK, Payload(adapter=tensors, importance=scores(plan)), is_update=True)
    check_payload(manifest, plan, RANK, Payload(adapter=tensors), is_update=True)


def test_untrained_factors_go_down_but_not_up(manifest: Manifest, plan: Plan) -> None:
    whole, trained = Payload(adapter=adapter(manifest, plan)), Payload(adapter=adapter(manifest, plan, "lora_b"))
    assert set(whole.adapter) - set(trained.adapter) == {f"{t.module}.lora_A.weight" for t in manifest.targets}
    check_payload(manifest, plan, RANK, whole, is_update=False, trainable="lora_b")
    check_payload(manifest, plan, RANK, trained, is_update=True, trainable="lora_b")
    with pytest.raises(TensorError):
        check_payload(manifest, plan, RANK, trained, is_update=False, trainable="lora_b")
    with pytest.raises(TensorError):
        check_payload(manifest, plan, RANK, whole, is_update=True, trainable="lora_b")


def test_merged_factors_restrict_as_the_dense_product_does(manifest: Manifest, plan: Plan) -> None:
    rng = np.random.default_rng(0)
    full = {t.module: (random(rng, 3, t.in_features), random(rng, t.out_features, 3)) for t in manifest.targets}
    part = restrict_merged(manifest, full, plan)
    rows = (plan.kept(0, "heads")[:, None] * 3 + np.arange(3)).reshape(-1)
    a, b = full["l0.q"]
    np.testing.assert_allclose(part["l0.q"][1] @ part["l0.q"][0], (b @ a)[rows], rtol=1e-5, atol=1e-6)
    a, b = full["l1.down"]
    np.testing.assert_allclose(
        part["l1.down"][1] @ part["l1.down"][0], (b @ a)[:, plan.kept(1, "channels")], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("module", "factors", "expected"),
    [
        ("stranger", (np.ones((1, 6)), np.ones((6, 1))), "not a LoRA target"),
        ("l0.q", (np.ones((1, 6)), np.ones((12, 1))), "have shapes"),
        ("l0.q", (np.ones((7, 6)), np.ones((6, 7))), "from 1 to 6"),
        ("l0.q", (np.ones((0, 6)), np.ones((6, 0))), "from 1 to 6"),
        ("l0.q", (np.ones(6), np.ones((6, 1))), "have shapes"),
        ("l0.q", (np.full((1, 6), np.nan), np.ones((6, 1))), "not finite"),
    ],
    ids=["unknown", "rows", "inner", "empty", "axes", "nan"],
)
def test_merged_factors_that_do_not_fit_are_refused(
    manifest: Manifest, plan: Plan, module: str, factors: tuple[Any, Any], expected: str
) -> None:
    merged = {module: (factors[0].astype(np.float32), factors[1].astype(np.float32))}
    with pytest.raises(TensorError, match=expected):
        check_payload(manifest, plan, RANK, Payload(adapter=adapter(manifest, plan), merged=merged), is_update=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ((0, "heads"), None),
        ((7, "heads"), np.ones(4, np.float32)),
        ((0, "heads"), np.ones(4, np.float32)),
        ((0, "heads"), np.array([1, np.nan], np.float32)),
        ((0, "heads"), np.array([1, -1], np.float32)),
    ],
    ids=["missing", "unknown", "full length", "nan", "negative"],
)
def test_scores_that_do_not_fit_are_refused(
    manifest: Manifest, plan: Plan, key: tuple[int, str], value: Array | None
) -> None:
    importance = scores(plan)
    if value is None:
        del importance[key]
    else:
        importance[key] = value
    with pytest.raises(TensorError, match="importance"):
        check_payload(
            manifest, plan, RANK, Payload(adapter=adapter(manifest, plan), importance=importance), is_update=True
        )


def test_each_way_has_its_own_extras(manifest: Manifest, plan: Plan) -> None:
    tensors = adapter(manifest, plan)
    with pytest.raises(TensorError, match="only updates"):
        check_payload(manifest, plan, RANK, Payload(adapter=tensors, importance=scores(plan)), is_update=False)
    merged = {"l0.q": (np.ones((1, 6), np.float32), np.ones((6, 1), np.float32))}
    with pytest.raises(TensorError, match="only the coordinator"):
        check_payload(manifest, plan, RANK, Payload(adapter=tensors, merged=merged), is_update=True)
