"""Errors of the room ``benchmark``.

BenchmarkError                base
├── RequestError            a process got no readable request
└── NotFiniteError          an engine's loss left the finite numbers
"""

from __future__ import annotations

from edge_runtime.errors import ExitCode, FedSpineError


class BenchmarkError(FedSpineError):
    """Base of the errors of ``benchmark``."""


class RequestError(BenchmarkError):
    """A process got no readable request."""

    exit_code = ExitCode.USAGE


class NotFiniteError(BenchmarkError):
    """An engine's loss left the finite numbers."""
