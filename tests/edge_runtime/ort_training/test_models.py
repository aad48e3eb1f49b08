"""A folder of ort-training models: what it serves, and what it refuses before onnxruntime-training sees a byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from edge_runtime.agent.refusals import reason_of
from edge_runtime.bounds.versioned import encode_description
from edge_runtime.engine.artifact import Artifact
from edge_runtime.errors import ArtifactVersionError, ExitCode, ManifestError
from edge_runtime.formats import ranking
from edge_runtime.formats.manifest import FileRef, digest_of
from edge_runtime.formats.plan import Plan
from edge_runtime.ort_training.description import (
    DESCRIPTION_FILE,
    FORMAT_VERSION,
    MODEL_FILES,
    ArmModels,
    OptimizerSettings,
    OrtModels,
    widths_of,
)
from edge_runtime.ort_training.errors import ArmNotExportedError, FixedHyperParametersError, OrtModelsError
from edge_runtime.ort_training.models import ModelFolder
from edge_runtime.wire.messages import FailureReason
from edge_runtime.wire.work import Arm, LoraWork, Pruning
from tests.edge_runtime.ort_training.trajectories import HYPER_PARAMETERS, plan_of

FULL, HALF = Arm(pruning_ratio=0.0, rank=4), Arm(pruning_ratio=0.5, rank=3)


@pytest.fixture
def artifact(tiny_bert_artifact: Path) -> Artifact:
    return Artifact.open(tiny_bert_artifact)


def write(folder: Path, artifact: Artifact, **changes: Any) -> Path:
    """A description of two arms, with files that nobody will load."""
    arms = []
    for arm in (FULL, HALF):
        directory = folder / f"{arm.pruning_ratio:g}-{arm.rank}"
        directory.mkdir(parents=True)
        files = {}
        for name in MODEL_FILES:
            (directory / name).write_bytes(name.encode())
            files[name] = FileRef(digest=digest_of(name.encode()), size_bytes=len(name), on_device=True)
        widths = widths_of(plan_of(artifact.manifest, arm.pruning_ratio))
        arms.append(ArmModels(arm=arm, widths=widths, directory=directory.name, files=files))
    models = OrtModels(
        format_version=FORMAT_VERSION,
        artifact_digest=artifact.digest,
        model_name="tiny",
        optimizer=OptimizerSettings.of(HYPER_PARAMETERS),
        arms=tuple(arms),
        producer={},
    )
    (folder / DESCRIPTION_FILE).write_bytes(encode_description(structs.replace(models, **changes)))
    return folder


@pytest.fixture
def folder(tmp_path: Path, artifact: Artifact) -> ModelFolder:
    return ModelFolder.open(write(tmp_path / "models", artifact), artifact)


def assignment_of(plan: Plan, arm: Arm, *, prunings: tuple[Pruning, ...] = (), **hyper: Any) -> LoraWork:
    return LoraWork(
        arm=arm,
        plan=plan.packed,
        hyper_parameters=structs.replace(HYPER_PARAMETERS, **hyper),
        prunings=prunings,
    )


def test_one_set_serves_every_plan_of_its_widths(folder: ModelFolder, artifact: Artifact) -> None:
    manifest = artifact.manifest
    rng = np.random.default_rng(0)
    plans = set()
    for _ in range(5):
        scores = {(g.layer, g.group): rng.random(g.num_units).astype(np.float32) for g in manifest.groups}
        plan = ranking.plan_at(manifest, scores, 0.5)
        plans.add(plan.packed.digest())
        assert folder.find(plan, HALF.rank, HYPER_PARAMETERS).arm == HALF
    assert len(plans) > 1
    assert folder.find(Plan.full(manifest), FULL.rank, HYPER_PARAMETERS).arm == FULL


@pytest.mark.parametrize(
    ("ratio", "rank", "said"),
    [(0.25, 3, "widths"), (0.5, 8, "rank 8"), (0.0, 3, "0.0:4,0.5:3")],
    ids=["ratio", "rank", "rank of another ratio"],
)
def test_an_arm_without_models_is_refused_as_one_that_does_not_fit(
    folder: ModelFolder, artifact: Artifact, ratio: float, rank: int, said: str
) -> None:
    plan = plan_of(artifact.manifest, ratio)
    assignment = assignment_of(plan, Arm(pruning_ratio=ratio, rank=rank))
    with pytest.raises(ArmNotExportedError, match=said) as caught:
        folder.check(assignment, plan)
    assert reason_of(caught.value) is FailureReason.ARM_INFEASIBLE


def test_a_layer_that_stays_whole_has_other_widths(folder: ModelFolder, artifact: Artifact) -> None:
    manifest = artifact.manifest
    alike = {(g.layer, g.group): np.zeros(g.num_units, np.float32) for g in manifest.groups}
    plan = ranking.plan_at(manifest, alike, 0.25, ranking.PlanPolicy(protect_last=1))
    with pytest.raises(ArmNotExportedError, match="--protect-last"):
        folder.find(plan, HALF.rank, HYPER_PARAMETERS)


def test_a_shrinking_inside_an_assignment_is_refused(folder: ModelFolder, artifact: Artifact) -> None:
    full, half = Plan.full(artifact.manifest), plan_of(artifact.manifest, 0.5)
    shrinking = assignment_of(full, FULL, prunings=(Pruning(at_step=2, plan=half.packed),))
    with pytest.raises(ArmNotExportedError, match="--ramp-rounds 0") as caught:
        folder.check(shrinking, full)
    assert reason_of(caught.value) is FailureReason.ARM_INFEASIBLE


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weight_decay": 0.5}, "weight_decay 0.01, not 0.5"),
        ({"max_grad_norm": None}, "max_grad_norm 1.0, not None"),
        ({"beta2": 0.98}, "beta2 0.999, not 0.98"),
        ({"trainable": "lora_b"}, "'lora_b' alone"),
    ],
    ids=["decay", "clipping", "beta", "frozen A"],
)
def test_hyper_parameters_that_are_baked_in_otherwise_are_refused(
    folder: ModelFolder, artifact: Artifact, changes: dict[str, Any], said: str
) -> None:
    plan = Plan.full(artifact.manifest)
    with pytest.raises(FixedHyperParametersError, match=said):
        folder.check(assignment_of(plan, FULL, **changes), plan)


def test_hyper_parameters_that_are_not_baked_in_are_free(folder: ModelFolder, artifact: Artifact) -> None:
    free = structs.replace(
        HYPER_PARAMETERS,
        learning_rate=0.5,
        num_warmup_steps=0,
        batch_size=9,
        num_accumulation_steps=3,
        lora_scaling=1.0,
    )
    assert folder.find(Plan.full(artifact.manifest), FULL.rank, free).arm == FULL


def test_a_run_of_which_some_arms_have_models(folder: ModelFolder) -> None:
    other = Arm(pruning_ratio=0.25, rank=4)
    assert folder.check_arms([FULL, other, HALF]) == (other,)
    assert folder.check_arms([]) == ()
    with pytest.raises(ArmNotExportedError, match=r"models of 0\.0:4,0\.5:3, but this run plays 0\.25:4") as caught:
        folder.check_arms([other])
    assert caught.value.exit_code is ExitCode.ARM_OUT_OF_RANGE


@pytest.mark.parametrize("damage", ["missing", "longer", "other"])
def test_a_damaged_file_is_named(folder: ModelFolder, damage: str) -> None:
    [one] = [models for models in folder.models.arms if models.arm == HALF]
    file = folder.directory / one.directory / "checkpoint"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"x" * (len("checkpoint") + (damage == "longer")))
    with pytest.raises(OrtModelsError, match="checkpoint"):
        folder.verified(one)
    assert folder.verified(folder.models.arms[0]).is_dir()


def test_models_of_another_artifact_are_refused(tmp_path: Path, artifact: Artifact) -> None:
    write(tmp_path / "models", artifact, artifact_digest="0" * 64)
    with pytest.raises(OrtModelsError, match="belongs to artifact 0000"):
        ModelFolder.open(tmp_path / "models", artifact)


def test_a_folder_without_models_is_refused(tmp_path: Path, artifact: Artifact) -> None:
    with pytest.raises(OrtModelsError, match="--format ort-training"):
        ModelFolder.open(tmp_path, artifact)


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"format_version": 2}, ArtifactVersionError), ({"arms": ()}, ManifestError)],
    ids=["version", "no arm"],
)
def test_a_description_that_cannot_be_used_is_refused(
    tmp_path: Path, artifact: Artifact, changes: dict[str, Any], error: type[Exception]
) -> None:
    write(tmp_path / "models", artifact, **changes)
    with pytest.raises(error):
        ModelFolder.open(tmp_path / "models", artifact)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"0-4"', '"../0-4"'),
        ('"0-4"', '""'),
        ('"checkpoint"', '"another"'),
        ('"rank": 4', '"rank": "4"'),
        ("}", ""),
    ],
    ids=["outside", "itself", "no checkpoint", "type", "not JSON"],
)
def test_a_malformed_description_is_refused(tmp_path: Path, artifact: Artifact, old: str, new: str) -> None:
    path = write(tmp_path / "models", artifact) / DESCRIPTION_FILE
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ManifestError):
        ModelFolder.open(path.parent, artifact)
