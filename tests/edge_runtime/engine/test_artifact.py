"""Opening an artifact: what is checked, and what one clear error says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.engine.artifact import Artifact, MappedTensors
from edge_runtime.engine.errors import ArtifactCorruptedError
from edge_runtime.errors import ArtifactVersionError, ExitCode, ManifestError
from edge_runtime.formats.manifest import digest_of

MakeArtifact = Callable[..., Artifact]


def test_its_digest_is_that_of_the_manifest(make_artifact: MakeArtifact) -> None:
    artifact = make_artifact()
    assert artifact.digest == digest_of((artifact.directory / "manifest.json").read_bytes())


def test_missing_directory_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArtifactCorruptedError, match=r"has no readable manifest\.json") as caught:
        Artifact.open(tmp_path / "nowhere")
    assert caught.value.exit_code == ExitCode.ARTIFACT_CORRUPTED
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(make_artifact: MakeArtifact) -> None:
    directory = make_artifact().directory
    (directory / "base.safetensors").unlink()
    with pytest.raises(ArtifactCorruptedError, match=r"base\.safetensors cannot be read"):
        Artifact.open(directory)


def test_one_changed_bit_is_found(make_artifact: MakeArtifact) -> None:
    directory = make_artifact().directory
    data = bytearray((directory / "base.safetensors").read_bytes())
    data[-1] ^= 1
    (directory / "base.safetensors").write_bytes(data)
    with pytest.raises(ArtifactCorruptedError, match="corrupted; fetch it again"):
        Artifact.open(directory)
    Artifact.open(directory, verify=False)


def test_truncated_file_is_found(make_artifact: MakeArtifact) -> None:
    directory = make_artifact().directory
    data = (directory / "base.safetensors").read_bytes()
    (directory / "base.safetensors").write_bytes(data[:-3])
    with pytest.raises(ArtifactCorruptedError, match=f"is {len(data) - 3} bytes, expected {len(data)}"):
        Artifact.open(directory)


def test_other_version_has_its_own_exit_code(make_artifact: MakeArtifact) -> None:
    path = make_artifact().directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(ArtifactVersionError, match="version 99") as caught:
        Artifact.open(path.parent)
    assert caught.value.exit_code == ExitCode.ARTIFACT_VERSION


def test_manifest_that_is_not_json(make_artifact: MakeArtifact) -> None:
    path = make_artifact().directory / "manifest.json"
    path.write_bytes(b"\x00\xff")
    with pytest.raises(ManifestError):
        Artifact.open(path.parent)


def test_it_works_from_anywhere(make_artifact: MakeArtifact, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(make_artifact().directory, moved)
    assert Artifact.open(moved).path("tokenizer.json") == moved / "tokenizer.json"


def test_file_that_the_manifest_does_not_name(make_artifact: MakeArtifact) -> None:
    with pytest.raises(ArtifactCorruptedError, match=r"has no training\.onnx"):
        make_artifact().path("training.onnx")


def test_initial_dense_tensors(make_artifact: MakeArtifact) -> None:
    initial = make_artifact().initial()
    assert {name: value.shape for name, value in initial.items()} == {"classifier.weight": (2, 4)}
    assert make_artifact("causal-lm").initial() == {}


def test_base_is_mapped_and_read_only(make_artifact: MakeArtifact) -> None:
    artifact = make_artifact()
    spec = artifact.manifest.tensors[0]
    first, second = artifact.weight(spec), artifact.weight(spec)
    assert np.shares_memory(first, second)
    assert not first.flags.writeable


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x05",
        (1 << 62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"\xff\xff",
        (60).to_bytes(8, "little") + b'{"embedding":{"dtype":"F32","shape":[9],"data_offsets":[0,9]}}'[:60],
        (62).to_bytes(8, "little") + b'{"embedding":{"dtype":"F32","shape":[9],"data_offsets":[0,9]}}',
        (38).to_bytes(8, "little") + b'{"embedding":{"dtype":"F32","shape":3}}'[:38],
        (35).to_bytes(8, "little") + b'{"embedding":{"dtype":"BF16"}}     ',
        (15).to_bytes(8, "little") + b'{"embedding":7}',
    ],
    ids=["empty", "short", "huge header", "list", "no text", "cut json", "beyond", "cut", "type", "number"],
)
def test_malformed_base_is_one_error(make_artifact: MakeArtifact, data: bytes) -> None:
    directory = make_artifact().directory
    (directory / "base.safetensors").write_bytes(data)
    artifact = Artifact.open(directory, verify=False)
    with pytest.raises(ArtifactCorruptedError):
        artifact.stored(artifact.manifest.tensors[0])


def test_views_stay_valid_when_pages_are_released(make_artifact: MakeArtifact) -> None:
    artifact = make_artifact()
    view = artifact.weight(artifact.manifest.tensors[0])
    before = view.copy()
    artifact.release()
    np.testing.assert_array_equal(view, before)


def test_base_with_another_shape_is_refused(make_artifact: MakeArtifact) -> None:
    from safetensors.numpy import save_file

    directory = make_artifact().directory
    save_file({"embedding": np.zeros((4, 10), np.float32)}, directory / "base.safetensors")
    artifact = Artifact.open(directory, verify=False)
    with pytest.raises(ArtifactCorruptedError, match="'embedding' should be float32"):
        artifact.stored(artifact.manifest.tensors[0])


def test_mapping_agrees_with_the_library(make_artifact: MakeArtifact) -> None:
    from safetensors.numpy import load_file

    path = make_artifact().path("base.safetensors")
    mapped, loaded = MappedTensors(path).tensors, load_file(path)
    assert set(mapped) == set(loaded)
    for name, value in loaded.items():
        np.testing.assert_array_equal(mapped[name], value)
