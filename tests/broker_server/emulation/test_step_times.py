"""Step times: measured once for all runs that share a file."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from broker_server.emulation.step_times import StepTimes, provide
from broker_server.errors import ConfigError
from tests.broker_server.step_times import step_times

TIMES = step_times(pruning_ratio=(0.0,), rank=(4,), step_s=(0.1,))


def test_measured_once_by_runs_side_by_side(tmp_path: Path) -> None:
    calls: list[int] = []

    def measure() -> StepTimes:
        calls.append(1)
        return TIMES

    path = tmp_path / "shared" / "calibration.json"
    got: list[StepTimes] = []
    threads = [threading.Thread(target=lambda: got.append(provide(path, "model", measure))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [TIMES] * 4
    assert len(calls) == 1
    provide(path, "other", measure)
    assert len(calls) == 2
    assert provide(path, "model", measure) == TIMES


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"m": 1}',
        '{"m": {"grid": [{"name": "rank", "values": [4]}], "step_s": [1, 2], "machine": "", "measured_at": 1}}',
        '{"m": {"grid": [{"name": "rank", "values": [8, 4]}], "step_s": [1, 2], "machine": "", "measured_at": 1}}',
        '{"m": {"grid": [{"name": "rank", "values": [4]}], "step_s": [0], "machine": "", "measured_at": 1}}',
        '{"m": {"grid": [{"name": "rank", "values": []}], "step_s": [1], "machine": "", "measured_at": 1}}',
        '{"m": {"ratios": [0.5], "ranks": [4], "step_s": [[1]], "machine": "", "measured_at": 1}}',
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="remove it"):
        provide(path, "m", lambda: TIMES)
