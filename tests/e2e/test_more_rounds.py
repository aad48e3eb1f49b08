"""A run that ended is trained for more rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.processes import fedspine_run, report_of
from tests.e2e.rows import Copy

pytestmark = pytest.mark.e2e


def test_rounds_are_added_to_a_run_that_ended(prepared_generator: Path, copy_of: Copy) -> None:
    root = copy_of(prepared_generator, rounds=1, method="fedspine", importance="lora", deploy_rounds=1)
    first = fedspine_run("--resume", "--out", str(root))
    assert (first.process.returncode, first.errors) == (0, "")
    before = (root / "adapters" / "round-0001.safetensors").read_bytes()
    compact = (root / "compact" / "model.onnx").read_bytes()

    more = fedspine_run("--resume", "--rounds", "3", "--out", str(root))

    assert (more.process.returncode, more.errors) == (0, "")
    rounds = report_of(root)["rounds"]
    assert [(entry["round_number"], entry["is_deploy"]) for entry in rounds] == [
        (0, False),
        (1, True),
        (2, False),
        (3, True),
    ]
    assert "; the last of 3 rounds at sparsity 0.5, that of the compact model" in more.output
    assert all(device["outcome"] == "accepted" for entry in rounds[1:] for device in entry["devices"])
    assert (root / "adapters" / "round-0001.safetensors").read_bytes() == before
    assert (root / "compact" / "model.onnx").read_bytes() != compact

    again = fedspine_run("--resume", "--rounds", "3", "--out", str(root))

    assert again.process.returncode == 0
    assert "all 3 rounds are done; --rounds N trains more" in again.output
