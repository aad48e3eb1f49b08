"""The two ways to run an artifact's graphs, by name."""

from __future__ import annotations

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.fused import FusedGraphs
from edge_runtime.engine.model import Graphs, Mode
from edge_runtime.engine.staged import StagedGraphs


def graphs_of(artifact: Artifact, mode: Mode, *, num_threads: int) -> Graphs:
    """Graphs of an artifact in a mode, each loaded on first use; ``num_threads`` for one operator."""
    kind = FusedGraphs if mode == "fused" else StagedGraphs
    return kind(artifact, num_threads=num_threads)
