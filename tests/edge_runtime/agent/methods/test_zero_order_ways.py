"""A device finds out which order of passes is quicker, and keeps to it; results do not depend on it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_runtime.agent.methods.zero_order.ways import MEMORY_SHARE, TRIALS, Ways
from edge_runtime.engine.staged import StagedModel
from exporter.artifact.export import export_model
from tests.broker_server import tiny
from tests.edge_runtime.agent.methods.runners import Make
from tests.edge_runtime.agent.methods.zero_order_work import assignment_of, payload, run, work_of


def ways(num_more: int = 3, dtype: str = "int8") -> Ways:
    """With room for so many adapters beyond the first, at a hundred tokens, and a bit."""
    manifest = tiny.manifest()
    tensors = tuple(msgspec.structs.replace(spec, dtype=dtype) for spec in manifest.tensors)
    state_bytes = 2 * 4 * tiny.HIDDEN * 100
    memory_bytes = round((num_more + 0.5) * state_bytes / MEMORY_SHARE)
    return Ways(msgspec.structs.replace(manifest, tensors=tensors), memory_bytes)


def test_adapters_pass_together_as_memory_allows_and_if_weights_are_converted() -> None:
    assert ways().group_size(100, 8) == 4
    assert ways().group_size(100, 3) == 3
    assert ways().group_size(400, 8) == 1
    assert ways(dtype="float32").group_size(100, 8) == 1


@pytest.mark.parametrize("is_quicker", [False, True])
def test_each_order_is_tried_and_the_quicker_is_kept(caplog: pytest.LogCaptureFixture, *, is_quicker: bool) -> None:
    made, tried = ways(), []
    caplog.set_level("INFO")
    for number in range(2 * TRIALS):
        tried.append(made.is_by_block())
        slow_start = 9.0 if number < 2 else 0.0
        made.add((0.8 if tried[-1] == is_quicker else 1.0) + slow_start, is_by_block=tried[-1])
    assert sum(tried) == TRIALS
    assert made.is_by_block() == is_quicker
    made.add(0.001, is_by_block=not is_quicker)
    assert made.is_by_block() == is_quicker, "decided"
    (line,) = caplog.messages
    assert line.endswith("going on block by block" if is_quicker else "going on in turn")


def test_a_device_with_int8_weights_tries_both_and_scalars_are_those_of_passes_in_turn(
    make_runner: Make, tiny_bert_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = tmp_path / "int8"
    export_model(tiny_bert_model, "text-classification", artifact, labels=["red", "green", "blue"], base_dtype="int8")
    counts: list[int] = []
    original = StagedModel.upper_each

    def upper_each(model: StagedModel, *given: object) -> list[float]:
        counts.append(int(str(given[4])))
        return original(model, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(StagedModel, "upper_each", upper_each)
    runner, work = make_runner(artifact), work_of(num_local_steps=8, num_inner=4)
    blob = payload(runner.artifact.manifest)
    _, reply = run(runner, assignment_of(blob, work), blob)
    assert len(counts) >= TRIALS * 2 * 2, "in three steps, for both signs of two outer perturbations"
    assert set(counts) == {4}
    monkeypatch.setattr(Ways, "is_by_block", lambda _: False)
    counts.clear()
    _, in_turn = run(make_runner(artifact), assignment_of(blob, work), blob)
    assert counts == []
    np.testing.assert_array_equal(reply.scalars, in_turn.scalars)
