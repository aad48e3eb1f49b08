"""The work that the method of FedSpine asks of devices."""

from __future__ import annotations

import dataclasses

import pytest

from broker_server.methods.aggregation import Aggregated
from broker_server.methods.lora.method import Lora
from broker_server.methods.method import MethodContext
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.pruning.plans import Plans
from broker_server.methods.training import TrainingConfig
from edge_runtime.wire.messages import AssignmentKey
from edge_runtime.wire.work import Arm, HyperParameters, LoraWork
from tests.broker_server import tiny

TRAINING = TrainingConfig(
    num_rounds=3,
    num_local_steps=7,
    batch_size=2,
    max_length=8,
    num_accumulation_steps=3,
    learning_rate=0.5,
    final_learning_rate_ratio=0.25,
    weight_decay=0.125,
    lora_scaling=4.0,
    max_grad_norm=2.0,
    num_warmup_steps=5,
    class_balance=0.75,
)
"""Nothing is as it would be without a word."""

OF_ROUNDS = {"num_rounds", "learning_rate", "final_learning_rate_ratio"}
"""Settings that the server alone needs: devices are told the learning rate of their round."""


def asked(pruning: PruningConfig = PruningConfig(), aggregation: str = "fedspine") -> HyperParameters:  # noqa: B008
    context = MethodContext(
        manifest=tiny.manifest(),
        plans=Plans(tiny.manifest(), tiny.importance(), pruning.policy),
        training=TRAINING,
        learning_rate_at=lambda number: 1.0 / number,
        is_deploy=lambda _number: False,
        pruning=pruning,
        aggregation=aggregation,
        max_rank=2,
        seed=0,
    )
    key = AssignmentKey(run_id="run", round_number=2, device_id="a", attempt=1)
    work = Lora(context).ask(key, Arm(pruning_ratio=0.0, rank=2), at_once=False, model=Aggregated(adapter={})).work
    assert isinstance(work, LoraWork)
    return work.hyper_parameters


@pytest.mark.parametrize("field", dataclasses.fields(TrainingConfig), ids=lambda field: field.name)
def test_a_device_is_told_every_setting_of_training(field: dataclasses.Field[object]) -> None:
    value = getattr(TRAINING, field.name)
    assert value != field.default
    if field.name not in OF_ROUNDS:
        assert getattr(asked(), field.name) == value


def test_learning_rate_and_seed_are_those_of_the_round() -> None:
    hyper = asked()
    assert hyper.learning_rate == 0.5
    assert hyper.seed == 2969597950


def test_units_are_scored_where_importance_comes_from_devices() -> None:
    assert asked().importance_every_steps == 0
    assert asked(PruningConfig(importance="lora", importance_every_steps=3)).importance_every_steps == 3


def test_the_aggregation_says_which_factors_are_trained() -> None:
    assert asked().trainable == "all"
    assert asked(aggregation="ffa_lora").trainable == "lora_b"
