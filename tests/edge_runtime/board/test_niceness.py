"""The nice level of a process of its own: a test's could not be lowered again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys, threading
from edge_runtime.board.niceness import be_nice
os.nice(int(sys.argv[1]))
levels = [be_nice(int(sys.argv[2]))]
thread = threading.Thread(target=lambda: levels.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
thread.start()
thread.join()
print(*levels)
"""


@pytest.mark.parametrize(("before", "asked"), [(0, 10), (0, 0), (12, 10), (0, 19)])
def test_threads_inherit_the_level_and_a_higher_one_stays(before: int, asked: int) -> None:
    here = os.getpriority(os.PRIO_PROCESS, 0)
    expected = max(min(19, here + before), asked)
    command = [sys.executable, "-c", SCRIPT, str(before), str(asked)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(expected)] * 2
