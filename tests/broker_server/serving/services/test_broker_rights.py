"""A broker whose rules do not let the coordinator speak: the run says so when it fails for want of devices."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from broker_server.errors import RunFailedError
from broker_server.serving.services import fleets
from broker_server.serving.services.broker import find_mosquitto
from tests.broker_server import fleet
from tests.broker_server.conftest import Coordination, free_port
from tests.e2e.processes import mosquitto, wait_for_port

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")

Coordinate = Callable[[Path], Coordination]


@pytest.mark.parametrize(
    ("acl", "is_named"),
    [
        ("topic read #", True),
        ("topic readwrite fedspine/v1/test/down/#\ntopic readwrite fedspine/v1/test/all/#", False),
    ],
    ids=["may not write", "may not write to other coordinators alone"],
)
def test_a_message_that_the_broker_did_not_take_is_named_when_no_device_comes(
    tmp_path: Path,
    coordinate: Coordinate,
    monkeypatch: pytest.MonkeyPatch,
    acl: str,
    is_named: bool,  # noqa: FBT001
) -> None:
    monkeypatch.setattr(fleets, "ECHO_S", 0.3)
    port, file, run_dir = free_port(), tmp_path / "acl", tmp_path / "run"
    file.write_text(acl + "\n")
    file.chmod(0o700)
    run_dir.mkdir()
    lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", f"acl_file {file}"]
    lines += ["user root"] if os.geteuid() == 0 else []
    with mosquitto(str(find_mosquitto()), tmp_path, "\n".join(lines) + "\n"):
        wait_for_port(port)
        fleet.config(run_dir, f"mqtt://127.0.0.1:{port}", registration_timeout_s=1.0)
        with pytest.raises(RunFailedError, match="no device for round 1") as caught:
            coordinate(run_dir).finish()
    named = "bytes on fedspine/v1/test/all/hello (Not authorized)"
    assert (named in str(caught.value)) == is_named
    assert "claim" not in str(caught.value)
