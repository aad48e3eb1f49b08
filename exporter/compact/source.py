"""Sources of a compact model: the artifact, global adapter and importance of a run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import safetensors

from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import DIGEST
from edge_runtime.errors import PlanError, TensorError
from edge_runtime.formats import names, ranking
from edge_runtime.formats.adapter import Array
from edge_runtime.formats.manifest import Manifest, decode_manifest, digest_of
from edge_runtime.formats.payload import Merged, Payload, check_payload, payload_of
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.run_directory import (
    ADAPTERS_FOLDER,
    ARTIFACTS_FOLDER,
    IMPORTANCE_FILE,
    STATE_FILE,
    round_file,
    round_of,
)
from edge_runtime.formats.seed_pool import SeedPool, coefficients_of, pool_of
from edge_runtime.formats.tensors import check_digest, decode_tensors, decode_with_octets
from edge_runtime.inference.description import file_ref
from exporter.errors import CompactInputError, CompactRatioError

_NEEDED_FILES: Final = (names.BASE_FILE, names.CONFIG_FILE)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompactSource:
    """An artifact and a full adapter for it."""

    artifact_dir: Path
    manifest: Manifest
    digest: str
    """SHA-256 of the manifest."""
    adapter: Mapping[str, Array]
    """Under the full plan."""
    rank: int
    lora_scaling: float
    """alpha / rank."""
    round_number: int
    """0 = before training."""
    merged: Merged = dataclasses.field(default_factory=dict)
    """Factors that the run folded into the frozen weights, under the full plan; empty for most rules of aggregation."""
    pool: SeedPool | None = None
    """Distance of all weights from their start, where all were tuned; None = they were not."""


def read_source(run_dir: Path, *, adapter: Path | None = None, round_number: int | None = None) -> CompactSource:
    """Read adapter and artifact of a run.

    Args:
        run_dir: run directory.
        adapter: an adapter's file; None = the run's, of ``round_number``.
        round_number: None = the last round that has one, which must have been trained.

    Raises:
        CompactInputError: no run, no such round, a last adapter that is still that of before training, an adapter
            without the metadata that it should carry, or files of the artifact that are missing or damaged.
        ManifestError: the artifact's manifest is malformed or of another version.
    """
    path = adapter or _adapter_path(run_dir, round_number)
    payload, pool, metadata = _read_adapter(path)
    if adapter is None:
        _check_recorded(run_dir, path)
    if adapter is None and round_number is None and (pool is None or not coefficients_of(pool).any()):
        _check_trained(path, payload)
    try:
        digest = metadata["artifact_digest"]
        if re.fullmatch(DIGEST, digest) is None:
            msg = f"artifact_digest is {digest[:80]!r}"
            raise ValueError(msg)  # noqa: TRY301 - as other values that are none
        rank, number = int(metadata["rank"]), int(metadata["round_number"])
        lora_scaling = float(metadata["lora_scaling"])
    except (KeyError, ValueError) as error:
        needed = "artifact_digest, rank, lora_scaling and round_number"
        msg = f"adapter {path} lacks usable metadata ({error}), expected {needed}: give an adapter that a run wrote"
        raise CompactInputError(msg) from error
    if not (0 < lora_scaling <= limits.MAX_FACTOR and 0 <= number <= limits.MOST and 1 <= rank <= limits.MAX_RANK):
        msg = (
            f"adapter {path} has lora_scaling {lora_scaling}, round {number} and rank {rank}, expected above 0 to "
            f"{limits.MAX_FACTOR:g}, 0 or more, and 1 to {limits.MAX_RANK}"
        )
        raise CompactInputError(msg)
    artifact_dir = run_dir / ARTIFACTS_FOLDER / digest
    manifest = _read_manifest(artifact_dir, digest)
    try:
        check_payload(manifest, Plan.full(manifest), rank, payload, is_update=False)
    except TensorError as error:
        msg = f"adapter {path} does not fit its artifact: {error}"
        raise CompactInputError(msg) from error
    return CompactSource(
        artifact_dir=artifact_dir,
        manifest=manifest,
        digest=digest,
        adapter=payload.adapter,
        rank=rank,
        lora_scaling=lora_scaling,
        round_number=number,
        merged=payload.merged,
        pool=pool,
    )


def check_ratio(sparsity: float) -> None:
    """Refuse a ratio that no compact model can have.

    Raises:
        CompactRatioError: it is not in [0, 1).
    """
    if not 0.0 <= sparsity < 1.0:
        msg = f"--sparsity is {sparsity}, expected 0 or more and less than 1, for example 0.25"
        raise CompactRatioError(msg)


def read_plan(run_dir: Path, manifest: Manifest, sparsity: float) -> Plan:
    """The plan at a ratio, from the run's importance and by its policy; at ratio 0 the full plan, which needs none.

    Raises:
        CompactRatioError: the ratio is not in [0, 1).
        CompactInputError: the run has no usable importance.
    """
    check_ratio(sparsity)
    if sparsity == 0.0:
        return Plan.full(manifest)
    path = run_dir / IMPORTANCE_FILE
    query = "SELECT json_extract(record, '$.files.importance') FROM rounds ORDER BY round_number DESC LIMIT 1"
    try:
        data = path.read_bytes()
        check_digest(data, _recorded(run_dir, query))
        importance = ranking.from_tensors(decode_tensors(data))
        with safetensors.safe_open(path, framework="numpy") as file:
            policy = ranking.PlanPolicy.from_metadata(file.metadata() or {})
        return ranking.plan_at(manifest, importance, sparsity, policy)
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror}): without it only sparsity 0 can be made"
        raise CompactInputError(msg) from error
    except (TensorError, PlanError) as error:
        msg = f"{path} cannot be used: {error}; go on with the run if it is not over, or put the file back from a copy"
        raise CompactInputError(msg) from error


def _adapter_path(run_dir: Path, round_number: int | None) -> Path:
    directory = run_dir / ADAPTERS_FOLDER
    try:
        found = {number: path for path in directory.iterdir() if (number := round_of(path.name)) is not None}
    except OSError as error:
        fault = f"{ADAPTERS_FOLDER}: {error.strerror}"
        msg = f"{run_dir} is not a run directory ({fault}): give the --out of a `fedspine run`"
        raise CompactInputError(msg) from error
    if not found:
        msg = f"{directory} holds no adapter (round-NNNN.safetensors): let the run finish a round first"
        raise CompactInputError(msg)
    number = max(found) if round_number is None else round_number
    if number not in found:
        msg = f"{directory} has no round {number}; it has {min(found)} to {max(found)}"
        raise CompactInputError(msg)
    return found[number]


def _check_recorded(run_dir: Path, path: Path) -> None:
    """Refuse an adapter of a run that is not the one that its round's record tells of.

    Raises:
        CompactInputError: it is not.
    """
    round_number = round_of(path.name)
    if round_number is None:
        return
    query = "SELECT json_extract(record, '$.files.adapter') FROM rounds WHERE round_number = ?"
    try:
        check_digest(path.read_bytes(), _recorded(run_dir, query, round_number))
    except TensorError as error:
        msg = f"adapter {path} cannot be used: {error}; put it back from a copy, or give another --round"
        raise CompactInputError(msg) from error


def _recorded(run_dir: Path, query: str, *values: int) -> str | None:
    """The digest that a query finds in the run's records; None if there is none, or no database."""
    state = run_dir / STATE_FILE
    if not state.is_file():
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"{state.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute(query, values).fetchone()
    except sqlite3.Error:
        return None  # the reader of the run reports the error
    return str(found[0]) if found and found[0] else None


