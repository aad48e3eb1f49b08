"""Arms: how people write them, what is refused, and that an axis is declared once, whoever has it."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.wire.arms import LORA_AXES, PRUNING_RATIO, RANK, ArmError, Axes, Axis
from edge_runtime.wire.work import Arm, AxisValue
from tests.three_axes import AXES, BATCH_SIZE


def arm(ratio: float, rank: int, batch_size: int) -> Arm:
    return Arm(pruning_ratio=ratio, rank=rank, more=(AxisValue(name="batch_size", value=batch_size),))


@pytest.mark.parametrize(
    "text",
    ["0.25:8", " 0.25 : 8 ", ".25:8", "rank=8:pruning_ratio=0.25", "0.25:rank=8", " rank = 8 : pruning_ratio = 0.25"],
)
def test_an_arm_is_written_by_position_or_by_name(text: str) -> None:
    assert LORA_AXES.parse(text) == (Arm(pruning_ratio=0.25, rank=8),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8",
        "0.25",
        "0.25:8:4",
        "0.25:8:rank=8",
        "0.25:rank=8:rank=8",
        "rank=8:0.25",
        "0.25:=8",
        "0.25:batch_size=8",
        "-0.25:8",
        "0.25:8.5",
        "1e-1:8",
        "0.25:8,",
        "nan:8",
    ],
)
def test_what_is_no_arm_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ArmError, match=r"is not RATIO:RANK, such as 0\.25:8$"):
        LORA_AXES.parse(text)


@pytest.mark.parametrize("text", ["0.96:8", "1.0:8", "0.5:0", "0.5:513", "0.5:99999999999999999999"])
def test_an_arm_outside_the_ranges_is_refused_with_them(text: str) -> None:
    with pytest.raises(ArmError, match=r"is outside its range: pruning ratio 0 to 0\.95, rank 1 to 512$"):
        LORA_AXES.parse(text)


def test_a_third_axis_is_parsed_and_written_by_name_and_may_be_left_out() -> None:
    assert AXES.parse("0.25:8,0.5:4:batch_size=2,0.5:4:16") == (arm(0.25, 8, 8), arm(0.5, 4, 2), arm(0.5, 4, 16))
    assert AXES.format((arm(0.25, 8, 8), arm(0.5, 4, 2))) == "0.25:8,0.5:4:batch_size=2"
    assert AXES.words(arm(0.25, 8, 2)) == "25% pruned, rank 8, batches of 2"
    with pytest.raises(ArmError, match=r"is not RATIO:RANK\[:batch_size=EXAMPLES\], such as 0\.25:8$"):
        AXES.parse("0.25:8:depth=2")
    with pytest.raises(ArmError, match=r"batch size 1 to 64$"):
        AXES.parse("0.25:8:batch_size=65")


@given(ratio=st.floats(0, 0.95), rank=st.integers(1, 512), batch_size=st.integers(1, 64), num_arms=st.integers(1, 3))
def test_what_is_written_is_read_back(ratio: float, rank: int, batch_size: int, num_arms: int) -> None:
    plain = (Arm(pruning_ratio=ratio, rank=rank),) * num_arms
    assert LORA_AXES.parse(LORA_AXES.format(plain)) == plain
    wide = (arm(ratio, rank, batch_size),) * num_arms
    assert AXES.parse(AXES.format(wide)) == wide


def test_an_arm_of_two_axes_is_the_same_bytes_as_before_and_a_third_value_is_carried() -> None:
    assert msgspec.json.encode(Arm(pruning_ratio=0.25, rank=8)) == b'{"pruning_ratio":0.25,"rank":8}'
    sent = arm(0.25, 8, 2)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=Arm) == sent
    assert AXES.row(sent) == [0.25, 8, 2]
    assert AXES.row(Arm(pruning_ratio=0.25, rank=8)) == [0.25, 8, 8]


@pytest.mark.parametrize(
    "more",
    [
        '[{"name":"rank","value":4}]',
        '[{"name":"batch_size","value":4},{"name":"batch_size","value":4}]',
        '[{"name":"depth","value":4},{"name":"batch_size","value":4}]',
        '[{"name":"a b","value":4}]',
        '[{"name":"batch_size","value":-1}]',
        '[{"name":"batch_size","value":1e300}]',
        "[" + ",".join(f'{{"name":"a{k:02}","value":4}}' for k in range(17)) + "]",
    ],
)
def test_further_values_that_no_arm_can_have_are_refused(more: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(f'{{"pruning_ratio":0.25,"rank":8,"more":{more}}}', type=Arm)


def test_a_whole_number_is_no_fraction() -> None:
    odd = Arm(pruning_ratio=0.25, rank=8, more=(AxisValue(name="batch_size", value=2.5),))
    with pytest.raises(ArmError, match="outside its range"):
        AXES.check(odd)


def test_one_arm_costs_at_least_another_only_if_it_does_on_every_axis() -> None:
    assert AXES.costs_at_least(arm(0.25, 8, 4), arm(0.25, 8, 4))
    assert AXES.costs_at_least(arm(0.0, 8, 4), arm(0.25, 4, 2))
    for cheaper in (arm(0.5, 8, 4), arm(0.25, 4, 4), arm(0.25, 8, 2)):
        assert AXES.costs_at_least(arm(0.25, 8, 4), cheaper)
        assert not AXES.costs_at_least(cheaper, arm(0.25, 8, 4))
    assert not LORA_AXES.costs_at_least(arm(0.5, 16, 4), arm(0.25, 8, 4))


def test_a_value_that_has_to_be_said() -> None:
    depth = Axis(
        name="depth", label="depth", metavar="BLOCKS", words="{} blocks", kind=int, least=1, most=48, example=12
    )
    with pytest.raises(ArmError, match="has no depth"):
        Axes((PRUNING_RATIO, RANK, depth)).row(Arm(pruning_ratio=0.0, rank=8))
    assert Axes((depth, BATCH_SIZE)).format(Axes((depth, BATCH_SIZE)).parse("12:batch_size=4")) == "12:batch_size=4"


@pytest.mark.parametrize(
    "changes",
    [
        {"least": 9.0, "most": 8.0},
        {"least": 0.0},
        {"removes": True, "least": 0.0, "most": 1.0},
        {"removes": True, "is_log": True, "least": 0.0, "most": 0.5},
    ],
)
def test_an_axis_that_cannot_be_scaled_is_refused(changes: dict[str, object]) -> None:
    fields: dict[str, object] = {
        "name": "x", "label": "x", "metavar": "X", "words": "x {}", "kind": float, "least": 1.0, "most": 8.0,
        "example": 2.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match="axis x"):
        Axis(**(fields | changes))  # type: ignore[arg-type]


def test_without_axes_there_is_one_arm_which_is_written_as_nothing() -> None:
    (one,) = Axes().parse(" ")
    assert Axes().format((one,)) == ""
    assert (Axes().words(one), Axes().form, Axes().row(one)) == ("one arm", "", [])
    for text in ("0.0:8", "0.0:8,0.5:4", "rank=8"):
        with pytest.raises(ArmError, match=r"^arm '.*' is given, but this method has one arm: leave it out$"):
            Axes().parse(text)


@pytest.mark.parametrize(
    ("axes", "more"),
    [
        (Axes((PRUNING_RATIO,)), Arm(pruning_ratio=0.25, rank=8)),
        (Axes((RANK,)), Arm(pruning_ratio=0.25, rank=8)),
        (LORA_AXES, arm(0.25, 8, 4)),
        (Axes(), Arm(pruning_ratio=0.0, rank=2)),
    ],
)
def test_an_arm_that_says_more_than_a_method_plays_is_refused(axes: Axes, more: Arm) -> None:
    with pytest.raises(ArmError, match="which no arm of this method has"):
        axes.check(more)
    axes.check(axes.arm(axes.row(more)))


def test_one_axis_of_the_two_is_written_alone() -> None:
    ratios = Axes((PRUNING_RATIO,))
    assert ratios.parse("0.0, pruning_ratio=0.5") == (Arm(pruning_ratio=0.0, rank=1), Arm(pruning_ratio=0.5, rank=1))
    assert ratios.format(ratios.parse("0.0,0.5")) == "0.0,0.5"
    with pytest.raises(ArmError, match=r"^arm '0\.0:8' is not RATIO, such as 0\.25$"):
        ratios.parse("0.0:8")


def test_where_all_axes_have_defaults_the_first_stands_by_position() -> None:
    batches = Axes((BATCH_SIZE,))
    assert [batches.format((one,)) for one in batches.parse("8,2")] == ["8", "2"]


@pytest.mark.parametrize("axes", [(RANK, RANK), (BATCH_SIZE, RANK)], ids=["twice", "default first"])
def test_axes_that_cannot_be_written_are_refused(axes: tuple[Axis, ...]) -> None:
    with pytest.raises(ValueError, match="each name once, and those without a default first"):
        Axes(axes)


SPEED = Axis(
    name="speed",
    label="speed",
    metavar="SPEED",
    words="{} going",
    kind=int,
    least=1,
    most=2,
    example=2,
    choices=("slow", "fast"),
)


def test_values_that_have_names_are_written_by_them() -> None:
    axes = Axes((SPEED, RANK))
    slow, fast = axes.parse("slow:8,rank=8:speed=fast")
    assert [SPEED.of(one) for one in (slow, fast)] == [1, 2]
    assert axes.format((slow, fast)) == "slow:8,fast:8"
    assert (axes.form, axes.example, axes.words(fast)) == ("SPEED:RANK", "fast:8", "fast going, rank 8")
    assert axes.costs_at_least(fast, slow)
    assert (SPEED.shown(1), SPEED.figure_label, RANK.figure_label) == ("slow", "speed (1 = slow, 2 = fast)", "rank")


@pytest.mark.parametrize("text", ["1:8", "Slow:8", ":8", "slow"])
def test_what_is_no_name_of_a_value_is_refused(text: str) -> None:
    with pytest.raises(ArmError, match=r"is not SPEED:RANK, such as fast:8$"):
        Axes((SPEED, RANK)).parse(text)


def test_a_value_without_a_name_is_outside_the_range() -> None:
    axes = Axes((SPEED, RANK))
    with pytest.raises(ArmError, match=r"^arm 3:8 is outside its range: speed slow or fast, rank 1 to 512$"):
        axes.check(axes.arm((3, 8)))
    with pytest.raises(ValueError, match="has 3 names for values from 1 to 2"):
        dataclasses.replace(SPEED, choices=("slow", "fast", "faster"))
