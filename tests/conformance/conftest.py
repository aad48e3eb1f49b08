"""The folder that the conformance tests read: given by FEDSPINE_CONFORMANCE, or prepared here where torch is."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

# They need torch, which a device has not: pytest must not import them when it looks for doctests.
collect_ignore = ["prepare.py", "reference.py", "shrinking.py"]

NUM_ARMS: Final = {"bert": 4, "llama": 4, "bert-int8": 2, "llama-int8": 2}
"""BlockSlices of the folder, and how many arms each has."""

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


@pytest.fixture(scope="session")
def family_dir(request: pytest.FixtureRequest, conformance: Path) -> Path:
    """The part of the folder that belongs to one family, its frozen weights stored in one way."""
    return conformance / str(request.param)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests run for each part of the folder, and tests of an arm for each arm that it has."""
    if "arm" not in metafunc.fixturenames:
        if "family_dir" in metafunc.fixturenames:
            metafunc.parametrize("family_dir", NUM_ARMS, indirect=True, scope="session")
    else:
        pairs = [(part, index) for part, count in NUM_ARMS.items() for index in range(count)]
        metafunc.parametrize("family_dir,arm", pairs, indirect=True, scope="module")
