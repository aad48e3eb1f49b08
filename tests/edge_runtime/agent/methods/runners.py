"""Runners for tests of methods, and the graphs that none of the forward-only ones may load."""

from __future__ import annotations

from collections.abc import Callable

from edge_runtime.agent.assignment_runner import AssignmentRunner
from edge_runtime.formats import names

Make = Callable[..., AssignmentRunner]
BACKWARD = {
    names.TRAINING_GRAPH,
    names.OPTIMIZER_GRAPH,
    names.HEAD_STAGE,
    names.BLOCK_BACKWARD_STAGE,
    names.FIRST_BACKWARD_STAGE,
    names.LAST_BACKWARD_STAGE,
}
