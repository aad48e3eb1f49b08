"""Deaths in the middle of a run: a device, the coordinator, everything."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from broker_server.serving.storage.events import DeviceSeen, RoundStarted, UpdateAccepted
from edge_runtime.errors import ExitCode
from tests.e2e.processes import Run, all_events, assert_gone, error_line, fedspine_run, report_of, wait_for_event
from tests.e2e.rows import Copy

pytestmark = pytest.mark.e2e


def test_a_device_killed_in_the_middle_of_a_round_leaves_the_run_to_finish(
    prepared_classifier: Path, copy_of: Copy
) -> None:
    root = copy_of(prepared_classifier, compact=False)
    with Run("--resume", "--out", str(root)) as run:
        wait_for_event(root, lambda event: isinstance(event, DeviceSeen) and event.device_id == "device-2", run)
        device = run.child("start", "device-2")
        device.suspend()  # so that it is asked, and does not answer before it is killed
        wait_for_event(root, lambda event: isinstance(event, RoundStarted), run)
        device.kill()
        assert run.wait() == 0, run.errors

    outcomes = {
        (entry["round_number"], device["device_id"]): device["outcome"]
        for entry in report_of(root)["rounds"]
        for device in entry["devices"]
    }
    assert outcomes[1, "device-2"] == "lost"
    assert (2, "device-2") not in outcomes
    assert outcomes[2, "device-1"] == outcomes[2, "device-3"] == "accepted"
    assert "the run goes on without device-2: ended with signal 9" in run.output


def test_a_killed_coordinator_keeps_accepted_updates_and_no_device_trains_twice(
    prepared_classifier: Path, copy_of: Copy
) -> None:
    root = copy_of(prepared_classifier, compact=False)
    with Run("--resume", "--out", str(root)) as run:
        wait_for_event(root, lambda event: isinstance(event, RoundStarted), run)
        run.child("start", "device-3").suspend()  # so that the round stays open
        wait_for_event(root, lambda event: isinstance(event, UpdateAccepted) and event.device_id == "device-1", run)
        run.child("coordinate").kill()
        assert run.wait() == ExitCode.RUN_FAILED
    assert f"fedspine run --resume --out {root}" in error_line(run)
    kept = {path: path.read_bytes() for path in root.glob("updates/1/*.safetensors")}
    names = {path.stem for path in kept}
    assert names
    num_events = len(all_events(root))

    resumed = fedspine_run("--resume", "--out", str(root))

    assert resumed.process.returncode == 0, resumed.errors
    events = all_events(root)
    outcomes = {
        (entry["round_number"], device["device_id"]): device["outcome"]
        for entry in report_of(root)["rounds"]
        for device in entry["devices"]
    }
    assert outcomes == {(r, f"device-{d}"): "accepted" for r in (1, 2) for d in (1, 2, 3)}
    told = [(e.round_number, e.device_id) for e in events if isinstance(e, UpdateAccepted)]
    assert len(told) == len(set(told)), "an update is told of once"
    untold = outcomes.keys() - set(told)  # the process was killed after the update was stored, before its event was
    assert untold <= {(1, name) for name in names}
    assert {path: path.read_bytes() for path in kept} == kept
    trained_again = [
        event
        for event in events[num_events:]
        if isinstance(event, DeviceSeen)
        and (event.state, event.round_number) == ("training", 1)
        and event.device_id in names
    ]
    assert trained_again == []


NUM_PROCESSES = 6
"""Broker, artifact server, coordinator, three devices."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_no_process_outlives_the_run(number: signal.Signals, prepared_classifier: Path, copy_of: Copy) -> None:
    root = copy_of(prepared_classifier, compact=False)
    with Run("--resume", "--out", str(root)) as run:
        wait_for_event(root, lambda event: isinstance(event, RoundStarted), run)
        processes = run.descendants()
        assert len(processes) == NUM_PROCESSES
        run.send(number)
        code = run.wait()

    assert_gone(processes)
    if number is not signal.SIGKILL:
        assert code == ExitCode.INTERRUPTED
        assert "interrupted" in error_line(run)


def test_an_interrupted_run_leaves_no_process_and_resumes(prepared_classifier: Path, copy_of: Copy) -> None:
    root = copy_of(prepared_classifier, compact=False)
    with Run("--resume", "--out", str(root)) as run:
        wait_for_event(root, lambda event: isinstance(event, UpdateAccepted), run)
        processes = run.descendants()
        assert len(processes) == NUM_PROCESSES
        run.send(signal.SIGINT)
        code = run.wait()
    assert_gone(processes)
    assert code == ExitCode.INTERRUPTED
    assert "interrupted" in error_line(run)

    resumed = fedspine_run("--resume", "--out", str(root))

    assert resumed.process.returncode == 0, resumed.errors
    report = report_of(root)
    assert [entry["round_number"] for entry in report["rounds"]] == [0, 1, 2]
    assert report["final"]["seconds"] == pytest.approx(sum(report["steps"].values()))
