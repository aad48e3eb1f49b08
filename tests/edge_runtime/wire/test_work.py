"""Work says what it is, and is refused when it is decoded if it contradicts itself."""

from __future__ import annotations

import math
import typing
from typing import Annotated, Any

import msgspec
import pytest

from edge_runtime.errors import MessageError
from edge_runtime.formats.seed_pool import SeedPool
from edge_runtime.wire.logged_rounds import LoggedRound
from edge_runtime.wire.messages import Assignment, Welcome, decode_message
from edge_runtime.wire.work import (
    Arm,
    LoraWork,
    PluginWork,
    ProbeWork,
    SeedPoolWork,
    SplitWork,
    Work,
    WorkType,
    ZeroOrderWork,
    type_of,
)
from tests.edge_runtime.wire.test_messages import EXAMPLES, PLUGIN

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
SPLIT = SplitWork(cut=2, dtype="int8", batch_size=16, max_length=64, noise=0.5)


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


def test_split_work_has_the_golden_bytes_and_refuses_a_cut_without_a_block() -> None:
    golden = (
        "86a474797065a573706c6974a363757402a56474797065a4696e7438aa62617463685f73697a6510aa6d61785f6c656e67746840a5"
        "6e6f697365cb3fe0000000000000"
    )
    assert msgspec.msgpack.encode(SPLIT).hex() == golden
    assert msgspec.msgpack.decode(bytes.fromhex(golden), type=Work) == SPLIT
    for wrong in (
        {"cut": 0},
        {"cut": -1},
        {"dtype": "int4"},
        {"batch_size": 0},
        {"max_length": 2**31},
        {"noise": -0.1},
        {"noise": math.nan},
        {"noise": 101.0},
    ):
        with pytest.raises(msgspec.ValidationError, match=next(iter(wrong))):
            msgspec.msgpack.decode(msgspec.msgpack.encode(plain(SPLIT) | wrong), type=Work)


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
    assert members == {
        "lora": LoraWork,
        "probe": ProbeWork,
        "zero_order": ZeroOrderWork,
        "seed_pool": SeedPoolWork,
        "plugin": PluginWork,
        "split": SplitWork,
    }
    assert set(members.values()) == set(typing.get_args(Work))


@pytest.mark.parametrize(
    ("work", "words", "num_steps"),
    [
        (LORA, "pruning ratio 0.25, rank 8", 20),
        (SOFTMAX, "probe, softmax", 30),
        (STATISTICS, "probe, statistics", 1),
        (PLUGIN, "method class_means of an installed package", 2),
        (WORK, "zero order, 1 x 4 perturbations, cut 1, rank 4", 10),
        (SPLIT, "split, activations after 2 blocks in int8, noise 0.5", 1),
        (msgspec.structs.replace(SPLIT, noise=0.0), "split, activations after 2 blocks in int8", 1),
    ],
)
def test_work_says_in_a_few_words_what_it_is_and_how_many_steps_it_counts(
    work: Work, words: str, num_steps: int
) -> None:
    assert str(work) == words
    assert work.num_counted_steps == num_steps


class Own(msgspec.Struct, frozen=True, kw_only=True):
    """Settings as a package declares them."""

    is_centred: bool
    num_bins: Annotated[int, msgspec.Meta(ge=1, le=16)]
    largest_norm: float
    form: str = "sums"


@pytest.mark.parametrize("value", [True, -(2**53), 2**53, 0.5, -1e15, "", "a b~" * 50])
def test_settings_of_a_package_survive_the_wire(value: object) -> None:
    work = msgspec.structs.replace(PLUGIN, settings={"x": value})
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(work), type=Work)
    assert decoded == work
    assert type(decoded.settings["x"]) is type(value)


@pytest.mark.parametrize(
    "settings",
    [
        {"x": math.nan},
        {"x": math.inf},
        {"x": 2**53 + 1},
        {"x": -1e16},
        {"x": None},
        {"x": [1]},
        {"x": {"y": 1}},
        {"x": b"1"},
        {"x": "a" * 201},
        {"x": "\x1b[2J"},
        {"x": "a\n"},
        {"x": "\u202e"},
        {"": 1},
        {"x" * 65: 1},
        {"a b": 1},
        {"../x": 1},
        {1: 1},
        {f"x{i}": i for i in range(65)},
    ],
    ids=lambda settings: ascii(settings)[:30],
)
def test_settings_of_a_package_are_few_small_and_flat(settings: object) -> None:
    with pytest.raises(msgspec.ValidationError, match="settings"):
        msgspec.msgpack.decode(msgspec.msgpack.encode(plain(PLUGIN) | {"settings": settings}), type=Work)


def test_a_million_settings_are_refused_before_they_are_read() -> None:
    assignment = next(m for m in EXAMPLES if isinstance(m, Assignment))
    settings = {f"x{i}": i for i in range(10**6)}
    fields = plain(assignment) | {"work": plain(PLUGIN) | {"settings": settings}}
    with pytest.raises(MessageError, match="at most 98304"):
        decode_message(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize("name", ["", "a:b", "os:system", "../x", "a b", "a" * 65, "-a", "a\n", "\x1b", "é"], ids=ascii)
def test_a_method_is_named_and_code_is_not(name: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="method"):
        msgspec.msgpack.decode(msgspec.msgpack.encode(plain(PLUGIN) | {"method": name}), type=Work)


def test_a_package_reads_its_settings_by_a_struct_of_its_own() -> None:
    settings = {"is_centred": True, "num_bins": 8, "largest_norm": 2}
    work = msgspec.structs.replace(PLUGIN, settings=settings)
    assert work.settings_as(Own) == Own(is_centred=True, num_bins=8, largest_norm=2.0)
    for wrong in ({"num_bins": 17}, {"num_bins": 8.5}, {"is_centred": 1}, {"form": True}):
        with pytest.raises(MessageError, match=f"settings of method 'class_means' refused: .*{next(iter(wrong))}"):
            msgspec.structs.replace(work, settings=settings | wrong).settings_as(Own)
    with pytest.raises(MessageError, match="missing required field `largest_norm`"):
        msgspec.structs.replace(work, settings={"is_centred": True, "num_bins": 8}).settings_as(Own)


def test_a_run_of_such_work_names_its_method() -> None:
    welcome = next(m for m in EXAMPLES if isinstance(m, Welcome))
    fields = plain(welcome) | {"work": "plugin"}
    with pytest.raises(MessageError, match="expected the name of a method"):
        decode_message(msgspec.msgpack.encode(fields))
    decoded = decode_message(msgspec.msgpack.encode(fields | {"device_method": "class_means"}))
    assert isinstance(decoded, Welcome)
    assert decoded.device_method == "class_means"
