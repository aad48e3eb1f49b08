"""The door to onnxruntime-training where it is not: one line that says why, and what to do."""

from __future__ import annotations

import platform
from pathlib import Path

import onnxruntime
import pytest

from edge_runtime.agent.errors import EngineChoiceError
from edge_runtime.agent.methods.lora.engines import choose_modes
from edge_runtime.errors import ExitCode
from edge_runtime.ort_training import api
from edge_runtime.ort_training.errors import OrtMissingError
from tests.edge_runtime.ort_training.conftest import RunThere


def test_plain_onnxruntime_is_not_enough() -> None:
    with pytest.raises(OrtMissingError, match="scripts/setup-ort-training") as caught:
        api.load("api")
    assert onnxruntime.__version__ in str(caught.value)
    assert caught.value.exit_code is ExitCode.MISSING_DEPENDENCY


def test_other_machines_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(OrtMissingError, match=r"64-bit x86 alone, and this machine is aarch64.*--engine portable"):
        api.load("api")


def test_modes_of_the_portable_engine() -> None:
    assert choose_modes("portable", "auto", None) == ("fused", "staged")
    assert choose_modes("portable", "staged", None) == ("staged",)


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(EngineChoiceError, match="--ort-models is for"):
        choose_modes("portable", "auto", tmp_path)
    with pytest.raises(EngineChoiceError, match="needs --ort-models"):
        choose_modes("ort-training", "auto", None)
    with pytest.raises(EngineChoiceError, match="no --mode staged"):
        choose_modes("ort-training", "staged", tmp_path)


def test_its_parts_load_where_there_is_no_torch(run_there: RunThere) -> None:
    done = run_there("tests.edge_runtime.ort_training.imports")
    parts = [f"onnxruntime.training.{part}" for part in ("api", "artifacts", "onnxblock")]
    assert (done.returncode, done.stdout.split()) == (0, parts), done.stderr
