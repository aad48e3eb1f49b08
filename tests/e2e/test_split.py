"""``fedspine run --method split --freeze-lower`` as a whole: activations go up once, and rounds go on without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.e2e.processes import fedspine_run, report_of
from tests.e2e.rows import Copy

pytestmark = pytest.mark.e2e


def test_devices_send_activations_once_and_the_server_tunes_what_lies_above_the_cut(
    prepared_classifier: Path, copy_of: Copy
) -> None:
    root = copy_of(
        prepared_classifier,
        method="split",
        freeze_lower=True,
        cut=1,
        arms="4",
        scheduler="fixed",
        sparsity=0.0,
        rounds=3,
        local_steps=4,
        compact=False,
    )

    run = fedspine_run("--resume", "--out", str(root))

    assert run.process.returncode == 0, run.errors
    rounds = report_of(root)["rounds"][1:]
    asked = [{device["device_id"]: device["outcome"] for device in entry["devices"]} for entry in rounds]
    assert asked[0]
    assert set(asked[0].values()) == {"accepted"}
    assert asked[1:] == [{}, {}]
    factors = [load_file(root / f"adapters/round-{number:04d}.safetensors") for number in (0, 1, 3)]
    changed = {name for name in factors[0] if np.any(factors[1][name] != factors[2][name])}
    assert any("layer.1." in name for name in changed)
    assert not any("layer.0." in name and np.any(factors[2][name] != factors[0][name]) for name in factors[0])