def _check_trained(path: Path, payload: Payload) -> None:
    """Refuse an adapter that no round changed: its compact model would be the pretrained one, cut down.

    Raises:
        CompactInputError: it is that of round 0, to the last bit.
    """
    first = path.with_name(round_file(0))
    if not first.is_file():
        return
    before, _, _ = _read_adapter(first)
    if before.merged.keys() != payload.merged.keys() or before.adapter.keys() != payload.adapter.keys():
        return
    pairs = [(before.adapter[name], value) for name, value in payload.adapter.items()]
    pairs += [
        pair for name, factors in payload.merged.items() for pair in zip(before.merged[name], factors, strict=True)
    ]
    if all(np.array_equal(one, other) for one, other in pairs):
        msg = (
            f"adapter {path} is still that of before training: no round of the run changed it, see its report or logs; "
            "--round 0 makes a compact model of it all the same"
        )
        raise CompactInputError(msg)


def _read_adapter(path: Path) -> tuple[Payload, SeedPool | None, dict[str, str]]:
    try:
        tensors, octets = decode_with_octets(path.read_bytes())
        payload = payload_of(tensors)
        pool = pool_of(octets[names.POOL]) if names.POOL in octets else None
        with safetensors.safe_open(path, framework="numpy") as file:
            return payload, pool, file.metadata() or {}
    except OSError as error:
        msg = f"adapter {path} cannot be read: {error.strerror}"
        raise CompactInputError(msg) from error
    except (TensorError, safetensors.SafetensorError) as error:
        msg = f"adapter {path} is damaged: {error}"
        raise CompactInputError(msg) from error


def _read_manifest(artifact_dir: Path, digest: str) -> Manifest:
    """The manifest, with the files that a model is rebuilt from checked against it."""
    try:
        data = (artifact_dir / names.MANIFEST_FILE).read_bytes()
        if digest_of(data) != digest:
            msg = (
                f"manifest of artifact {artifact_dir} is not the one that the adapter belongs to: restore the artifact"
            )
            raise CompactInputError(msg, digest=digest)
        manifest = decode_manifest(data)
        for name in _NEEDED_FILES:
            ref = manifest.files.get(name)
            if ref is None or file_ref(artifact_dir / name, on_device=ref.on_device) != ref:
                msg = f"artifact file {artifact_dir / name} is not the one that the manifest describes: restore it"
                raise CompactInputError(msg, digest=digest)
    except OSError as error:
        msg = f"artifact {artifact_dir} cannot be read: {error.strerror} ({Path(str(error.filename)).name})"
        raise CompactInputError(msg, digest=digest) from error
    return manifest
