"""How a setting of ``fedspine run`` is declared, once: its type and range, its words, and where ``--help`` shows it."""

from __future__ import annotations

import dataclasses
import enum
from typing import Annotated, Any, Final

from broker_server.ranges import Range
from broker_server.serving.services.ports import MAX_PORT

Port = Annotated[int, Range(0, MAX_PORT)]
"""0 = any free one."""
Ratio = Annotated[float, Range(0, 1, above=True)]
Share = Annotated[float, Range(0, 1)]


class Panel(enum.StrEnum):
    """Groups of options in ``fedspine run --help``."""

    MODEL = "Model and data"
    TRAINING = "Training"
    PRUNING = "Pruning"
    RESULT = "Result"
    PROCESSES = "Processes"
    EMULATION = "Emulated fleet"


HELP: Final = "help"
"""Key of a field's metadata: what the option means."""
PANEL: Final = "panel"
"""Key of a field's metadata: its :class:`Panel`."""


def option(panel: Panel, text: str, default: object = dataclasses.MISSING) -> Any:  # noqa: ANN401 - as dataclasses.field
    """A setting that is an option of the command line too; without a default the task decides, unless the text says."""
    shown = f" (default: {default})" if default not in {dataclasses.MISSING, ""} else ""
    by_task = " (default: by task)" if default is dataclasses.MISSING and "(default:" not in text else ""
    return dataclasses.field(default=default, metadata={HELP: f"{text}{shown}{by_task}.", PANEL: panel})
