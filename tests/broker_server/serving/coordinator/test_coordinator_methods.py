"""A coordinator combines by the class of the method that its configuration names, one of an installed package too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.formats.tensors import decode_tensors
from tests.broker_server import fleet
from tests.broker_server.conftest import Broker, Coordination
from tests.broker_server.fleet import Device
from tests.extending.conftest import installed

__all__ = ["installed"]  # a fixture


def test_a_method_of_a_package_combines_in_its_own_way(
    installed: Path,
    broker: Broker,
    tmp_path: Path,
    coordinate: Callable[[Path], Coordination],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(installed))
    rounds = {}
    for method in ("", "half_step"):
        run_dir = tmp_path / f"run-{method}"
        run_dir.mkdir()
        fleet.config(run_dir, broker.url, method=method)
        running = coordinate(run_dir)
        with Device(broker.url, "a"), Device(broker.url, "b"):
            running.finish()
        files = [run_dir / "adapters" / f"round-000{number}.safetensors" for number in (0, 1)]
        rounds[method] = [decode_tensors(file.read_bytes()) for file in files]

    (start, whole), (same, half) = rounds[""], rounds["half_step"]
    for name, before in start.items():
        np.testing.assert_array_equal(same[name], before)
        np.testing.assert_allclose(half[name] - before, (whole[name] - before) / 2, atol=1e-6)
    assert any(np.abs(whole[name] - before).max() > 1e-3 for name, before in start.items())
