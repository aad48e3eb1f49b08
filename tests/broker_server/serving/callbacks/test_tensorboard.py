"""The file of events, read back by TensorBoard itself."""

from __future__ import annotations

import builtins
import math
from pathlib import Path
from typing import Any

import pytest

from broker_server.errors import MissingExtraError
from broker_server.serving.callbacks import CallbackWorker, RunInfo, make_callbacks
from broker_server.serving.storage.events import RoundFinished
from edge_runtime.errors import ExitCode
from edge_runtime.wire.arms import LORA_AXES
from tests.broker_server.report_samples import round_records, sample_report


def test_tensorboard_reads_every_round_back_also_of_a_run_that_goes_on(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.util import tensor_util

    run = RunInfo(run_id="run-1", directory=tmp_path, task="causal-lm", settings={}, axes=LORA_AXES)
    records, report = round_records(3), sample_report()

    said: list[str] = []
    for part in (records[:2], records[2:]):  # two sessions
        with CallbackWorker(make_callbacks("tensorboard"), said.append) as worker:
            worker.run_started(run)
            for record in part:
                worker.happened(RoundFinished(at=0.0, record=record))
            if part[-1] is records[-1]:
                worker.run_finished(report)

    assert said == []
    found = accumulator.EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    scalars = {
        tag: [(event.step, float(tensor_util.make_ndarray(event.tensor_proto))) for event in found.Tensors(tag)]
        for tag in found.Tags()["tensors"]
    }
    assert scalars["held_out/loss"] == [(0, 6.0), (1, 5.0), (2, 4.0), (3, 3.0)]
    assert [step for step, _ in scalars["held_out/perplexity"]] == [0, 1, 2, 3]
    assert scalars["held_out/perplexity"][3][1] == pytest.approx(math.exp(3.0), rel=1e-6)
    assert scalars["device/rank/device-2"] == [(1, 8.0), (2, 8.0), (3, 4.0)]
    assert scalars["round/bytes_up"] == [(0, 0.0), (1, 3000.0), (2, 2000.0), (3, 3000.0)]
    assert scalars["round/accepted_updates"] == [(0, 0.0), (1, 3.0), (2, 2.0), (3, 3.0)]
    ((step, loss),) = scalars["final/loss"]
    assert step == report.rounds[-1].round_number
    assert loss == pytest.approx(report.final.loss)


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow")])
def test_without_its_extra_a_callback_says_what_to_install(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Any = builtins.__import__

    def without(module: str, *arguments: Any, **options: Any) -> Any:
        if module.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)  # noqa: TRY003, EM102
        return real(module, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)

    with pytest.raises(
        MissingExtraError, match=rf"needs the package '{package}': pip install 'fedspine\[{name}\]'"
    ) as e:
        make_callbacks(name)
    assert e.value.exit_code is ExitCode.MISSING_DEPENDENCY
