"""Scores from devices: order and loss scale do not matter, what nobody holds stays, malformed scores are refused."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.errors import ConfigError
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.pruning.scores import DeviceScores, Scores, check_scorable, combine
from edge_runtime.errors import PlanError
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.ranking import plan_at
from tests.broker_server import tiny

MANIFEST = tiny.manifest()
CURRENT = tiny.importance()
FULL = Plan.full(MANIFEST)
KEYS = list(CURRENT)


def device(seed: int, plan: Plan = FULL, num_examples: int = 10, scale: float = 1.0) -> DeviceScores:
    rng = np.random.default_rng(seed)
    scores = {key: (scale * rng.uniform(size=plan.kept(*key).size)).astype(np.float32) for key in KEYS}
    return DeviceScores(device_id=f"device-{seed}", plan=plan, num_examples=num_examples, scores=scores)


def assert_equal(one: Scores, other: Scores, rtol: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_allclose(one[key], other[key], rtol=rtol)


@given(st.permutations(range(4)))
def test_order_of_devices_does_not_matter(order: list[int]) -> None:
    devices = [device(seed, plan_at(MANIFEST, CURRENT, 0.2 * seed), 5 + seed) for seed in range(4)]
    assert_equal(combine(CURRENT, devices, 0.5), combine(CURRENT, [devices[i] for i in order], 0.5))


def test_loss_scale_of_a_device_does_not_matter() -> None:
    other = device(2, plan_at(MANIFEST, CURRENT, 0.5))
    assert_equal(
        combine(CURRENT, [device(1), other], 0.0), combine(CURRENT, [device(1, scale=1e4), other], 0.0), rtol=1e-5
    )


def test_a_unit_that_nobody_holds_keeps_its_score() -> None:
    plan = plan_at(MANIFEST, CURRENT, 0.5)
    new = combine(CURRENT, [device(1, plan), device(2, plan)], 0.25)
    for key in KEYS:
        gone = np.setdiff1d(np.arange(CURRENT[key].size), plan.kept(*key))
        np.testing.assert_array_equal(new[key][gone], CURRENT[key][gone])
        assert not np.array_equal(new[key][plan.kept(*key)], CURRENT[key][plan.kept(*key)])


def test_formula_of_two_devices() -> None:
    one, two = device(1, num_examples=1), device(2, num_examples=3)
    new = combine(CURRENT, [one, two], 0.5)

    def rescaled(d: DeviceScores, key: tuple[int, str]) -> npt.NDArray[np.float64]:
        ours = sum(CURRENT[k].sum() for k in KEYS if k[1] == key[1])
        mine = sum(d.scores[k].sum() for k in KEYS if k[1] == key[1])
        return np.asarray(d.scores[key] * ours / mine, np.float64)

    for key in KEYS:
        expected = 0.5 * CURRENT[key] + 0.5 * (rescaled(one, key) + 3 * rescaled(two, key)) / 4
        np.testing.assert_allclose(new[key], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "silent",
    [
        DeviceScores(device_id="d", plan=FULL, num_examples=10, scores={}),
        device(1, num_examples=0),
        device(1, scale=0.0),
    ],
    ids=["no scores", "no weight", "all zero"],
)
def test_a_device_that_says_nothing_does_not_count(silent: DeviceScores) -> None:
    assert_equal(combine(CURRENT, [silent], 0.5), dict(CURRENT))
    assert_equal(combine(CURRENT, [silent, device(2)], 0.5), combine(CURRENT, [device(2)], 0.5))


@pytest.mark.parametrize(
    "bad",
    [np.ones(2, np.float32), np.full(3, np.nan, np.float32), np.full(3, -1.0, np.float32)],
    ids=["wrong shape", "NaN", "negative"],
)
def test_malformed_scores_are_refused(bad: npt.NDArray[np.float32]) -> None:
    scores = {**device(1).scores, (0, "heads"): bad}
    with pytest.raises(PlanError, match="device d for layer 0, heads"):
        combine(CURRENT, [DeviceScores(device_id="d", plan=FULL, num_examples=1, scores=scores)], 0.5)


def test_units_without_factors_cannot_be_scored() -> None:
    on_heads = [t for t in MANIFEST.targets if "channels" not in {p.group for p in (t.in_prune, t.out_prune) if p}]
    some = msgspec.structs.replace(MANIFEST, targets=tuple(on_heads))
    check_scorable(MANIFEST, PruningConfig(importance="lora"))
    check_scorable(some, PruningConfig(importance="magnitude"))
    with pytest.raises(ConfigError, match="LoRA factors on the channels of every layer"):
        check_scorable(some, PruningConfig(importance="lora"))
