"""Torch stays away from the device, and from the server's own process: shown in fresh interpreters."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

SERVER_ONLY = ("torch", "transformers", "peft", "optimum", "onnx", "onnx_ir", "onnxscript")


def modules_of(room: str, sources: dict[str, Path]) -> list[str]:
    """Modules of a room that can be imported without running a command."""
    return [name for name in sources if name.split(".")[0] == room and not name.endswith(".__main__")]


def run_fresh(root: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a new interpreter, from the repository."""
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=120)


BLOCKED = """
    import importlib, sys

    blocked = set(sys.argv[1].split(","))

    class Wall:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in blocked:
                raise ImportError(f"{name} is not there")

    sys.meta_path.insert(0, Wall())
    for module in sys.argv[2:]:
        importlib.import_module(module)
    print(len(sys.argv[2:]))
"""

STUBBED = """
    import importlib, sys

    sys.path.insert(0, sys.argv[1])
    for module in sys.argv[3:]:
        importlib.import_module(module)
        loaded = {name.split(".")[0] for name in sys.modules} & set(sys.argv[2].split(","))
        assert not loaded, f"{module} loads {loaded}"
    print(len(sys.argv[3:]))
"""


def test_every_module_of_the_device_imports_where_torch_is_not(root: Path, sources: dict[str, Path]) -> None:
    modules = modules_of("edge_runtime", sources)
    result = run_fresh(root, BLOCKED, ",".join(SERVER_ONLY), *modules)
    assert (result.returncode, result.stdout.strip()) == (0, str(len(modules))), result.stderr


def test_no_module_of_the_device_loads_a_torch_that_is_there(
    root: Path, sources: dict[str, Path], tmp_path: Path
) -> None:
    for name in SERVER_ONLY:
        (tmp_path / f"{name}.py").write_text("", encoding="utf-8")
    modules = modules_of("edge_runtime", sources)
    result = run_fresh(root, STUBBED, str(tmp_path), ",".join(SERVER_ONLY), *modules)
    assert (result.returncode, result.stdout.strip()) == (0, str(len(modules))), result.stderr


def test_every_module_of_the_server_imports_where_torch_is_not(root: Path, sources: dict[str, Path]) -> None:
    modules = modules_of("broker_server", sources)
    result = run_fresh(root, BLOCKED, ",".join(SERVER_ONLY), *modules)
    assert (result.returncode, result.stdout.strip()) == (0, str(len(modules))), result.stderr
