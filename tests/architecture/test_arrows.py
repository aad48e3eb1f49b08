"""The arrows between rooms, as import-linter and as the table in docs/architecture.md has them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

MAY_IMPORT = {
    "edge_runtime.errors": set(),
    "edge_runtime.system": set(),
    "edge_runtime.bounds": {"msgspec"},
    "edge_runtime.formats": {"numpy", "msgspec", "safetensors"},
    "edge_runtime.wire": {"msgspec"},
    "edge_runtime.zero_order": {"numpy"},
    "edge_runtime.benchmark": {"numpy", "msgspec"},
    "edge_runtime.engine": {"numpy", "msgspec", "safetensors", "onnxruntime", "tokenizers"},
    "edge_runtime.ort_training": {"numpy", "msgspec", "onnxruntime"},
    "edge_runtime.link": {"msgspec", "paho"},
    "edge_runtime.board": set(),
    "edge_runtime.agent": {"numpy", "msgspec", "psutil", "onnxruntime"},
    "edge_runtime.inference": {"numpy", "msgspec", "safetensors", "onnxruntime", "tokenizers"},
    "edge_runtime.cli": {"numpy"},
    "edge_runtime.arguments": set(),
    "edge_runtime.doctor": {"numpy", "psutil"},
    "edge_runtime.__main__": set(),
}
"""Packages from outside that each part of the device may import, also inside functions."""


def imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names of all that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_every_contract_of_import_linter_is_kept(root: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_root_packages_are_the_packages_on_disk(root: Path, rooms: list[str]) -> None:
    assert sorted(rooms) == sorted(path.parent.name for path in root.glob("*/__init__.py"))


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_part_of_the_device_imports_only_its_doors(part: str, trees: dict[str, ast.Module]) -> None:
    modules = [name for name in trees if name == part or name.startswith(f"{part}.")]
    assert modules, f"{part} has no module"
    foreign = {
        (name, target)
        for name in modules
        for target in imported(trees[name])
        if (top := target.split(".")[0]) != "edge_runtime"
        and top not in sys.stdlib_module_names
        and top not in MAY_IMPORT[part]
    }
    assert not foreign


def test_every_module_of_the_device_belongs_to_a_part(trees: dict[str, ast.Module]) -> None:
    parts = {".".join(name.split(".")[:2]) for name in trees if name.startswith("edge_runtime.")}
    assert parts == set(MAY_IMPORT)


RUNTIME_EXTRAS = ("text", "server", "tensorboard", "mlflow")


def test_every_foreign_import_is_declared_as_a_dependency(
    trees: dict[str, ast.Module], rooms: list[str], project: dict[str, Any]
) -> None:
    extras = project["project"]["optional-dependencies"]
    declared = {
        _distribution(requirement)
        for requirement in sum((extras[name] for name in RUNTIME_EXTRAS), project["project"]["dependencies"])
    }
    provider = metadata.packages_distributions()
    tops = {target.split(".")[0] for tree in trees.values() for target in imported(tree)}
    undeclared = {
        top
        for top in tops - set(rooms) - sys.stdlib_module_names
        if not declared & {name.lower().replace("_", "-") for name in provider.get(top, [])}
    }
    assert not undeclared


def _distribution(requirement: str) -> str:
    name = requirement
    for separator in "<>=!~[; ":
        name = name.split(separator)[0]
    return name.lower().replace("_", "-")
