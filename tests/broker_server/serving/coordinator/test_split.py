"""Split tuning through the coordinator with real devices: asked once, not needed again, a server that is killed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker_server.errors import StoreError
from broker_server.methods.method import Combined
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.split.method import Split
from broker_server.methods.tables import SplitConfig
from broker_server.methods.training import TrainingConfig
from broker_server.serving.storage.store import Store
from edge_runtime.agent.methods.split.method import SplitExecution
from edge_runtime.errors import ExitCode
from edge_runtime.wire.arms import RANK, Axes
from tests.broker_server.conftest import Coordination
from tests.broker_server.links import InProcess
from tests.broker_server.serving.coordinator.whole_run import (
    NAMES,
    WAIT_S,
    WholeRun,
    artifact_server,
    wait_until,
    write_run,
)

NUM_ROUNDS = 3
Coordinate = Callable[[Path], Coordination]


class Fleet:
    """One run and its three boards, and how often each ran the lower blocks."""

    def __init__(self, run: WholeRun, coordinate: Coordinate) -> None:
        self.run = run
        self.coordinate = coordinate
        self.num_passes = 0

    def start(self, *names: str) -> None:
        for name in names:
            self.run.start(name)

    def switch_off(self, *names: str) -> None:
        for name in names:
            board = self.run.boards[name]
            board.agent.stop(ExitCode.OK, "the board is switched off")
            board.join(WAIT_S)

    @property
    def files(self) -> list[Path]:
        return sorted((self.run.run_dir / "updates").glob("*/*.safetensors"))


@pytest.fixture
def fleet_of(
    tiny_bert_artifact: Path,
    broker: InProcess,
    coordinate: Coordinate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], contextlib.AbstractContextManager[Fleet]]:
    """A function that prepares a run of three rounds, whose artifact is served."""
    original = SplitExecution.train

    @contextlib.contextmanager
    def prepared(name: str) -> Iterator[Fleet]:
        fleet = Fleet(WholeRun(tmp_path / name, broker.broker), coordinate)

        def train(self: SplitExecution, *given: Any) -> Any:
            fleet.num_passes += 1
            return original(self, *given)

        monkeypatch.setattr(SplitExecution, "train", train)
        artifacts = fleet.run.run_dir / "artifacts"
        artifacts.mkdir(parents=True)
        with artifact_server(artifacts) as url:
            write_run(
                fleet.run.run_dir,
                tiny_bert_artifact,
                url,
                broker.url,
                method="split",
                arms=Axes((RANK,)).parse("4"),
                training=TrainingConfig(
                    num_rounds=NUM_ROUNDS, num_local_steps=4, batch_size=4, max_length=8, learning_rate=2e-2
                ),
                pruning=PruningConfig(),
                split_tuning=SplitConfig(cut=1, freeze_lower=True),
            )
            yield fleet

    return prepared


FleetOf = Callable[[str], contextlib.AbstractContextManager[Fleet]]


@pytest.fixture
def smooth(fleet_of: FleetOf) -> list[bytes]:
    """Adapters of a run in which nothing happens."""
    with fleet_of("smooth") as fleet:
        running = fleet.coordinate(fleet.run.run_dir)
        fleet.start(*NAMES)
        running.finish(WAIT_S)
        for board in fleet.run.boards.values():
            board.join(WAIT_S)
            assert board.result is ExitCode.OK
        assert fleet.num_passes == len(NAMES)
        records = fleet.run.records
        assert [{device.device_id: device.outcome for device in record.devices} for record in records] == [
            {},
            dict.fromkeys(NAMES, "accepted"),
            {},
            {},
        ], "later rounds ask nobody"
        assert [record.num_standing for record in records] == [0, 0, len(NAMES), len(NAMES)]
        assert [record.was_used for record in records] == [False, True, True, True]
        assert all(device.train_loss is None and device.evaluation is None for device in records[1].devices)
        assert all(device.work == "split" and device.adapter_delta for device in records[1].devices)
        assert len(set(fleet.run.adapters)) == NUM_ROUNDS + 1
        assert fleet.run.losses[-1] < fleet.run.losses[0]
        return fleet.run.adapters


def break_before(round_number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the coordinator before a round is combined."""
    combine = Split.combine

    def fail(made: Split, number: int, *rest: Any) -> Combined:
        if number == round_number:
            msg = "power cut"
            raise StoreError(msg)
        return combine(made, number, *rest)

    monkeypatch.setattr(Split, "combine", fail)


def play_until_it_breaks(fleet: Fleet, round_number: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        break_before(round_number, patched)
        running = fleet.coordinate(fleet.run.run_dir)
        fleet.start(*NAMES)
        with pytest.raises(StoreError, match="power cut"):
            running.finish(WAIT_S)
    fleet.switch_off(*NAMES)
    assert len(fleet.files) == len(NAMES)


@pytest.mark.parametrize("round_number", [1, 2])
def test_a_server_that_is_killed_goes_on_without_any_device(
    fleet_of: FleetOf, smooth: list[bytes], round_number: int
) -> None:
    with fleet_of("rough") as fleet:
        play_until_it_breaks(fleet, round_number)
        fleet.coordinate(fleet.run.run_dir).finish(WAIT_S)
        assert fleet.num_passes == len(NAMES), "nobody was there to be asked"
        assert fleet.run.adapters == smooth
        if round_number == 2:
            assert [record.num_standing for record in fleet.run.records] == [0, 0, len(NAMES), len(NAMES)]


@pytest.mark.parametrize("round_number", [1, 3])
def test_a_device_whose_file_is_damaged_is_asked_again(
    fleet_of: FleetOf, smooth: list[bytes], round_number: int
) -> None:
    with fleet_of("damaged") as fleet:
        play_until_it_breaks(fleet, round_number)
        damaged = fleet.files[1]
        content = bytearray(damaged.read_bytes())
        content[-1] ^= 1
        damaged.write_bytes(content)
        running = fleet.coordinate(fleet.run.run_dir)
        fleet.start(damaged.stem)
        running.finish(WAIT_S)
        assert fleet.num_passes == len(NAMES) + 1
        assert fleet.run.adapters[-1] == smooth[-1], "its activations are the same, and so is what follows"
        keys = [
            (update.key.round_number, update.key.device_id) for update in Store.open(fleet.run.run_dir).load_updates()
        ]
        assert (round_number, damaged.stem) in keys


def test_a_run_goes_on_when_its_devices_have_left(fleet_of: FleetOf, smooth: list[bytes]) -> None:
    with fleet_of("left") as fleet:
        combine = Split.combine

        def leave(made: Split, number: int, *rest: Any) -> Combined:
            if number == 1:
                fleet.switch_off(*NAMES)
            return combine(made, number, *rest)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Split, "combine", leave)
            running = fleet.coordinate(fleet.run.run_dir)
            fleet.start(*NAMES)
            running.finish(WAIT_S)
        wait_until(lambda: len(fleet.run.records) == NUM_ROUNDS + 1)
        assert fleet.run.adapters == smooth
