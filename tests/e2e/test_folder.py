"""A run from a folder that holds modules with the names of ours, of the standard library and of other packages."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from broker_server.experiments.run.settings import RunSettings
from tests.e2e.processes import Run

pytestmark = pytest.mark.e2e


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every module in it leaves a mark beside itself when it is executed, and ends what imported it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    ours = {"models", "exporter", "broker_server", "edge_runtime", "sitecustomize", "usercustomize"}
    for name in ours | sys.stdlib_module_names | set(metadata.packages_distributions()):
        if name.isidentifier():
            mark = f"import posix\nposix.open({str(folder / 'ran')!r} + '-{name}', posix.O_CREAT)\n"
            (folder / f"{name}.py").write_text(f"{mark}raise ImportError('{name} of the folder was executed')\n")
    return folder


def test_a_run_executes_nothing_that_lies_in_the_folder(folder: Path, generate_settings: RunSettings) -> None:
    options = {"devices": 2, "rounds": 1, "local-steps": 1, "batch-size": 2, "max-length": 16, "threads": 1}
    given = {"model": generate_settings.model, "task": "causal-lm", "data": generate_settings.data, **options}

    with Run(*(word for key, value in given.items() for word in (f"--{key}", str(value))), folder=folder) as run:
        code = run.wait()

    assert (code, run.errors) == (0, "")
    assert (folder / "fedspine-run" / "compact" / "model.onnx").is_file()
    assert not list(folder.glob("ran-*"))
