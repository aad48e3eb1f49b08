"""Starting points of training in tests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats import adapter as adapters


def start_adapter(artifact: Artifact, rank: int) -> dict[str, npt.NDArray[np.float32]]:
    """An adapter away from its first values, so that A and B both have gradients; the same at each call."""
    rng = np.random.default_rng(4)
    full = adapters.initial(artifact.manifest, artifact.initial(), rank, rng)
    return {name: value + rng.normal(0, 0.05, value.shape).astype(np.float32) for name, value in full.items()}
