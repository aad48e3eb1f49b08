"""The priority of the process on the board's cores."""

from __future__ import annotations

import os
from typing import Final

DEFAULT_NICE: Final = 10
"""Nice level of a device whose owner says nothing: whatever else the board is for comes first."""

MAX_NICE: Final = 19


def be_nice(level: int) -> int:
    """Raise the nice level of this thread, and of all that it starts from now on, to ``level``.

    Call it before any other thread is there: on Linux each has a level of its own, which it inherits (``man 2
    setpriority``). A level that is higher already stays, as a service manager may have set it.

    Args:
        level: 0 to 19.

    Returns:
        The level that holds now.
    """
    now = os.getpriority(os.PRIO_PROCESS, 0)
    if level > now:
        os.setpriority(os.PRIO_PROCESS, 0, level)
    return max(level, now)
