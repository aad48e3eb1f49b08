"""Errors of the server's rooms.

CoordinatorError            base
├── ConfigError             a setting out of range or of a wrong type (exit 2)
├── PortTakenError          a port that must be listened on is in use (exit 20)
├── AggregationError        updates that cannot be combined
├── StoreError              the run's database is damaged or of another version
├── StateInUseError         another coordinator holds the run directory (exit 26)
├── FleetInUseError         another coordinator has the fleet (exit 28)
├── RunExistsError          the output directory holds a run already, or none to resume (exit 25)
├── RunFailedError          a run ended without a result (exit 24)
│   ├── TrainingDivergedError   the global model's loss is not finite (exit 24)
│   └── DevicesTooSmallError    no device had the memory for any arm (exit 22)
├── ChildFailedError        a process of the run ended with an error (its own exit code is passed on)
├── InterruptedRunError     Ctrl-C, SIGTERM or SIGHUP (exit 130)
├── ReportError             a report.json of another version, or damaged
└── MissingExtraError       a package of the server is not installed (exit 27)
"""

from __future__ import annotations

from pathlib import Path

from edge_runtime.errors import ExitCode, FedSpineError


class CoordinatorError(FedSpineError):
    """Base of the errors of ``broker_server``."""


class ConfigError(CoordinatorError):
    """A setting is out of range or of a wrong type."""

    exit_code = ExitCode.USAGE


class PortTakenError(CoordinatorError):
    """A port that must be listened on is in use."""

    exit_code = ExitCode.PORT_TAKEN


class AggregationError(CoordinatorError):
    """Updates cannot be combined."""


class StoreError(CoordinatorError):
    """The run's database is damaged, or of another version."""


class StateInUseError(CoordinatorError):
    """Another coordinator holds the run directory."""

    exit_code = ExitCode.STATE_IN_USE


class FleetInUseError(CoordinatorError):
    """Another coordinator has the fleet on that broker."""

    exit_code = ExitCode.FLEET_IN_USE


class RunExistsError(CoordinatorError):
    """The output directory holds a run already, or there is none to resume."""

    exit_code = ExitCode.RUN_EXISTS


class RunFailedError(CoordinatorError):
    """A run ended without a result."""

    exit_code = ExitCode.RUN_FAILED


class TrainingDivergedError(RunFailedError):
    """The loss of the global model is not finite after a round; the round is undone."""


class DevicesTooSmallError(RunFailedError):
    """A run ended without a result because no device had the memory for any arm."""

    exit_code = ExitCode.INSUFFICIENT_MEMORY


class ChildFailedError(CoordinatorError):
    """A process of the run ended with an error.

    Attributes:
        child_exit_code: exit code of the process if it says more than "failed", else RUN_FAILED.
        log: file with its output.
    """

    exit_code = ExitCode.RUN_FAILED

    def __init__(self, message: str, child_exit_code: ExitCode, log: Path) -> None:
        super().__init__(message)
        self.child_exit_code = child_exit_code
        self.log = log

    @property
    def is_specific(self) -> bool:
        """Return whether the exit code alone identifies the fault."""
        return self.child_exit_code is not ExitCode.RUN_FAILED


class InterruptedRunError(CoordinatorError):
    """A run was ended by Ctrl-C, SIGTERM or SIGHUP."""

    exit_code = ExitCode.INTERRUPTED


class ReportError(CoordinatorError):
    """A ``report.json`` is damaged, or of another version."""


class MissingExtraError(CoordinatorError):
    """A package of the server is not installed."""

    exit_code = ExitCode.MISSING_DEPENDENCY
