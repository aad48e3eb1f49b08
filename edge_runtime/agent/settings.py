"""Settings of the owner of a board: how the device takes part, and how it works."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from edge_runtime.agent.pins import Pins
from edge_runtime.board.guard import PauseLimits
from edge_runtime.board.sensors import SYS
from edge_runtime.engine.model import MODES, Mode
from edge_runtime.link.protocol import OpenLink
from edge_runtime.system.files import PRIVATE_FOLDER

logger = logging.getLogger(__name__)

MIN_TRAINING_RATIO: Final = 5
"""At most one in this many examples is held out, even of a small file."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkSettings:
    """The owner's settings of the work."""

    data: Path
    """JSON lines."""
    num_holdout: int
    """Examples kept for local evaluation, at most one in :data:`MIN_TRAINING_RATIO`."""
    num_threads: int
    """Threads of one operator."""
    memory_limit_bytes: int
    """Memory that training may use, bytes."""
    modes: tuple[Mode, ...] = MODES
    """Modes in which graphs may run; the first that fits is taken."""
    checkpoint_every: int = 0
    """Steps from one checkpoint to the next, 0 = none."""
    pausing: PauseLimits = dataclasses.field(default_factory=PauseLimits)
    """Limits at which work pauses."""
    sensors: Path = SYS
    """Folder of the kernel's sensor files."""
    methods: Path | None = None
    """Folder in which methods keep files between assignments; None = nothing is kept."""
    device_methods: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Classes of methods of other packages, ``module:Class``, by the method's name in assignments."""
    sends_activations: bool = False
    """Whether the owner allows that activations and labels of the examples leave the board."""
    ort_models: Path | None = None
    """Folder of ort-training models, to train with these; None = the portable engine."""

    def folder_of(self, method: str) -> Path | None:
        """Folder of one method, made if need be; None = methods keep nothing on disk.

        Args:
            method: tag of the method's work.
        """
        if self.methods is None:
            return None
        folder = self.methods / method
        try:
            folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        except OSError as error:
            logger.warning("%s cannot be made, nothing is kept in it: %s", folder, error)
            return None
        return folder


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """The owner's settings of taking part."""

    open_link: OpenLink
    fleet: str
    """Name of the fleet on the broker."""
    work: WorkSettings
    pins: Pins = dataclasses.field(default_factory=Pins)
    """Artifacts and servers that are allowed."""
    exit_when_finished: bool = False
    """Leave when the coordinator says that the run is over."""
    wait_for_broker: bool = False
    """Try again if the first connection finds no broker."""
