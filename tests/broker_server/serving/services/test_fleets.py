"""One coordinator a fleet: the second one leaves, whoever comes when."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker_server.errors import FleetInUseError
from broker_server.serving.services import fleets
from broker_server.serving.services.fleets import MOST_RIVALS, Claim, Claimant, check_free
from broker_server.serving.storage.store import Store
from edge_runtime.errors import ExitCode
from edge_runtime.link.address import BrokerAddress, TlsFiles
from edge_runtime.link.in_process import InProcessLink
from edge_runtime.link.mqtt import MqttLink
from edge_runtime.wire.messages import Assignment, Hello, Register, Welcome
from tests.broker_server import conftest, fleet, tiny
from tests.broker_server.conftest import Broker, Coordination
from tests.broker_server.fleet import Device
from tests.broker_server.links import InProcess
from tests.waiting import wait_until


class Wire:
    """Delivers what claimants say to all of them, as a broker does."""

    def __init__(self, *claimants: Claimant) -> None:
        self._claimants = claimants

    def say(self, payload: bytes) -> None:
        said = [payload]
        while said:
            assert len(said) < 100, "they go on for ever"
            heard = said.pop(0)
            said += [answer for one in self._claimants if (answer := one.hear(heard)) is not None]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "ECHO_S", 0.05)
    monkeypatch.setattr(fleets, "LISTEN_S", 0.05)


def test_who_has_a_fleet_keeps_it_and_the_second_is_told_of_which_run() -> None:
    first, second = Claimant("lab", "run-1", "bb"), Claimant("lab", "run-2", "aa")
    first.take(1.0)
    Wire(first, second).say(second.reflex.greet())
    with pytest.raises(
        FleetInUseError, match=r"fleet 'lab' has a coordinator already, of run 'run-1'.*--fleet-name"
    ) as caught:
        second.take(1.0)
    assert caught.value.exit_code == ExitCode.FLEET_IN_USE


def test_who_only_looks_never_has_the_fleet() -> None:
    looking, second = Claimant("lab", "check", "zz"), Claimant("lab", "run-2", "aa")
    looking.look()
    Wire(looking, second).say(second.reflex.greet())
    second.take(1.0)
    third = Claimant("lab", "run-3", "bb")
    Wire(looking, second, third).say(third.reflex.greet())
    with pytest.raises(FleetInUseError, match="of run 'run-2'"):
        third.take(1.0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["lower first", "higher first"])
def test_of_two_that_ask_at_once_one_goes_on(order: tuple[int, int]) -> None:
    both = [Claimant("lab", "run-1", "aa"), Claimant("lab", "run-2", "bb")]
    wire = Wire(*both)
    for index in order:
        wire.say(both[index].reflex.greet())
    both[0].take(1.0)
    with pytest.raises(FleetInUseError, match="run-1"):
        both[1].take(1.0)


def test_one_that_subscribed_after_the_other_s_question_is_answered_all_the_same() -> None:
    early, late = Claimant("lab", "run-1", "aa"), Claimant("lab", "run-2", "bb")
    Wire(early).say(early.reflex.greet())
    Wire(early, late).say(late.reflex.greet())
    early.take(1.0)
    with pytest.raises(FleetInUseError):
        late.take(1.0)


def test_one_that_had_the_fleet_and_is_gone_objects_to_nothing() -> None:
    Claimant("lab", "run-1", "aa").take(1.0)
    again = Claimant("lab", "run-1", "bb")
    Wire(again).say(again.reflex.greet())
    again.take(1.0)
    third = Claimant("lab", "run-3", "aa")
    Wire(again, third).say(third.reflex.greet())
    with pytest.raises(FleetInUseError, match="of run 'run-1'"):
        third.take(1.0)


def held(run_id: str, session_id: str, since: float) -> Claimant:
    """One that has the fleet."""
    one = Claimant("lab", run_id, session_id)
    one.take(since)
    return one


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first again", "second again"])
@pytest.mark.parametrize(
    ("first", "second"),
    [(("bb", 1.0), ("aa", 2.0)), (("aa", 1.0), ("bb", 1.0))],
    ids=["an earlier start", "a lower session"],
)
def test_of_two_that_were_cut_off_from_each_other_the_first_goes_on(
    first: tuple[str, float], second: tuple[str, float], order: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    both = [held("run-1", *first), held("run-2", *second)]

    for index in order:
        Wire(*both).say(both[index].reflex.greet())

    with pytest.raises(FleetInUseError, match=r"of run 'run-1': stop that one"):
        both[1].check()
    assert [both[0].check() for _ in range(2)] == [True, False]
    assert "run 'run-2' had a coordinator on fleet 'lab' too, which gave it up" in caplog.text


def test_one_that_has_the_fleet_goes_on_beside_one_of_an_earlier_release() -> None:
    """That one says nothing of when it began, and does not end."""
    one = held("run-1", "bb", 1.0)
    claim = msgspec.msgpack.encode({"schema_version": 1, "run_id": "old", "session_id": "aa", "is_held": True})
    for _ in range(3):
        assert one.hear(claim) is not None
        assert not one.check()


def test_ever_new_rivals_cost_nothing(caplog: pytest.LogCaptureFixture) -> None:
    one = held("run-1", "bb", 1.0)
    for number in range(1000):
        one.hear(msgspec.msgpack.encode(Claim(run_id="run-2", session_id=f"s{number}", is_held=True, since=2.0)))
    told = [record for record in caplog.records if "which must end" in record.message]
    assert len(told) == MOST_RIVALS


@pytest.mark.parametrize("payload", [b"", b"\xff", b"\x80", b"\x81\xa6run_id\xa1x", b"\x91" * 5000])
def test_bytes_that_are_no_claim_are_nothing(payload: bytes) -> None:
    one = Claimant("lab", "run-1", "aa")
    assert one.hear(payload) is None
    one.take(1.0)


# ---- over a broker ---------------------------------------------------------------------------------------------------


def test_a_second_coordinator_is_refused_and_the_first_goes_on(
    any_broker: Broker, tmp_path: Path, coordinate: Callable[[Path], Coordination], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    for number, run_dir in enumerate(runs):
        run_dir.mkdir()
        fleet.config(run_dir, any_broker.url, run_id=f"run-{number}")
    may_train = threading.Event()

    def train(assignment: Assignment, blob: bytes) -> bytes:
        may_train.wait(30)
        return fleet.train(assignment, blob)

    first = coordinate(runs[0])
    with Device(any_broker.url, "a", train), Device(any_broker.url, "b", train) as b:
        wait_until(lambda: bool(b.heard(Assignment)))
        monkeypatch.setattr(fleets, "LISTEN_S", 20.0)  # the objection ends the wait, and only it
        second = coordinate(runs[1])
        with pytest.raises(FleetInUseError, match="run-0"):
            second.finish()
        with pytest.raises(FleetInUseError, match="run-0"):
            check_free(BrokerAddress.parse(any_broker.url), TlsFiles(), fleet.FLEET, random.Random(0))
        monkeypatch.setattr(fleets, "LISTEN_S", 0.05)
        check_free(BrokerAddress.parse(any_broker.url), TlsFiles(), "another", random.Random(0))
        may_train.set()
        first.finish()
    said = {message.run_id for message in b.received if isinstance(message, Hello | Welcome)}
    assert said == {"run-0"}, "the first coordinator alone speaks to devices"
    assert {message.key.run_id for message in b.received if isinstance(message, Assignment)} == {"run-0"}


def test_one_of_two_coordinators_that_were_cut_off_from_each_other_ends_and_no_update_is_mixed(
    broker: InProcess, tmp_path: Path, coordinate: Callable[[Path], Coordination], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second began while the first had no connection, and has the devices; then the first comes back."""
    links: list[InProcessLink] = []

    def open_link(**how: Any) -> InProcessLink:
        links.append(broker.broker.open_link(**how))
        return links[-1]

    monkeypatch.setattr(conftest, "link_to_broker_of", lambda _run_dir: open_link)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        config = fleet.config(tmp_path / name, broker.url, run_id=name)
    longer = dataclasses.replace(config, training=dataclasses.replace(config.training, num_rounds=1000))
    (tmp_path / "second" / "config.toml").write_text(longer.to_toml())
    is_back = threading.Event()

    def train(assignment: Assignment, blob: bytes) -> bytes | None:
        return fleet.train(assignment, blob) if assignment.key.run_id == "second" or is_back.is_set() else None

    first = coordinate(tmp_path / "first")
    with Device(broker.url, "a", train) as a, Device(broker.url, "b", train) as b:
        wait_until(lambda: all(device.heard(Assignment) for device in (a, b)))
        links[0].break_connection()
        second = coordinate(tmp_path / "second")
        wait_until(lambda: all(2 in device.verdicts() for device in (a, b)))
        is_back.set()
        links[0].restore()
        with pytest.raises(FleetInUseError, match="of run 'first'"):
            second.finish()
        first.finish()

    for name, num_rounds in (("first", 2), ("second", 1)):
        with contextlib.closing(Store.open(tmp_path / name)) as store:
            records = store.load_round_records()
            updates = [store.load_updates(number) for number in range(1, num_rounds + 1)]
        assert all(len(found) == 2 for found in updates)
        assert {update.key.run_id for found in updates for update in found} == {name}
        assert all(device.outcome == "accepted" for record in records for device in record.devices)
    assert len(records) > 1


