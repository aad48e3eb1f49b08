"""Runners with a folder for all that methods keep, and the graphs that they load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_runtime.agent.assignment_runner import AssignmentRunner
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.session import Graph
from tests.edge_runtime.agent.methods.runners import Make
from tests.edge_runtime.agent.stage import EXAMPLES


@pytest.fixture
def make_runner(tiny_bert_artifact: Path, tmp_path: Path) -> Make:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(EXAMPLES))

    (tmp_path / "methods" / "zero_order").mkdir(parents=True)

    def make(artifact: Path = tiny_bert_artifact, **changes: Any) -> AssignmentRunner:
        settings: dict[str, Any] = {
            "data": data,
            "num_holdout": 4,
            "num_threads": 1,
            "memory_limit_bytes": 10**12,
            "methods": tmp_path / "methods",
            "sends_activations": True,
            **changes,
        }
        return AssignmentRunner(Artifact.open(artifact), WorkSettings(**settings), 0.0)

    return make


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the graphs that are loaded from now on."""
    found: list[str] = []
    original = Graph.__init__

    def spy(self: Graph, path: Path, **options: Any) -> None:
        found.append(path.name)
        original(self, path, **options)

    monkeypatch.setattr(Graph, "__init__", spy)
    return found
