"""Step times that were not measured."""

from __future__ import annotations

from broker_server.emulation.step_times import GridAxis, StepTimes


def step_times(*, step_s: tuple[float, ...], **values: tuple[float, ...]) -> StepTimes:
    """Seconds over a grid; ``values`` are those of each axis, by its name."""
    grid = tuple(GridAxis(name=name, values=known) for name, known in values.items())
    return StepTimes(grid=grid, step_s=step_s, machine="test", measured_at=1.0)
