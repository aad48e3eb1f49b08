"""Settings of the exporter's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.exporter.runs import write_run


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models are slower on several threads, which wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def bert_run(tiny_bert_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("bert") / "run", tiny_bert_artifact)


@pytest.fixture(scope="session")
def llama_run(tiny_llama_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("llama") / "run", tiny_llama_artifact)


@pytest.fixture(params=["bert", "llama"])
def run_dir(request: pytest.FixtureRequest) -> Path:
    run: Path = request.getfixturevalue(f"{request.param}_run")
    return run
