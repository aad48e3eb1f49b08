"""The folder that the conformance tests read: given by FEDSPINE_CONFORMANCE, or prepared here where torch is."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

# They need torch, which a device has not: pytest must not import them when it looks for doctests.
collect_ignore = ["prepare.py", "reference.py", "shrinking.py"]

_HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def conformance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared folder, see prepare.py."""
    if given := os.environ.get("FEDSPINE_CONFORMANCE"):
        return Path(given)
    if importlib.util.find_spec("torch") is None:
        pytest.skip("no torch here to prepare the folder: set FEDSPINE_CONFORMANCE to one that prepare.py made")
    folder = tmp_path_factory.mktemp("conformance") / "prepared"
    root = str(_HERE.parents[1])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(_HERE / "prepare.py"), str(folder)]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"prepare.py failed:\n{done.stderr[-4000:]}"
    return folder


@pytest.fixture(scope="session", params=["bert", "llama"])
def family_dir(request: pytest.FixtureRequest, conformance: Path) -> Path:
    """The part of the folder that belongs to one family."""
    return conformance / str(request.param)
