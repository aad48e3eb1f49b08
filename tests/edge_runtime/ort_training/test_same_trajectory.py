"""onnxruntime-training makes the steps of the portable engine: losses, norms, adapter, importance, evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.trainer import Trainer
from tests.edge_runtime.ort_training.conftest import ARMS, Exported, RunThere
from tests.edge_runtime.ort_training.trajectories import HYPER_PARAMETERS, play

TOLERANCE = 1e-4
"""Of the loss, nats, over all steps; what is left is rounding, which grows as training goes on."""


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: f"{arm.pruning_ratio}:{arm.rank}")
def test_200_steps_are_those_of_the_portable_engine(
    exported: Exported, artifact: Artifact, arm: Any, run_there: RunThere, tmp_path: Path
) -> None:
    out, num_steps = tmp_path / "course.npz", HYPER_PARAMETERS.num_local_steps
    trajectory = "tests.edge_runtime.ort_training.trajectories"

    done = run_there(trajectory, exported.artifact, exported.models, arm.pruning_ratio, arm.rank, num_steps, out)

    assert done.returncode == 0, done.stderr
    expected = play(Trainer(artifact, num_threads=1), artifact, arm.pruning_ratio, arm.rank, num_steps)
    with np.load(out) as got:
        assert set(got) == set(expected) | {"peak_bytes", "estimated_bytes"}
        assert got["peak_bytes"] <= got["estimated_bytes"] <= 2 * got["peak_bytes"]
        assert len(got["losses"]) == num_steps == 200
        np.testing.assert_allclose(got["losses"], expected["losses"], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(got["norms"], expected["norms"], rtol=1e-2)
        np.testing.assert_allclose(got["params"], expected["params"], rtol=0, atol=1e-3)
        np.testing.assert_allclose(got["loss_sums"], expected["loss_sums"], rtol=1e-3)
        np.testing.assert_array_equal(got["num_correct"], expected["num_correct"])
        scored = [name for name in expected if name.startswith("importance/")]
        assert len(scored) == len(artifact.manifest.groups)
        for name in scored:
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-2, atol=1e-3 * expected[name].max())
        norm = HYPER_PARAMETERS.max_grad_norm
        assert norm is not None
        assert got["norms"].max() > norm, "clipping should bite"
        assert np.mean(got["losses"][-10:]) < 0.9 * np.mean(got["losses"][:10]), "it should learn"
