"""``fedspine export --format ort-training``: what it refuses before it has onnxruntime-training make anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from msgspec import structs

from broker_server.cli import call
from broker_server.methods.training import TrainingConfig
from edge_runtime.errors import ExitCode
from edge_runtime.formats.manifest import Manifest, TensorSpec
from edge_runtime.formats.plan import Plan
from edge_runtime.ort_training.description import OptimizerSettings
from edge_runtime.wire.work import Arm
from exporter.errors import ModelTooLargeError, OrtExportError
from exporter.ort_training.export import check_size
from exporter.ort_training.source import family_of
from tests.conftest import Disk
from tests.exporter.reference import manifest_of

FORMAT = ["--format", "ort-training"]
ARM = Arm(pruning_ratio=0.0, rank=8)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ([], ExitCode.USAGE, "--arm 0.0:8"),
        (["--arm", "0.5"], ExitCode.ARM_OUT_OF_RANGE, "RATIO:RANK"),
        (["--arm", "0.99:4"], ExitCode.ARM_OUT_OF_RANGE, "outside its range"),
        (["--arm", "0:4", "--task", "causal-lm"], ExitCode.USAGE, "--task is not for --format ort-training"),
        (["--arm", "0:4", "--base", "int8"], ExitCode.USAGE, "--base is not for --format ort-training"),
        (["--arm", "0:4", "--weight-decay", "inf"], ExitCode.USAGE, "finite"),
        (["--arm", "0:4", "--protect-first", "9"], ExitCode.USAGE, "protecting 9 first"),
        (["--arm", "0:4", "--ort-python", "/no/python"], ExitCode.MISSING_DEPENDENCY, "scripts/setup-ort-training"),
        (["--arm", "0:4", "--ort-python", sys.executable], ExitCode.MISSING_DEPENDENCY, "make it again"),
    ],
)
def test_each_mistake_is_one_line_and_its_code(
    options: list[str],
    code: ExitCode,
    said: str,
    tiny_bert_artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "models"
    assert call(["export", str(tiny_bert_artifact), *FORMAT, *options, "-o", str(out)]) == code
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert said in line
    assert not out.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(
    tiny_bert_artifact: Path, small_disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = small_disk(40_000)
    options = [*FORMAT, "--arm", "0:4", "-o", str(disk / "models")]

    assert call(["export", str(tiny_bert_artifact), *options]) == ExitCode.DISK_FULL

    assert "disk full" in capsys.readouterr().err
    assert list(disk.iterdir()) == []


def test_a_model_is_no_artifact(tiny_bert_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*FORMAT, "--arm", "0:4", "-o", str(tmp_path / "models")]
    assert call(["export", str(tiny_bert_model), *options]) == ExitCode.ARTIFACT_CORRUPTED
    assert "manifest.json" in capsys.readouterr().err


def test_its_options_are_refused_where_they_mean_nothing(
    tiny_bert_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--task", "text-classification", "--num-labels", "2", "--arm", "0:4", "-o", str(tmp_path / "artifact")]
    assert call(["export", str(tiny_bert_model), *options]) == ExitCode.USAGE
    assert "--arm is not for --format artifact" in capsys.readouterr().err


@pytest.mark.parametrize(("num_rows", "is_too_large"), [(500_000, False), (600_000, True)])
def test_two_gigabytes_are_the_limit(tiny_bert_artifact: Path, num_rows: int, *, is_too_large: bool) -> None:
    """A vocabulary of 600,000 words in 1024 dimensions is 2.46 GB."""
    manifest: Manifest = manifest_of(tiny_bert_artifact)
    table = TensorSpec(name="table", shape=(num_rows, 1024), dtype="int8", layer=None)
    manifest = structs.replace(manifest, tensors=(*manifest.tensors, table))
    plan = Plan.full(manifest)
    if not is_too_large:
        check_size(manifest, plan, ARM)
        return
    with pytest.raises(ModelTooLargeError, match=r"2\.46 GB.*--engine portable") as caught:
        check_size(manifest, plan, ARM)
    assert caught.value.exit_code is ExitCode.MODEL_UNSUPPORTED


def test_the_family_comes_back_with_its_targets(tiny_bert_artifact: Path, tiny_llama_artifact: Path) -> None:
    for artifact in (tiny_bert_artifact, tiny_llama_artifact):
        manifest = manifest_of(artifact)
        family = family_of(artifact, manifest)
        assert family.name == manifest.family
        assert family.target_specs() == manifest.targets


def test_targets_that_were_chosen_come_back(tiny_bert_model: Path, tmp_path: Path) -> None:
    options = ["--task", "text-classification", "--num-labels", "2", "--targets", "query,value"]
    assert call(["export", str(tiny_bert_model), *options, "-o", str(tmp_path / "artifact")]) == ExitCode.OK
    family = family_of(tmp_path / "artifact", manifest_of(tmp_path / "artifact"))
    assert family.target_modules == ("attention.self.query", "attention.self.value")


def test_weights_of_another_configuration_are_refused(tiny_bert_artifact: Path) -> None:
    manifest = manifest_of(tiny_bert_artifact)
    other = structs.replace(manifest, tensors=manifest.tensors[1:])
    with pytest.raises(OrtExportError, match="not those of its configuration"):
        family_of(tiny_bert_artifact, other)


def test_a_configuration_that_was_changed_is_refused(tiny_bert_artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OrtExportError, match=r"config\.json is not the one"):
        family_of(tmp_path, manifest_of(tiny_bert_artifact))


def test_what_is_baked_in_by_default_is_what_a_run_asks_for() -> None:
    baked = OptimizerSettings()
    run = TrainingConfig(num_rounds=1, num_local_steps=1, batch_size=1, max_length=8)
    assert (baked.weight_decay, baked.max_grad_norm) == (run.weight_decay, run.max_grad_norm)
