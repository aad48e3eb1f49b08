"""Processes that cannot outlive their parent: the kernel ends them when it dies, however it dies.

A launcher of the standard library only, run as a script before the real program: it asks Linux for a signal on the
parent's death (``PR_SET_PDEATHSIG``), which survives ``exec``, and becomes the program. A launcher instead of
``preexec_fn``, which is not safe beside threads. The signal comes when the *thread* that started the process ends:
start from one that stays.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def tethered(command: Sequence[str]) -> list[str]:
    """The command that starts ``command`` (an absolute path or a name on the PATH) tied to the calling process."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def become(parent: int, command: Sequence[str]) -> None:
    """Tie this process to ``parent`` and replace it by ``command``; does not return.

    Raises:
        OSError: the program cannot be executed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent died before the call above
        sys.exit(128 + signal.SIGKILL)
    os.execvp(command[0], list(command))  # noqa: S606 - replaces this launcher, no shell


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
