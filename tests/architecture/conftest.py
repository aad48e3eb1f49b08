"""Fixtures of the architecture tests: the tree itself."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def project() -> dict[str, Any]:
    """Content of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def rooms(project: dict[str, Any]) -> list[str]:
    """The top-level packages, as import-linter is told."""
    listed: list[str] = project["tool"]["importlinter"]["root_packages"]
    return listed


@pytest.fixture(scope="session")
def sources(rooms: list[str]) -> dict[str, Path]:
    """Every module of the rooms: dotted name to file."""
    return {name: path for room in rooms for name, path in _modules(room)}


@pytest.fixture(scope="session")
def trees(sources: dict[str, Path]) -> dict[str, ast.Module]:
    """Every module of the rooms, parsed."""
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in sources.items()}


def _modules(room: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / room).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path
