"""Zero-order work that is cut: it goes on from its scalars, and stops before any pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.agent.errors import StoppedError
from edge_runtime.engine.staged import StagedModel
from tests.edge_runtime.agent.methods.runners import Make
from tests.edge_runtime.agent.methods.zero_order_work import assignment_of, payload, rounds_of, run, work_of
from tests.edge_runtime.agent.test_assignment_runner import StopAfter


class KilledError(BaseException):
    """In place of a kill -9: nothing in the runner deals with it."""


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each pass through the upper part; at the number in the first entry the process is killed."""
    made = [0]
    original = StagedModel.upper

    def upper(self: StagedModel, *arguments: Any) -> tuple[float, int]:
        made.append(1)
        if len(made) - 1 == made[0]:
            raise KilledError
        return original(self, *arguments)

    monkeypatch.setattr(StagedModel, "upper", upper)
    return made


def kill_at(passes: list[int], number: int) -> None:
    passes[:] = [number]


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_process_killed_in_the_middle_goes_on_to_the_same_scalars(
    make_runner: Make, passes: list[int], done: int
) -> None:
    """Twelve passes a step; the kill comes in the middle of one."""
    work = work_of()
    blob = payload(make_runner().artifact.manifest)
    whole, expected = run(make_runner(methods=None), assignment_of(blob, work), blob)

    kill_at(passes, 12 * done + 7)
    with pytest.raises(KilledError):
        run(make_runner(), assignment_of(blob, work), blob)
    kill_at(passes, 0)
    update, reply = run(make_runner(), assignment_of(blob, work), blob)
    np.testing.assert_array_equal(reply.scalars, expected.scalars)
    assert len(passes) - 1 == 12 * (3 - done)
    assert (update.train_loss, update.evaluation) == (whole.train_loss, whole.evaluation)
    assert len(passes) - 1 == 12 * (3 - done)


@pytest.mark.parametrize("change", ["round", "work", "data", "payload", "damage", "none are kept"])
def test_steps_of_anything_else_are_not_gone_on_from(
    make_runner: Make, passes: list[int], tmp_path: Path, change: str
) -> None:
    work, round_number = work_of(), 1
    blob = payload(make_runner().artifact.manifest)
    kill_at(passes, 30)
    with pytest.raises(KilledError):
        run(make_runner(), assignment_of(blob, work), blob)
    kill_at(passes, 0)
    every, file = 20, tmp_path / "methods/zero_order/steps"
    match change:
        case "round":
            round_number = 2
        case "work":
            work = work_of(learning_rate=6e-3)
        case "data":
            data = tmp_path / "data.jsonl"
            data.write_text("\n".join(reversed(data.read_text().splitlines())))
        case "payload":
            blob = payload(make_runner().artifact.manifest, seed=1)
        case "damage":
            file.write_bytes(file.read_bytes()[:-1] + b"\xff")
        case _:
            every = 0
    assignment = assignment_of(blob, work, round_number)
    _, expected = run(make_runner(methods=None), assignment, blob)
    kill_at(passes, 0)
    _, reply = run(make_runner(), assignment, blob, every=every)
    np.testing.assert_array_equal(reply.scalars, expected.scalars)
    assert len(passes) - 1 == 36


@pytest.mark.parametrize(("fields", "expected"), [({}, 12), ({"is_normalised": True}, 7)], ids=str)
def test_passes_of_a_step(make_runner: Make, passes: list[int], fields: dict[str, Any], expected: int) -> None:
    blob = payload(make_runner().artifact.manifest)
    run(make_runner(), assignment_of(blob, work_of(num_local_steps=1, **fields)), blob)
    assert len(passes) - 1 == expected


def test_a_log_that_was_cut_since_is_no_other_work(make_runner: Make, passes: list[int]) -> None:
    blob = payload(make_runner().artifact.manifest)
    kill_at(passes, 30)
    with pytest.raises(KilledError):
        run(make_runner(), assignment_of(blob, work_of(log=rounds_of(work_of(), (1, 2))), 3), blob)
    kill_at(passes, 0)
    run(make_runner(), assignment_of(blob, work_of(), 3), blob)
    assert len(passes) - 1 == 12


def test_a_stop_is_seen_before_every_pass(make_runner: Make) -> None:
    """4 held-out examples in a batch, twice; 3 steps of 4 lower and 12 upper passes; and the places between."""
    runner = make_runner()
    blob = payload(runner.artifact.manifest)
    never = StopAfter(1000)
    run(runner, assignment_of(blob, work_of()), blob, stop=never, every=0)
    assert never.num_asked >= 3 * 16 + 2
    for number in range(0, never.num_asked, 7):
        with pytest.raises(StoppedError):
            run(runner, assignment_of(blob, work_of()), blob, stop=StopAfter(number), every=0)
