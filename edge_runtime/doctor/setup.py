"""The input of the check-up: the options that ``start`` would be given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from edge_runtime.board.guard import PauseLimits
from edge_runtime.link.address import BrokerAddress, TlsFiles


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """All of it may be left out; checks without their option are left out too."""

    data: Path | None
    state: Path | None
    broker: Callable[[], BrokerAddress] | None
    """Finds the broker and the password; raises the error with which ``start`` would end."""
    fleet: str
    device_id: str | None
    """None: the one that the state keeps, or none yet."""
    is_encrypted: bool
    """Whether the way to the broker is."""
    tls: TlsFiles
    num_threads: int | None
    memory_limit_bytes: int | None
    nice: int
    pausing: PauseLimits
    sensors: Path
    now: float
    """Time of the clock, Unix seconds."""
    artifact_digests: str | None = None
    """Artifacts that it may run, with commas between them; None = any."""
    artifact_hosts: str | None = None
    """Artifact servers that it may ask, likewise."""
    device_methods: str | None = None
    """Classes that its owner named for methods of other packages, likewise; None = none."""
