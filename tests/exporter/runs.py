"""Run directories as a coordinator leaves them, with random adapters."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from edge_runtime.formats import names, ranking
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import decode_manifest, digest_of
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.tensors import encode_tensors

RANK = 3
SCALING = 1.5
ROUND_NUMBERS = (0, 2, 10)


def write_run(directory: Path, artifact_dir: Path) -> Path:
    """A run directory as the coordinator leaves it: artifact, importance, a random adapter after some rounds."""
    manifest = decode_manifest((artifact_dir / names.MANIFEST_FILE).read_bytes())
    rng = np.random.default_rng(5)
    digest = digest_of((artifact_dir / names.MANIFEST_FILE).read_bytes())
    shutil.copytree(artifact_dir, directory / "artifacts" / digest)
    importance = {(g.layer, g.group): rng.random(g.num_units).astype(np.float32) for g in manifest.groups}
    (directory / "importance.safetensors").write_bytes(encode_tensors(ranking.to_tensors(importance)))
    (directory / "adapters").mkdir()
    shapes = AdapterLayout.of(manifest, Plan.full(manifest), RANK).shapes
    for number in ROUND_NUMBERS:
        tensors = {name: rng.normal(0.0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
        metadata = {
            "artifact_digest": digest,
            "rank": str(RANK),
            "lora_scaling": str(SCALING),
            "round_number": str(number),
        }
        path = directory / "adapters" / f"round-{number:04d}.safetensors"
        path.write_bytes(encode_tensors(tensors, metadata=metadata))
    return directory
