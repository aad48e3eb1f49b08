"""Fleet files: read, refused, dealt, kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.emulation.fleet import DeviceClass, Drift, Fleet, load_fleet, parse_fleet
from broker_server.emulation.step_times import StepTimes
from broker_server.errors import ConfigError
from tests.edge_runtime.bounds.test_fields import unbounded


def make_fleet(*counts: int) -> Fleet:
    return Fleet(
        classes=tuple(
            DeviceClass(
                name=f"class-{i}",
                count=count,
                compute_factor=1.0 + i,
                uplink_mbit_s=8.0,
                downlink_mbit_s=16.0,
                drift=(Drift(from_round=5, factor=3.0), Drift(from_round=8, factor=1.5)),
            )
            for i, count in enumerate(counts)
        )
    )


IDS = tuple(f"device-{n}" for n in range(1, 11))


def test_the_built_in_fleet_has_the_papers_classes() -> None:
    fleet = load_fleet("jetson")
    assert [(one.name, one.count) for one in fleet.classes] == [("tx2", 30), ("nx", 40), ("agx", 10)]
    assert Counter(fleet.dealt([f"d{n}" for n in range(80)]).members.values()) == {"tx2": 30, "nx": 40, "agx": 10}
    assert Counter(fleet.dealt(IDS).members.values()) == {"tx2": 4, "nx": 5, "agx": 1}


def test_a_fleet_survives_its_file(tmp_path: Path) -> None:
    fleet = make_fleet(3, 4, 1).dealt(IDS)
    path = tmp_path / "fleet.toml"
    path.write_text(fleet.to_toml())
    assert load_fleet(path) == fleet


@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(1, 60))
def test_every_device_gets_a_class_and_every_class_a_device_where_that_can_be(counts: list[int], total: int) -> None:
    ids = [f"d{n}" for n in range(total)]
    members = make_fleet(*counts).dealt(ids).members
    assert list(members) == ids
    assert len(set(members.values())) == len(counts) or total < len(counts)


def test_the_drift_that_began_last_holds() -> None:
    one = make_fleet(1).classes[0]
    assert [one.compute_factor_at(n) for n in (1, 4, 5, 7, 8, 20)] == [1.0, 1.0, 3.0, 3.0, 1.5, 1.5]


GOOD = make_fleet(1).to_toml()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[fleet", "malformed"),
        ("[other]\n", "expected \\[fleet\\]"),
        ("[fleet]\nclasses = []\n", "classes: expected"),
        (GOOD.replace("compute_factor = 1.0", "compute_factor = 0.0"), "compute_factor"),
        (GOOD.replace("availability = 1.0", "availability = 1.5"), "availability"),
        (GOOD + "colour = 1\n", "colour"),
        (GOOD.replace("compute_factor = 1.0", "compute_factor = inf"), "compute_factor"),
        (GOOD.replace("compute_factor = 1.0", "compute_factor = nan"), "compute_factor"),
        (GOOD.replace("count = 1", f"count = {2**62}"), "count"),
        (GOOD.replace("deadline_s = 0.0", "deadline_s = inf"), "deadline_s"),
        (make_fleet(1, 1).to_toml().replace("class-1", "class-0"), "not all different"),
        (GOOD + '[fleet.members]\n"d" = "nobody"\n', "not there"),
    ],
)
def test_a_malformed_fleet_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_fleet(text, "test")


def test_a_missing_file_says_what_else_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jetson"):
        load_fleet(tmp_path / "none.toml")


def test_a_stranger_has_no_class() -> None:
    with pytest.raises(ConfigError, match="device-99"):
        make_fleet(1).dealt(IDS).class_of("device-99")


@pytest.mark.parametrize("kind", [Fleet, StepTimes])
def test_every_number_of_a_file_has_a_range(kind: type[msgspec.Struct]) -> None:
    assert unbounded(msgspec.inspect.type_info(kind), kind.__name__) == []
