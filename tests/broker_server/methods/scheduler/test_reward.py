"""The reward: its formula on numbers worked out by hand, its range, and what it must not pay for."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.methods.rounds.types import Outcome
from broker_server.methods.scheduler import ArmOutcome
from broker_server.methods.scheduler.box import ArmBox
from broker_server.methods.scheduler.reward import (
    ADAPTER_SHARE,
    KAPPA,
    LOSS_SHARE,
    PRUNING_SHARE,
    credit_round,
    prior_gain,
)
from edge_runtime.wire.arms import LORA_AXES
from edge_runtime.wire.measures import LocalEvaluation
from edge_runtime.wire.work import Arm


def outcome(device_id: str, *, before: float = 1.0, after: float = 0.9, **changes: Any) -> ArmOutcome:
    local = LocalEvaluation(
        num_targets=10, loss_before=before, loss_after=after, accuracy_before=0.5, accuracy_after=0.5
    )
    fields: dict[str, Any] = {
        "round_number": 1,
        "arm": Arm(pruning_ratio=0.0, rank=8),
        "sparsity": 0.0,
        "outcome": Outcome.ACCEPTED,
        "completion_s": 2.0,
        "evaluation": local,
        "adapter_delta": 1.0,
    }
    return ArmOutcome(device_id=device_id, **(fields | changes))


def test_formula_by_hand() -> None:
    earned = credit_round(
        [
            outcome("a", after=0.8, completion_s=1.0, adapter_delta=4.0),
            outcome("b", after=0.8, sparsity=0.5, completion_s=3.0, adapter_delta=1.0),
        ],
        {"b": 0.25},
    )
    # mean T = 2; both deviate by one half
    gain_a = LOSS_SHARE + ADAPTER_SHARE
    gain_b = LOSS_SHARE * 0.5 + PRUNING_SHARE * 0.25 + ADAPTER_SHARE * 0.25
    assert earned["a"].gain == pytest.approx(gain_a)
    assert earned["b"].gain == pytest.approx(gain_b)
    assert earned["a"].reward == pytest.approx(KAPPA * gain_a / (0.5 + KAPPA))
    assert earned["b"].reward == pytest.approx(KAPPA * gain_b / (0.5 + KAPPA))


def test_depth_that_was_reached_before_is_not_paid_again() -> None:
    first = credit_round([outcome("a", sparsity=0.5)], {})["a"].gain
    again = credit_round([outcome("a", sparsity=0.5)], {"a": 0.5})["a"].gain
    assert first - again == pytest.approx(PRUNING_SHARE * 0.5)


def test_sub_model_that_improves_more_earns_no_more_when_it_holds_less() -> None:
    """A model pruned by three quarters improves by twice as much, and still earns less."""
    earned = credit_round([outcome("full", after=0.9), outcome("cut", after=0.8, sparsity=0.75)], {"cut": 0.75})
    assert earned["cut"].gain < earned["full"].gain


def test_what_nobody_reports_gives_its_weight_to_the_rest() -> None:
    earned = credit_round([outcome("a", evaluation=None), outcome("b", evaluation=None, adapter_delta=0.5)], {})
    assert earned["a"].gain == pytest.approx(LOSS_SHARE + ADAPTER_SHARE)
    assert earned["b"].gain == pytest.approx(earned["a"].gain / 2)
    bare = credit_round([outcome("a", evaluation=None, adapter_delta=None, sparsity=0.5)], {"a": 0.5})
    assert bare["a"].gain == pytest.approx((1 - PRUNING_SHARE) * 0.5)


def test_without_an_update_there_is_no_credit() -> None:
    assert credit_round([outcome("a", outcome=Outcome.TIMED_OUT), outcome("b", outcome=Outcome.LOST)], {}) == {}


def test_nothing_learnt_by_anyone_is_worth_nothing() -> None:
    assert credit_round([outcome("a", after=1.5, adapter_delta=0.0)], {})["a"].reward == 0.0


numbers = st.sampled_from([math.nan, math.inf, -math.inf, -2.0, 0.0, 1e-300, 0.7, 1.0, 3.5, 1e300])


@given(
    rows=st.lists(
        st.tuples(numbers, numbers, st.sampled_from([0.0, 0.5, 0.99]), st.one_of(st.none(), numbers), numbers),
        min_size=1,
        max_size=5,
    )
)
def test_reward_is_always_between_0_and_1(rows: list[tuple[float, float, float, float | None, float]]) -> None:
    outcomes = [
        outcome(f"d{k}", before=before, after=after, sparsity=sparsity, completion_s=seconds, adapter_delta=delta)
        for k, (before, after, sparsity, seconds, delta) in enumerate(rows)
    ]
    for credit in credit_round(outcomes, {}).values():
        assert 0.0 <= credit.reward <= 1.0
        assert 0.0 <= credit.gain <= 1.0 + 1e-12
        assert math.isfinite(credit.gain)


def test_prior_gain_falls_with_the_ratio_and_grows_with_the_rank() -> None:
    box = ArmBox.of(LORA_AXES.parse("0.0:2,0.5:16"), LORA_AXES)
    largest, little, much, low = prior_gain(box, LORA_AXES.parse("0.0:16,0.25:8,0.5:8,0.5:4"))
    assert largest == pytest.approx(1.0)
    assert little > much > low
    assert prior_gain(ArmBox.of(LORA_AXES.parse("0.5:4"), LORA_AXES), LORA_AXES.parse("0.5:4")) > 0
