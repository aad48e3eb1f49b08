"""Errors of the board.

BoardError
├── NoSensorError    this board has no sensor for a value that should be watched
└── ServiceError     no unit can be written for these options
"""

from __future__ import annotations

from edge_runtime.errors import ExitCode, FedSpineError


class BoardError(FedSpineError):
    """Base of the board's errors."""

    exit_code = ExitCode.USAGE


class NoSensorError(BoardError):
    """A threshold was given, and this board has no sensor for it."""


class ServiceError(BoardError):
    """An option that a unit cannot hold, or should not."""
