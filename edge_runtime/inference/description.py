"""``fedspine.json``: description of a compact model for a device, which has neither torch nor transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import Count, Digest, Label, Name, Positive, PruningRatio, Short, Version
from edge_runtime.bounds.plain import escaped, plain
from edge_runtime.errors import ManifestError
from edge_runtime.formats.manifest import FileRef, Task, TextSpec
from edge_runtime.formats.plan import PackedPlan
from edge_runtime.inference.errors import CompactModelError, CompactVersionError
from edge_runtime.system.files import measure

SCHEMA_VERSION: Final = 1
"""Version of a compact model's directory; another one is refused."""

DESCRIPTION_FILE: Final = "fedspine.json"
MODEL_FILE: Final = "model.onnx"


class CompactInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Description of a compact model: the content of ``fedspine.json``."""

    schema_version: Version
    task: Task
    family: Name
    """Name of the model family (``bert``, ``llama``)."""
    model_name: Short
    """Name of the source model, for people; never a path."""
    labels: Annotated[tuple[Label, ...], msgspec.Meta(max_length=limits.MAX_LABELS)]
    """Class names in the order of the logits; empty for causal-lm."""
    text: TextSpec
    max_length: Positive
    """Longest sequence the model's positions allow, tokens."""
    pruning_ratio: PruningRatio
    """Requested share of units removed, in [0, 1)."""
    sparsity: PruningRatio
    """Measured share of the prunable weights that is gone, in [0, 1)."""
    quantization: Literal["int8"] | None
    num_parameters: Annotated[int, msgspec.Meta(ge=0, le=limits.MAX_TENSOR_ELEMENTS)]
    """Parameters that are left; a matrix that two layers share counts once."""
    artifact_digest: Digest
    """Artifact that it was made from."""
    round_number: Count
    """Round whose global adapter is merged into it; 0 = before training."""
    plan: PackedPlan
    """Units that stayed."""
    files: Annotated[dict[Name, FileRef], msgspec.Meta(max_length=limits.MAX_FILES)]
    """Every other file of the directory."""

    @property
    def is_whole(self) -> bool:
        """Return whether it is the model that was trained: nothing was removed, nothing is quantised."""
        return not self.sparsity and self.quantization is None

    @property
    def num_bytes(self) -> int:
        """Bytes that a device needs: all files marked ``on_device``."""
        return sum(ref.size_bytes for ref in self.files.values() if ref.on_device)


def read_info(directory: Path, *, verify: bool = True) -> CompactInfo:
    """Read ``fedspine.json`` of a compact model and check the files that inference needs.

    Args:
        directory: folder that ``fedspine compact`` wrote.
        verify: whether SHA-256 is checked too, beside presence and size.

    Raises:
        CompactModelError: no such directory, a malformed description, or a file that is missing or differs.
        CompactVersionError: the description is of another schema version.
    """
    path = directory / DESCRIPTION_FILE
    try:
        with path.open("rb") as file:
            data = file.read(limits.MAX_MANIFEST_BYTES)
    except OSError as error:
        found = f"{DESCRIPTION_FILE}: {error.strerror}"
        msg = f"{directory} is not a compact model ({found}): make one with `fedspine compact`"
        raise CompactModelError(msg) from error
    try:
        version = msgspec.json.decode(data, type=_VersionOnly).schema_version
        if version != SCHEMA_VERSION:
            msg = (
                f"compact model {directory} has schema version {version}, but this release reads {SCHEMA_VERSION}: "
                "make it again with `fedspine compact`"
            )
            raise CompactVersionError(msg)
        info = escaped(msgspec.json.decode(data, type=CompactInfo))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        msg = f"{path} is malformed ({plain(str(error))}): make the compact model again, or copy it again"
        raise CompactModelError(msg) from error
    try:
        info.text.check()
    except ManifestError as error:
        msg = f"{path}: {error}, then make the compact model again"
        raise CompactModelError(msg) from error
    _check_files(directory, info, verify=verify)
    return info


def file_ref(path: Path, *, on_device: bool) -> FileRef:
    """Size and SHA-256 of a file, read in pieces.

    Raises:
        OSError: it cannot be read.
    """
    size, digest = measure(path)
    return FileRef(digest=digest, size_bytes=size, on_device=on_device)


class _VersionOnly(msgspec.Struct, frozen=True):
    schema_version: int


def _check_files(directory: Path, info: CompactInfo, *, verify: bool) -> None:
    if MODEL_FILE not in info.files:
        msg = f"compact model {directory} does not list {MODEL_FILE}: make it again with `fedspine compact`"
        raise CompactModelError(msg)
    for name, expected in info.files.items():
        if "/" in name or "\\" in name or name.startswith("."):
            msg = f"compact model {directory} lists an impossible file {name!r}: make it again"
            raise CompactModelError(msg)
        if not expected.on_device:
            continue
        path = directory / name
        try:
            size = path.stat().st_size
            differs = size != expected.size_bytes or (verify and file_ref(path, on_device=True) != expected)
        except OSError as error:
            msg = (
                f"compact model {directory} has no readable {name} ({error.strerror}): make it again, or copy it again"
            )
            raise CompactModelError(msg) from error
        if differs:
            msg = (
                f"compact model file {path} ({size} bytes) is not the one described ({expected.size_bytes} bytes, "
                f"SHA-256 {expected.digest[:12]}...): make the compact model again, or copy it again"
            )
            raise CompactModelError(msg, digest=expected.digest)
