"""Compact models of both families, made by the exporter from the tiny artifacts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.plan import Plan

RANK = 2
SCALING = 2.0


def random_adapter(artifact: Artifact) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = AdapterLayout.of(artifact.manifest, Plan.full(artifact.manifest), RANK).shapes
    return {name: rng.normal(0.0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


def make_compact(artifact_dir: Path, out: Path) -> Path:
    compact = pytest.importorskip("exporter.compact.export", reason="needs the server's packages")
    source_of = pytest.importorskip("exporter.compact.source")
    artifact = Artifact.open(artifact_dir)
    source = source_of.CompactSource(
        artifact_dir=artifact_dir,
        manifest=artifact.manifest,
        digest=artifact.digest,
        adapter=random_adapter(artifact),
        rank=RANK,
        lora_scaling=SCALING,
        round_number=1,
    )
    compact.compact_source(source, Plan.full(artifact.manifest), 0.0, out)
    return out


@pytest.fixture(scope="session")
def compact_bert(tiny_bert_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_compact(tiny_bert_artifact, tmp_path_factory.mktemp("compact") / "bert")


@pytest.fixture(scope="session")
def compact_llama(tiny_llama_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_compact(tiny_llama_artifact, tmp_path_factory.mktemp("compact") / "llama")
