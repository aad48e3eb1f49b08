"""Errors of the server's rooms.

    CoordinatorError            base
    ├── ConfigError             a setting out of range or of a wrong type (exit 2)
    ├── ArmError                an arm outside its range (exit 21)
    ├── PortTakenError          a port that must be listened on is in use (exit 20)
    ├── AggregationError        updates that cannot be combined
    ├── StoreError              the run's database is damaged or of another version
    ├── RunExistsError          the output directory holds a run already, or none to resume (exit 25)
    └── RunFailedError          a run ended without a result (exit 24)
"""

from __future__ import annotations

from edge_runtime.wire.errors import ExitCode, FedSpineError


class CoordinatorError(FedSpineError):
    """Base of the errors of ``broker_server``."""


class ConfigError(CoordinatorError):
    """A setting is out of range or of a wrong type."""

    exit_code = ExitCode.USAGE


class ArmError(CoordinatorError):
    """An arm is outside its range."""

    exit_code = ExitCode.ARM_OUT_OF_RANGE


class PortTakenError(CoordinatorError):
    """A port that must be listened on is in use."""

    exit_code = ExitCode.PORT_TAKEN


class AggregationError(CoordinatorError):
    """Updates cannot be combined."""


class StoreError(CoordinatorError):
    """The run's database is damaged, or of another version."""


class RunExistsError(CoordinatorError):
    """The output directory holds a run already, or there is none to resume."""

    exit_code = ExitCode.RUN_EXISTS


class RunFailedError(CoordinatorError):
    """A run ended without a result."""

    exit_code = ExitCode.RUN_FAILED
