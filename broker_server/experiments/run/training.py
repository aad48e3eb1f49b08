"""The rounds, watched from outside: events become progress, and processes that end are noticed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from broker_server.errors import ChildFailedError
from broker_server.experiments.run.display import Display
from broker_server.experiments.run.processes import Fleet
from broker_server.experiments.run.supervisor import Child
from broker_server.experiments.run.view import RunView
from broker_server.serving.storage.events import AnyEvent, EventReader
from edge_runtime.errors import ExitCode

POLL_S: Final = 0.2
"""Pause between two looks."""

FAREWELL_S: Final = 10.0
"""Time that devices have to leave after the last round."""


def watch(
    fleet: Fleet, events: EventReader, view: RunView, display: Display[RunView], told: Callable[[AnyEvent], None]
) -> None:
    """Show the rounds until the coordinator is done.

    A device that ends leaves the run going, as long as one is left.

    Args:
        fleet: the processes.
        events: of the coordinator.
        view: state of the rounds.
        display: shows it.
        told: called with each event.

    Raises:
        ChildFailedError: the coordinator or a server ended badly, or no device is left.
    """
    ended: dict[str, Child] = {}
    while fleet.coordinator.returncode is None:
        _show(events, view, display, told)
        for server in fleet.servers:
            if server.returncode is not None:
                raise server.failure()
        for device_id, device in fleet.devices.items():
            if device.returncode is not None and device_id not in ended:
                ended[device_id] = device
                view.mark_ended(device_id)
                if device.returncode != 0:
                    display.step(f"the run goes on without {device.failure()}")
        if len(ended) == len(fleet.devices) and all(device.returncode != 0 for device in ended.values()):
            raise _all_gone(list(ended.values()))
        time.sleep(POLL_S)
    _show(events, view, display, told)
    if fleet.coordinator.returncode != 0:
        raise fleet.coordinator.failure()
    give_up_at = time.monotonic() + FAREWELL_S
    while time.monotonic() < give_up_at and any(device.returncode is None for device in fleet.devices.values()):
        time.sleep(POLL_S)


def _show(events: EventReader, view: RunView, display: Display[RunView], told: Callable[[AnyEvent], None]) -> None:
    for event in events.new_events():
        told(event)
        line = view.apply(event)
        if line is not None:
            display.step(line)
    display.refresh(view)


def _all_gone(devices: list[Child]) -> ChildFailedError:
    """One error for all devices; their own exit code where they agree."""
    failures = [device.failure() for device in devices]
    codes = {failure.child_exit_code for failure in failures}
    code = codes.pop() if len(codes) == 1 else ExitCode.RUN_FAILED
    return ChildFailedError(f"no device is left; {failures[-1]}", code, failures[-1].log)