def test_of_two_coordinators_started_at_once_one_coordinates(
    any_broker: Broker, tmp_path: Path, coordinate: Callable[[Path], Coordination], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleets, "LISTEN_S", 1.0)
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        fleet.config(tmp_path / str(number), any_broker.url, run_id=f"run-{number}")
    both = [coordinate(tmp_path / str(number)) for number in range(2)]
    wait_until(lambda: any(not one.is_alive() for one in both))
    (loser,) = [one for one in both if not one.is_alive()]
    (winner,) = [one for one in both if one is not loser]
    with pytest.raises(FleetInUseError):
        loser.finish()
    with Device(any_broker.url, "a"), Device(any_broker.url, "b"):
        winner.finish()


def test_a_coordinator_that_may_not_read_its_topic_says_so_and_begins(
    real_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker's ACL of an earlier release knows nothing of that topic; here nobody brings the question back."""
    claimant = Claimant("lab", "run-1", "aa")
    link = MqttLink(
        BrokerAddress.parse(real_broker.url),
        client_id="c",
        subscriptions=("x",),
        will=None,
        max_message_bytes=1000,
        rng=random.Random(0),
    )
    link.connect()
    claimant.take(1.0)
    link.close()
    assert "let this one write and read fedspine/v1/lab/coordinator/claim" in caplog.text


def test_two_boards_under_one_name_are_told_of_in_the_coordinator_s_log(
    real_broker: Broker, tmp_path: Path, coordinate: Callable[[Path], Coordination], caplog: pytest.LogCaptureFixture
) -> None:
    """The second registers, then the first comes back: a session is one process."""
    fleet.config(tmp_path, real_broker.url)
    coordination = coordinate(tmp_path)
    with Device(real_broker.url, "a") as a:
        wait_until(lambda: bool(a.heard(Welcome)))
        a.say(Register(device_id="a", session_id="second", capabilities=tiny.capabilities(), num_examples=10))
        a.register()
        wait_until(lambda: "two machines use this name" in caplog.text)
        with Device(real_broker.url, "b"):
            coordination.finish()
    shared = [line for line in caplog.messages if "two machines use this name" in line]
    assert {line.split(":")[0] for line in shared} == {"device a"}
