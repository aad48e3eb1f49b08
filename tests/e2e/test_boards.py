"""The parts by themselves, as docs/server.md starts them; with FEDSPINE_EDGE, devices of another installation."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from broker_server.methods.training import TrainingConfig
from tests.e2e.boards import make_run_dir, play, records_of, said

pytestmark = pytest.mark.e2e

EDGE = [os.environ["FEDSPINE_EDGE"]] if "FEDSPINE_EDGE" in os.environ else [sys.executable, "-m", "edge_runtime"]


@pytest.fixture
def run_dir(rows_artifact: Path, tmp_path: Path) -> Path:
    """One round for two devices."""
    training = TrainingConfig(num_rounds=1, num_local_steps=2, batch_size=4, max_length=16)
    return make_run_dir(tmp_path / "my-run", rows_artifact, training=training)


def test_two_boards_and_a_server_finish_a_round(run_dir: Path, tmp_path: Path) -> None:
    codes = play(run_dir, tmp_path, {"attic": (EDGE, ()), "cellar": (EDGE, ())})

    assert codes == [0, 0, 0], said(tmp_path)
    outcomes = {name: device.outcome for name, device in records_of(run_dir, 1).items()}
    assert outcomes == {"attic": "accepted", "cellar": "accepted"}
    assert (run_dir / "adapters" / "round-0001.safetensors").is_file()
