"""Work says what it is, and is refused when it is decoded if it contradicts itself."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
import pytest

from edge_runtime.formats.seed_pool import SeedPool
from edge_runtime.wire.messages import Assignment
from edge_runtime.wire.work import (
    Arm,
    LoggedRound,
    LoraWork,
    ProbeWork,
    SeedPoolWork,
    Work,
    WorkType,
    ZeroOrderWork,
    type_of,
)
from tests.edge_runtime.wire.test_messages import EXAMPLES

LORA = next(m.work for m in EXAMPLES if isinstance(m, Assignment) and isinstance(m.work, LoraWork))
SOFTMAX = ProbeWork(plan=LORA.plan, form="softmax", batch_size=8, max_length=16, num_steps=30)
STATISTICS = ProbeWork(plan=LORA.plan, form="statistics", batch_size=8, max_length=16)

LOGGED = LoggedRound(
    round_number=2, cut=1, lower_learning_rate=0.1, learning_rate=0.1, num_outer=1, num_inner=1, scalars=bytes(4)
)
WORK = ZeroOrderWork(
    arm=Arm(pruning_ratio=0.0, rank=4),
    seed=1,
    cut=1,
    lower_learning_rate=0.1,
    learning_rate=0.1,
    num_outer=1,
    num_inner=4,
    num_local_steps=10,
    epsilon=0.01,
    batch_size=8,
    max_length=32,
    lora_scaling=2.0,
    log=(LOGGED, msgspec.structs.replace(LOGGED, round_number=5)),
)


def plain(value: Any) -> dict[str, Any]:
    """As it is on the wire."""
    fields: dict[str, Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(value))
    return fields


def decoded(**changes: Any) -> Work:
    work: Work = msgspec.msgpack.decode(msgspec.msgpack.encode(plain(WORK) | changes), type=Work)
    return work


def test_zero_order_work_survives_the_wire() -> None:
    assert decoded() == WORK
    assert decoded(is_normalised=True) == msgspec.structs.replace(WORK, is_normalised=True)


def test_work_on_all_weights_survives_the_wire() -> None:
    work = SeedPoolWork(
        arm=Arm(pruning_ratio=0.0, rank=1),
        pool=SeedPool(seed=3, noise="gaussian", coefficients=bytes(4 * 1024)),
        learning_rate=1e-5,
        num_perturbations=2,
        num_local_steps=10,
        epsilon=1e-3,
        batch_size=8,
        max_length=32,
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(work), type=Work) == work
    assert work.pool.num_seeds == 1024
    for coefficients in (b"", bytes(6), bytes(4 * 8193)):
        pool = plain(work.pool) | {"coefficients": coefficients}
        with pytest.raises(msgspec.ValidationError, match="coefficients"):
            msgspec.msgpack.decode(msgspec.msgpack.encode(plain(work) | {"pool": pool}), type=Work)


@pytest.mark.parametrize("numbers", [(5, 2), (2, 2)])
def test_a_log_that_does_not_ascend_is_refused(numbers: tuple[int, ...]) -> None:
    rounds = [plain(LOGGED) | {"round_number": number} for number in numbers]
    with pytest.raises(msgspec.ValidationError, match="must ascend"):
        decoded(log=rounds)


def test_one_scalar_cannot_be_normalised() -> None:
    with pytest.raises(msgspec.ValidationError, match="2 perturbations or more are needed"):
        decoded(is_normalised=True, num_inner=1)


@pytest.mark.parametrize("name", ["num_outer", "num_inner", "num_local_steps", "epsilon", "learning_rate"])
def test_nothing_of_it_is_zero(name: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=name):
        decoded(**{name: 0})


def test_every_tag_has_its_member_of_the_union() -> None:
    members = {tag: type_of(tag) for tag in typing.get_args(WorkType)}
    assert members == {"lora": LoraWork, "probe": ProbeWork, "zero_order": ZeroOrderWork, "seed_pool": SeedPoolWork}
    assert set(members.values()) == set(typing.get_args(Work))


@pytest.mark.parametrize(
    ("work", "words", "num_steps"),
    [
        (LORA, "pruning ratio 0.25, rank 8", 20),
        (SOFTMAX, "probe, softmax", 30),
        (STATISTICS, "probe, statistics", 1),
        (WORK, "zero order, 1 x 4 perturbations, cut 1, rank 4", 10),
    ],
)
def test_work_says_in_a_few_words_what_it_is_and_how_many_steps_it_counts(
    work: Work, words: str, num_steps: int
) -> None:
    assert str(work) == words
    assert work.num_counted_steps == num_steps
