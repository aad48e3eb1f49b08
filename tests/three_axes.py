"""A method's axes with one that the project does not have: examples in a batch, of which a larger number costs more."""

from __future__ import annotations

from typing import Final

from edge_runtime.wire.arms import PRUNING_RATIO, RANK, Axes, Axis

BATCH_SIZE: Final = Axis(
    name="batch_size",
    label="batch size",
    metavar="EXAMPLES",
    words="batches of {}",
    kind=int,
    least=1,
    most=64,
    example=8,
    default=8,
    is_log=True,
    time_alone=0.1,
    time_joint=0.6,
)
AXES: Final = Axes((PRUNING_RATIO, RANK, BATCH_SIZE))
