"""Errors of the device process.

AgentError
├── StateInUseError     another process works in the state directory
├── StateError          the state directory cannot be used
├── BadNameError        a device id or fleet that topics do not allow
├── EngineChoiceError   options of an engine that do not go together
├── DeviceMethodError   a method of another package is not installed, or cannot be used
├── UnfitDataError      the examples are valid, but do not fit the artifact of a run
├── NotAllowedError     the owner of this board does not allow the work
└── StoppedError        the work was stopped half-way
"""

from __future__ import annotations

from edge_runtime.errors import ExitCode, FedSpineError


class AgentError(FedSpineError):
    """Base of the device's own errors."""


class StateInUseError(AgentError):
    """Another process holds the lock of the state directory."""

    exit_code = ExitCode.STATE_IN_USE


class StateError(AgentError):
    """The state directory cannot be used."""

    exit_code = ExitCode.USAGE


class BadNameError(AgentError):
    """A device id or a fleet's name has characters that topics do not allow."""

    exit_code = ExitCode.USAGE


class EngineChoiceError(AgentError):
    """Options that say how to train do not go together."""

    exit_code = ExitCode.USAGE


class DeviceMethodError(AgentError):
    """A method of another package is not installed on this device, or cannot be imported or used."""


class UnfitDataError(AgentError):
    """The examples of this board are valid, but do not fit the artifact of a run; another artifact may fit."""


class NotAllowedError(AgentError):
    """The owner of this board does not allow this work."""


class StoppedError(AgentError):
    """Work was stopped half-way: a newer assignment, a cancellation, a deadline, or the end of the process."""

    exit_code = ExitCode.INTERRUPTED
