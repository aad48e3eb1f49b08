"""An artifact that was exported earlier takes the place of an export."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from broker_server.errors import ConfigError
from broker_server.run.reuse import adopt_artifact, check_artifact
from edge_runtime.engine.errors import ArtifactCorruptedError


def test_the_files_of_an_artifact_are_shared_not_copied(tiny_bert_artifact: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_bert_artifact, tmp_path / "source")

    adopt_artifact(source, ("red", "green", "blue"), tmp_path / "adopted")

    names = {path.name for path in source.iterdir()}
    assert {path.name for path in (tmp_path / "adopted").iterdir()} == names
    assert all((tmp_path / "adopted" / name).samefile(source / name) for name in names)


def test_the_order_of_the_classes_is_the_artifacts(tiny_bert_artifact: Path, tmp_path: Path) -> None:
    adopt_artifact(tiny_bert_artifact, ("blue", "green", "red"), tmp_path / "adopted")

    check_artifact(tmp_path / "adopted", "text-classification")


def test_across_file_systems_the_files_are_copied(
    tiny_bert_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)

    adopt_artifact(tiny_bert_artifact, ("red", "green", "blue"), tmp_path / "adopted")

    check_artifact(tmp_path / "adopted", "text-classification")


def test_an_artifact_of_other_classes_is_refused(tiny_bert_artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exported for the classes"):
        adopt_artifact(tiny_bert_artifact, ("blue", "green"), tmp_path / "adopted")

    assert not (tmp_path / "adopted").exists()


def test_an_artifact_of_another_task_is_refused(tiny_bert_artifact: Path) -> None:
    with pytest.raises(ConfigError, match="is for text-classification, expected causal-lm"):
        check_artifact(tiny_bert_artifact, "causal-lm")


def test_a_directory_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactCorruptedError, match="has no readable"):
        check_artifact(tmp_path, "causal-lm")
