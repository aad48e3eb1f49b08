"""Errors of the room ``contest``.

ContestError                base
├── RequestError            a process was not given a request that it can read
└── NotFiniteError          an engine's loss left the finite numbers
"""

from __future__ import annotations

from edge_runtime.errors import ExitCode, FedSpineError


class ContestError(FedSpineError):
    """Base of the errors of ``contest``."""


class RequestError(ContestError):
    """A process was not given a request that it can read."""

    exit_code = ExitCode.USAGE


class NotFiniteError(ContestError):
    """An engine's loss left the finite numbers."""
