"""The input of the check-up: options of ``start``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from edge_runtime.board.guard import PauseLimits
from edge_runtime.link.address import BrokerAddress, TlsFiles


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Options of ``start``; the check of an option that was not given is skipped."""

    data: Path | None
    state: Path | None
    broker: Callable[[], BrokerAddress] | None
    """Returns the broker with the password, or raises the error of ``start``."""
    fleet: str
    device_id: str | None
    """The device id; None = the id in the state directory, if any."""
    is_encrypted: bool
    """Whether the connection to the broker is encrypted."""
    tls: TlsFiles
    num_threads: int | None
    memory_limit_bytes: int | None
    nice: int
    pausing: PauseLimits
    sensors: Path
    now: float
    """Time of the clock, Unix seconds."""
    artifact_digests: str | None = None
    """Digests of artifacts that the device may run, with commas between them; None = any."""
    artifact_hosts: str | None = None
    """Artifact servers that the device may use, with commas between them; None = any."""
    device_methods: str | None = None
    """Classes that the owner gave for methods of other packages, with commas between them; None = none."""
