"""The script that measures split tuning's memory does each case's work, on the device under its limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import split_memory
from broker_server.methods.split.tuning import UpperTuner


def case(artifact: Path, kind: str, devices: int = 1) -> split_memory.Case:
    return split_memory.Case(
        artifact=artifact, kind=kind, cut=1, devices=devices, batch_size=2, length=8, examples=4, steps=2
    )


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_device_works_under_a_limit_that_refuses_first_order_training(
    family: str, request: pytest.FixtureRequest
) -> None:
    artifact: Path = request.getfixturevalue(f"tiny_{family}_artifact")
    found, trained = (split_memory.measure(case(artifact, kind)) for kind in ("device", "first-order"))
    assert found["first_order_is_refused"]
    assert 0 < found["limit_mib"] <= trained["limit_mib"]
    assert found["blob_bytes"] > 4 * 8 * 4
    assert found["peak_mib"] > 30


def test_parallel_has_a_model_for_each_device_and_the_server_one(
    tiny_bert_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []
    original = UpperTuner.tune

    def tune(self: Any, *given: Any) -> Any:
        found = original(self, *given)
        held.append(self._weights)
        return found

    monkeypatch.setattr(UpperTuner, "tune", tune)
    split_memory.measure(case(tiny_bert_artifact, "server", 3))
    assert len(held) == 3
    assert len({id(weights) for weights in held}) == 1
    held.clear()
    split_memory.measure(case(tiny_bert_artifact, "parallel", 3))
    assert len({id(weights) for weights in held}) == 3
    arrays = [weights.held(name) for weights in held for name in weights]
    assert all(array.flags.owndata for array in arrays)
