"""An artifact that was exported earlier takes the place of an export."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from broker_server.errors import ConfigError
from broker_server.experiments.run.reuse import adopt_artifact, check_artifact
from edge_runtime.engine.errors import ArtifactCorruptedError
from edge_runtime.formats.manifest import BaseDtype
from exporter.artifact.export import export_model


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


@pytest.mark.parametrize("labels", [("blue", "green"), ("0", "2")], ids=str)
def test_data_may_lack_classes_of_the_artifact_and_may_number_them(
    labels: tuple[str, ...], tiny_bert_artifact: Path, tmp_path: Path
) -> None:
    adopt_artifact(tiny_bert_artifact, labels, tmp_path / "adopted")

    check_artifact(tmp_path / "adopted", "text-classification")


@pytest.mark.parametrize("labels", [("blue", "teal"), ("0", "3"), ("0", "red")], ids=str)
def test_an_artifact_of_other_classes_is_refused(
    labels: tuple[str, ...], tiny_bert_artifact: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="exported for the classes"):
        adopt_artifact(tiny_bert_artifact, labels, tmp_path / "adopted")

    assert not (tmp_path / "adopted").exists()


def test_an_artifact_of_another_task_is_refused(tiny_bert_artifact: Path) -> None:
    with pytest.raises(ConfigError, match="is for text-classification, expected causal-lm"):
        check_artifact(tiny_bert_artifact, "causal-lm")


@pytest.mark.parametrize("base", ["stored", "float32"])
@pytest.mark.parametrize(
    "targets", [(), ("query", "key", "value", "dense"), ("attention.self.query", "key", "value", "dense")]
)
def test_an_artifact_that_is_what_was_asked_for_is_taken(
    tiny_bert_artifact: Path, base: BaseDtype, targets: tuple[str, ...]
) -> None:
    check_artifact(tiny_bert_artifact, "text-classification", base=base, targets=targets)


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_an_artifact_that_is_stored_otherwise_is_refused(tiny_bert_artifact: Path, base: BaseDtype) -> None:
    with pytest.raises(ConfigError, match=f"stores .* as float32, but --base says {base}"):
        check_artifact(tiny_bert_artifact, "text-classification", base=base)


@pytest.mark.parametrize("targets", [("query",), ("query", "key", "value"), ("uery",)])
def test_an_artifact_of_other_targets_is_refused(tiny_bert_artifact: Path, targets: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=f"--targets says {','.join(targets)}"):
        check_artifact(tiny_bert_artifact, "text-classification", targets=targets)


@pytest.mark.parametrize("base", ["int8", "nf4", "float16"])
def test_what_an_export_with_a_base_makes_passes_for_it(tiny_bert_model: Path, tmp_path: Path, base: BaseDtype) -> None:
    out, labels = tmp_path / "out", ["red", "green", "blue"]
    export_model(
        tiny_bert_model, "text-classification", out, labels=labels, base_dtype=base, targets=["query", "value"]
    )

    check_artifact(out, "text-classification", base=base, targets=("query", "value"))

    with pytest.raises(ConfigError, match="--base says float32"):
        check_artifact(out, "text-classification", base="float32")


def test_an_artifact_with_factors_on_other_blocks_is_refused(tiny_bert_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_model(tiny_bert_model, "text-classification", out, num_labels=3, targets=["query"], top_blocks=1)

    check_artifact(out, "text-classification", targets=["query"], top_blocks=1)
    check_artifact(out, "text-classification")

    with pytest.raises(ConfigError, match="on 1 blocks, --top-blocks says 2"):
        check_artifact(out, "text-classification", top_blocks=2)


def test_a_directory_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactCorruptedError, match="has no readable"):
        check_artifact(tmp_path, "causal-lm")
