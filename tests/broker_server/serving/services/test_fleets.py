"""One coordinator a fleet: the second one leaves, whoever comes when."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from broker_server.errors import FleetInUseError
from broker_server.serving.services import fleets
from broker_server.serving.services.fleets import Claimant, check_free
from edge_runtime.errors import ExitCode
from edge_runtime.link.address import BrokerAddress, TlsFiles
from edge_runtime.link.mqtt import MqttLink
from edge_runtime.wire.messages import Assignment, Hello, Register, Welcome
from tests.broker_server import fleet, tiny
from tests.broker_server.conftest import Broker, Coordination
from tests.broker_server.fleet import Device
from tests.edge_runtime.link.links import wait_until


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
    first.take()
    Wire(first, second).say(second.reflex.greet())
    with pytest.raises(
        FleetInUseError, match=r"fleet 'lab' has a coordinator already, of run 'run-1'.*--fleet-name"
    ) as caught:
        second.take()
    assert caught.value.exit_code == ExitCode.FLEET_IN_USE


def test_who_only_looks_never_has_the_fleet() -> None:
    looking, second = Claimant("lab", "check", "zz"), Claimant("lab", "run-2", "aa")
    looking.look()
    Wire(looking, second).say(second.reflex.greet())
    second.take()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["lower first", "higher first"])
def test_of_two_that_ask_at_once_one_goes_on(order: tuple[int, int]) -> None:
    both = [Claimant("lab", "run-1", "aa"), Claimant("lab", "run-2", "bb")]
    wire = Wire(*both)
    for index in order:
        wire.say(both[index].reflex.greet())
    both[0].take()
    with pytest.raises(FleetInUseError, match="run-1"):
        both[1].take()


def test_one_that_subscribed_after_the_other_s_question_is_answered_all_the_same() -> None:
    early, late = Claimant("lab", "run-1", "aa"), Claimant("lab", "run-2", "bb")
    Wire(early).say(early.reflex.greet())
    Wire(early, late).say(late.reflex.greet())
    early.take()
    with pytest.raises(FleetInUseError):
        late.take()


def test_one_that_had_the_fleet_and_is_gone_objects_to_nothing() -> None:
    Claimant("lab", "run-1", "aa").take()
    again = Claimant("lab", "run-1", "bb")
    Wire(again).say(again.reflex.greet())
    again.take()


def test_two_that_were_cut_off_from_each_other_both_say_so_and_go_on(caplog: pytest.LogCaptureFixture) -> None:
    both = [Claimant("lab", "run-1", "aa"), Claimant("lab", "run-2", "bb")]
    for one in both:
        one.take()
    for one in both:
        Wire(*both).say(one.reflex.greet())
    assert "run 'run-1' has a coordinator on fleet 'lab' too" in caplog.text
    assert "run 'run-2' has a coordinator on fleet 'lab' too" in caplog.text


@pytest.mark.parametrize("payload", [b"", b"\xff", b"\x80", b"\x81\xa6run_id\xa1x", b"\x91" * 5000])
def test_bytes_that_are_no_claim_are_nothing(payload: bytes) -> None:
    one = Claimant("lab", "run-1", "aa")
    assert one.hear(payload) is None
    one.take()


# ---- over a broker ---------------------------------------------------------------------------------------------------


def test_a_second_coordinator_is_refused_and_the_first_goes_on(
    any_broker: Broker, tmp_path: Path, coordinate: Callable[[Path], Coordination], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleets, "LISTEN_S", 1.0)
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
        second = coordinate(runs[1])
        with pytest.raises(FleetInUseError, match="run-0"):
            second.finish()
        with pytest.raises(FleetInUseError, match="run-0"):
            check_free(BrokerAddress.parse(any_broker.url), TlsFiles(), fleet.FLEET, random.Random(0))
        check_free(BrokerAddress.parse(any_broker.url), TlsFiles(), "another", random.Random(0))
        may_train.set()
        first.finish()
    said = {message.run_id for message in b.received if isinstance(message, Hello | Welcome)}
    assert said == {"run-0"}, "the first coordinator alone speaks to devices"
    assert {message.key.run_id for message in b.received if isinstance(message, Assignment)} == {"run-0"}


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
    claimant.take()
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
