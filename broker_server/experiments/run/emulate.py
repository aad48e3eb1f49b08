"""The preparation of a run with an emulated fleet, before its first round."""

from __future__ import annotations

from broker_server.emulation.fleet import Fleet, load_fleet
from broker_server.emulation.step_times import write_step_times
from broker_server.experiments.run.calibration import Workload, calibrated
from broker_server.experiments.run.layout import RunDirectory
from broker_server.experiments.run.preparation import read_summary
from broker_server.experiments.run.settings import RunSettings
from edge_runtime.system.files import write_atomically


def settle_fleet(settings: RunSettings, directory: RunDirectory, artifact_digest: str) -> None:
    """Measure step times, or take those that another run measured, and deal the classes; both stay in the run.

    Raises:
        ConfigError: the fleet or the calibration cannot be used.
        EngineError: the artifact or the examples cannot be used.
        DiskFullError: there is no space.
    """
    fleet = load_fleet(settings.emulate).dealt(settings.device_ids)
    shared = directory.calibration_file(settings.calibration)
    workload = Workload(
        batch_size=settings.training.batch_size,
        num_accumulation_steps=settings.training.num_accumulation_steps,
        max_length=settings.training.max_length,
        source=read_summary(directory).source,
    )
    data = max(map(directory.device_data, settings.device_ids), key=lambda path: path.stat().st_size)
    times = calibrated(shared, directory.artifacts / artifact_digest, data, workload)
    write_step_times(directory.step_times_file, times)
    write_atomically(directory.fleet_file, fleet.to_toml().encode())


def read_fleet(settings: RunSettings, directory: RunDirectory) -> Fleet | None:
    """The fleet of a run, dealt; None if nothing is emulated.

    Raises:
        ConfigError: its file cannot be used.
    """
    return load_fleet(directory.fleet_file) if settings.is_emulated else None
