"""Prepared runs of tiny models, to be copied and resumed: each test pays for what it tests, not for an export."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from broker_server.experiments.run.display import PlainDisplay
from broker_server.experiments.run.job import prepare_run
from broker_server.experiments.run.resolve import kept_settings, resolve
from broker_server.experiments.run.settings import RunSettings
from broker_server.experiments.run.view import RunView
from broker_server.options import changed
from tests.e2e.boards import export_artifact
from tests.e2e.rows import Copy, write_rows


@pytest.fixture(scope="session")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "train.jsonl", 120, seed=1)


@pytest.fixture(scope="session")
def held_out_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "test.jsonl", 40, seed=2)


@pytest.fixture(scope="session")
def classify_settings(tiny_bert_model: Path, train_file: Path, held_out_file: Path) -> RunSettings:
    """Three devices, two rounds, three arms."""
    return resolve(
        {
            "model": str(tiny_bert_model),
            "task": "text-classification",
            "data": str(train_file),
            "test": str(held_out_file),
            "devices": 3,
            "rounds": 2,
            "local_steps": 3,
            "batch_size": 4,
            "max_length": 16,
            "arms": "0.0:4,0.25:4,0.5:2",
            "learning_rate": 5e-3,
            "sparsity": 0.5,
            "threads": 1,
            "method": "",
            "emulate": "none",
        }
    )


@pytest.fixture(scope="session")
def generate_settings(tiny_llama_model: Path, train_file: Path) -> RunSettings:
    """Two devices, two rounds, data split by site."""
    return resolve(
        {
            "model": str(tiny_llama_model),
            "task": "causal-lm",
            "data": str(train_file),
            "split": "by-key",
            "devices": 2,
            "rounds": 2,
            "local_steps": 3,
            "batch_size": 4,
            "max_length": 16,
            "arms": "0.0:4,0.5:2",
            "learning_rate": 5e-3,
            "sparsity": 0.5,
            "threads": 1,
            "method": "",
            "emulate": "none",
        }
    )


@pytest.fixture(scope="session")
def prepared_classifier(tmp_path_factory: pytest.TempPathFactory, classify_settings: RunSettings) -> Path:
    """A run directory just before its first round."""
    root = tmp_path_factory.mktemp("prepared") / "classify"
    prepare_run(classify_settings, root, PlainDisplay[RunView](io.StringIO()))
    return root


@pytest.fixture(scope="session")
def prepared_generator(tmp_path_factory: pytest.TempPathFactory, generate_settings: RunSettings) -> Path:
    """A run directory just before its first round."""
    root = tmp_path_factory.mktemp("prepared") / "generate"
    prepare_run(generate_settings, root, PlainDisplay[RunView](io.StringIO()))
    return root


@pytest.fixture(scope="session")
def rows_artifact(tiny_bert_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifact of the tiny BERT for the classes of rows.py, from ``fedspine export``."""
    out = tmp_path_factory.mktemp("exported") / "artifact"
    export_artifact(tiny_bert_model, out)
    return out


@pytest.fixture
def copy_of(tmp_path: Path) -> Copy:
    """Copies a prepared run, with other settings."""

    def copy(prepared: Path, **changes: object) -> Path:
        root = tmp_path / "run"
        shutil.copytree(prepared, root)
        settings = kept_settings(root / "run.toml")
        (root / "run.toml").write_text(changed(settings, changes).to_toml())
        return root

    return copy
