"""Runs a script of benchmarks/ as people do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_script(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """``python -m benchmarks.NAME`` from the checkout, to its end."""
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=False,
    )
