"""The priority of the process on the board's cores."""

from __future__ import annotations

import os
from typing import Final

DEFAULT_NICE: Final = 10
"""Nice level if the owner gives none: other processes of the board come first."""

MAX_NICE: Final = 19


def be_nice(level: int) -> int:
    """Raise the nice level of this thread, and of all threads that it starts from now on, to ``level``.

    Call it before other threads start: on Linux each thread inherits its level from the thread that starts it (``man 2
    setpriority``). A higher level stays, because a service manager may have set it.

    Args:
        level: 0 to 19.

    Returns:
        The current level.
    """
    now = os.getpriority(os.PRIO_PROCESS, 0)
    if level > now:
        os.setpriority(os.PRIO_PROCESS, 0, level)
    return max(level, now)
