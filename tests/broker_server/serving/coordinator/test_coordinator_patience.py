"""For whom a coordinator waits, and how a run ends that nobody can take part in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from broker_server.errors import DevicesTooSmallError
from edge_runtime.errors import ExitCode
from edge_runtime.wire.messages import FailureReason
from tests.broker_server import fleet
from tests.broker_server.conftest import Coordination
from tests.broker_server.fleet import Device
from tests.broker_server.links import InProcess

Coordinate = Callable[[Path], Coordination]


def test_devices_that_are_all_too_small_end_the_run_with_a_code_of_its_own(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate
) -> None:
    fleet.config(tmp_path, broker.url, num_devices=1)
    running = coordinate(tmp_path)
    with (
        Device(broker.url, "a", fleet.refuse(FailureReason.ARM_INFEASIBLE)),
        pytest.raises(DevicesTooSmallError, match="arm_infeasible") as caught,
    ):
        running.finish()
    assert caught.value.exit_code is ExitCode.INSUFFICIENT_MEMORY
