"""A run that goes on from the adapter of another: it begins where that one ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_server.experiments.run.settings import RunSettings
from tests.e2e.processes import fedspine_run, report_of
from tests.e2e.rows import Copy

pytestmark = pytest.mark.e2e


def test_a_run_begins_where_another_ended(
    prepared_generator: Path, generate_settings: RunSettings, copy_of: Copy, tmp_path: Path
) -> None:
    root = copy_of(prepared_generator, rounds=1, compact=False)
    first = fedspine_run("--resume", "--out", str(root))
    assert (first.process.returncode, first.errors) == (0, "")
    (artifact,) = (root / "artifacts").iterdir()
    (before, after) = (entry["loss"] for entry in report_of(root)["rounds"])
    given = generate_settings
    options = {
        "artifact": artifact,
        "task": given.task,
        "data": given.data,
        "split": given.split,
        "devices": 2,
        "rounds": 1,
        "local-steps": 1,
        "batch-size": 4,
        "max-length": 16,
        "threads": 1,
        "lora-scaling": 1.0,
        "arms": "0.0:8,0.5:2",
        "adapter": root / "adapters" / "peft",
        "out": tmp_path / "second",
    }

    second = fedspine_run(
        *(word for key, value in options.items() for word in (f"--{key}", str(value))), "--no-compact"
    )

    assert (second.process.returncode, second.errors) == (0, "")
    assert "note: the run starts from the adapter" in second.output
    begun = report_of(tmp_path / "second")["rounds"][0]["loss"]
    assert begun == pytest.approx(after, rel=1e-4)
    assert abs(before - after) > 1e-3  # the adapter changes the model at all
