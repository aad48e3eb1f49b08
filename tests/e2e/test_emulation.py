"""A run with an emulated fleet, importance from devices and a ramp: all of it real but the time."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from broker_server.serving.report.schema import Report, decode_report
from tests.e2e.processes import fedspine_run
from tests.e2e.rows import Copy

pytestmark = pytest.mark.e2e

FLEET = """
[fleet]
jitter = 0.0

[[fleet.classes]]
name = "fast"
count = 1
compute_factor = 1.0
uplink_mbit_s = 100.0
downlink_mbit_s = 100.0

[[fleet.classes]]
name = "slow"
count = 2
compute_factor = 100.0
uplink_mbit_s = 100.0
downlink_mbit_s = 100.0
drift = [{ from_round = 3, factor = 10.0 }]
"""


@pytest.fixture
def fleet_file(tmp_path: Path) -> Path:
    path = tmp_path / "fleet-of-the-test.toml"
    path.write_text(FLEET)
    return path


def finish(root: Path) -> Report:
    run = fedspine_run("--resume", "--out", str(root))
    assert run.process.returncode == 0, run.errors
    assert "emulated time: " in run.output
    return decode_report((root / "report.json").read_bytes())


def test_a_fleet_learns_what_to_prune_and_time_is_emulated(
    prepared_classifier: Path, copy_of: Copy, fleet_file: Path, tmp_path: Path
) -> None:
    root = copy_of(
        prepared_classifier,
        emulate=str(fleet_file),
        calibration=str(tmp_path / "calibration.json"),
        importance="lora",
        importance_every_steps=1,
        scheduler="random",
        aggregation="fedspine",
        arms="0.25:4,0.5:2",
        rounds=4,
        local_steps=4,
        recovery_steps=2,
        ramp_rounds=2,
        deploy_rounds=1,
        eval_sparse=True,
    )
    report = finish(root)

    # The clock: 100 times slower is slower, and a drift makes it ten times worse still.
    assert report.fleet is not None
    assert [(c.name, len(c.device_ids)) for c in report.fleet.classes] == [("fast", 1), ("slow", 2)]
    trained = report.rounds[1:]
    assert {d.device_class for entry in trained for d in entry.devices} == {"fast", "slow"}
    for entry in trained:
        times = {d.device_id: d.emulated_s or 0.0 for d in entry.devices}
        assert entry.emulated_s == max(times.values())
        assert all(d.completion_s == d.emulated_s for d in entry.devices)
        assert times["device-1"] < min(times["device-2"], times["device-3"])
    assert (trained[2].emulated_s or 0) > 4 * (trained[1].emulated_s or 0)
    assert report.final.emulated_s == pytest.approx(sum(e.emulated_s or 0 for e in trained))
    # The ramp: ratios grow; in the deploy round all train the plan of --sparsity.
    sparsities = [max(d.sparsity for d in entry.devices) for entry in trained]
    assert sparsities[0] < sparsities[2]
    assert trained[3].is_deploy
    assert {d.arm.pruning_ratio for d in trained[3].devices} == {0.5}
    assert all((d.adapter_delta or 0) > 0 for entry in trained for d in entry.devices)
    # The sub-model, and importance that came from devices, changed every round, and no more in the deploy round.
    assert isinstance(report.final.accuracy_at_sparsity, float)
    assert all(isinstance(entry.accuracy_at_sparsity, float) for entry in report.rounds)
    scores = [safetensors.numpy.load_file(root / f"importance/round-{n:04d}.safetensors") for n in range(5)]
    changed = [any(not np.array_equal(a[k], b[k]) for k in a) for a, b in itertools.pairwise(scores)]
    assert changed == [True, True, True, False]
    assert report.compact is not None
    (deployed,) = {round(d.sparsity, 6) for d in trained[3].devices}
    assert report.compact.sparsity == pytest.approx(deployed, abs=1e-6)


def test_a_device_with_little_memory_refuses_for_real(
    prepared_classifier: Path, copy_of: Copy, fleet_file: Path
) -> None:
    # Interpreter and packages alone are estimated at 90 MiB, so nothing fits the slow class.
    fleet_file.write_text(FLEET.replace('name = "slow"', 'name = "slow"\nmemory_mb = 20'))
    root = copy_of(prepared_classifier, emulate=str(fleet_file), rounds=1, compact=False)
    run = fedspine_run("--resume", "--out", str(root))

    assert run.process.returncode == 0, run.errors
    assert "device-2" in run.output
    assert "does not fit" in (root / "logs" / "device-2.log").read_text()
    report = decode_report((root / "report.json").read_bytes())
    assert {d.device_id for d in report.rounds[1].devices if d.outcome == "accepted"} == {"device-1"}
