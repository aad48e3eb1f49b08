"""The owner of a board limits what it may run, in words and on a real device; as in test_agent."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.agent.assignment_runner import WorkContext
from edge_runtime.agent.pins import Pins
from edge_runtime.errors import ExitCode
from edge_runtime.wire.messages import (
    DeviceState,
    Failure,
    FailureReason,
    Finished,
    Presence,
    Register,
    Status,
    Update,
    encode_message,
)
from edge_runtime.wire.topics import to_all
from tests.edge_runtime.agent.stage import FLEET, WAIT_S, Coordinator, StartDevice

GOOD, OTHER = "ab" * 32, "cd" * 32


def objection(pins: Pins, digest: str = GOOD, url: str = "http://artifacts.example:8080/x/") -> str | None:
    return pins.objection("r", digest, url)


def test_without_pins_anything_may_be_run() -> None:
    assert objection(Pins.of(None, None)) is None
    assert objection(Pins(), OTHER) is None


def test_a_digest_is_allowed_or_not() -> None:
    pins = Pins.of(f"{GOOD},{'ee' * 32}", None)
    assert objection(pins) is None
    told = objection(pins, OTHER) or ""
    for part in ("run r is refused", OTHER[:12], GOOD[:12], "--artifact-digest", "ask whoever runs the coordinator"):
        assert part in told


@pytest.mark.parametrize(
    ("hosts", "url", "is_allowed"),
    [
        ("artifacts.example", "http://artifacts.example:8080/x/", True),
        ("artifacts.example", "http://ARTIFACTS.example/x/", True),
        ("artifacts.example:8080", "http://artifacts.example:8080/x/", True),
        ("artifacts.example:80", "http://artifacts.example/x/", True),
        ("artifacts.example:443", "https://artifacts.example/x/", True),
        ("one,two", "http://two/", True),
        ("[::1]", "http://[::1]:9/", True),
        ("[::1]:9", "http://[::1]:9/", True),
        ("artifacts.example:8080", "http://artifacts.example/x/", False),
        ("artifacts.example:80", "https://artifacts.example/x/", False),
        ("artifacts.example", "http://artifacts.example.evil/x/", False),
        ("artifacts.example", "http://evil/artifacts.example/", False),
        ("artifacts.example", "http://artifacts.example@evil/", False),
        ("artifacts.example", "http://evil#artifacts.example", False),
        ("artifacts.example", "http://169.254.169.254/latest/", False),
        ("127.0.0.1", "http://127.1/", False),
        ("[::1]", "http://1/", False),
    ],
)
def test_a_host_is_allowed_or_not(hosts: str, url: str, *, is_allowed: bool) -> None:
    told = objection(Pins.of(None, hosts), url=url)
    assert (told is None) == is_allowed, told
    assert told is None or told.startswith("run r is refused: ")
    assert "\n" not in (told or "")


REFUSED: list[dict[str, Any]] = [
    {"digests": frozenset({OTHER})},
    {"hosts": frozenset({"artifacts.example"})},
    {"hosts": frozenset({"127.0.0.1:1"})},
]


@pytest.mark.parametrize("pins", REFUSED, ids=["digest", "host", "port"])
def test_a_run_that_is_not_allowed_is_refused_reported_and_nothing_of_it_is_fetched(
    pins: dict[str, Any],
    coordinator: Coordinator,
    start_device: StartDevice,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    device = start_device(pins=Pins(**pins))
    coordinator.wait(Register)
    for _again in range(3):
        coordinator.welcome(run_id="unwanted")
    assert "run unwanted is refused" in coordinator.wait(Status, state=DeviceState.IDLE).detail
    coordinator.assign(run_id="unwanted")
    failure = coordinator.wait(Failure, run_id="unwanted")
    assert failure.reason is FailureReason.INTERNAL
    assert "refused" in failure.detail
    assert coordinator.silence(Register, 0.5), "it does not register again for a run that it does not want"
    assert device.thread.is_alive()
    assert list((tmp_path / "state" / "artifacts").iterdir()) == []
    refusals = [r for r in caplog.records if r.message.startswith("run unwanted is refused")]
    assert len(refusals) == 1, "once, however often it is welcomed"


def test_after_a_refusal_an_allowed_run_is_taken(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device(pins=Pins(digests=frozenset({coordinator.artifact.digest})))
    coordinator.wait(Register)
    coordinator.welcome(artifact_digest=OTHER)
    coordinator.wait(Status, state=DeviceState.IDLE)
    coordinator.hello()
    coordinator.wait(Register)
    coordinator.welcome()
    coordinator.wait(Status, state=DeviceState.IDLE, detail="")
    coordinator.assign()
    assert coordinator.wait(Update).key.round_number == 1


def test_a_refused_welcome_does_not_disturb_the_run_under_way(
    coordinator: Coordinator, start_device: StartDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on, on_step = threading.Event(), WorkContext.on_step

    def hold(context: WorkContext, step: int, loss: float) -> None:
        on_step(context, step, loss)
        may_go_on.wait(WAIT_S)

    monkeypatch.setattr(WorkContext, "on_step", hold)
    start_device(pins=Pins(digests=frozenset({coordinator.artifact.digest})))
    coordinator.bring_in()
    coordinator.assign()
    coordinator.wait(Status, state=DeviceState.TRAINING)
    coordinator.welcome(run_id="unwanted", artifact_digest=OTHER)
    told = coordinator.wait(Status, state=DeviceState.TRAINING)
    while "refused" not in told.detail:
        told = coordinator.wait(Status, state=DeviceState.TRAINING)
    coordinator.assign(run_id="unwanted")
    assert "refused" in coordinator.wait(Failure, run_id="unwanted").detail
    may_go_on.set()
    assert coordinator.wait(Update).key.run_id != "unwanted"


def test_a_run_that_turns_to_another_artifact_is_left(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device(pins=Pins(digests=frozenset({coordinator.artifact.digest})))
    coordinator.bring_in()
    coordinator.assign(hyper={"num_local_steps": 100_000})
    coordinator.wait(Status, state=DeviceState.TRAINING)
    coordinator.welcome(artifact_digest=OTHER)
    assert "refused" in coordinator.wait(Status, state=DeviceState.IDLE).detail
    coordinator.assign(2)
    assert "refused" in coordinator.wait(Failure).detail


def test_the_end_of_a_refused_run_ends_the_device_that_wants_it(
    coordinator: Coordinator, start_device: StartDevice
) -> None:
    device = start_device(pins=Pins(digests=frozenset({OTHER})), exit_when_finished=True)
    coordinator.wait(Register)
    coordinator.welcome(run_id="unwanted")
    coordinator.wait(Status, state=DeviceState.IDLE)
    coordinator.link.publish(to_all(FLEET, "finished"), encode_message(Finished(run_id="unwanted")))
    coordinator.wait(Presence, online=False, detail="the run is over")
    assert device.wait() == ExitCode.OK
