"""Errors of the board.

BoardError
├── NoSensorError    a threshold was given, and this board has no sensor for it
└── ServiceError     a unit cannot hold one of the options
"""

from __future__ import annotations

from edge_runtime.errors import ExitCode, FedSpineError


class BoardError(FedSpineError):
    """Base of the board's errors."""

    exit_code = ExitCode.USAGE


class NoSensorError(BoardError):
    """A threshold was given, and this board has no sensor for it."""


class ServiceError(BoardError):
    """A unit cannot or should not hold one of the options."""
