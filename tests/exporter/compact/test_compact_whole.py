"""A compact model of a run that tuned all weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_runtime.formats import names
from edge_runtime.formats.quantization import stored_tensor
from edge_runtime.formats.seed_pool import SeedPool, pool_octets
from edge_runtime.formats.tensors import encode_tensors
from edge_runtime.inference import CompactModel
from edge_runtime.zero_order.noise import signs
from exporter.compact.export import compact_run
from exporter.compact.merge import merged_model
from exporter.compact.source import read_plan, read_source
from tests.exporter.compact.test_compact import random_batch, reference, torch_logits
from tests.exporter.runs import RANK, SCALING


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_weights_that_a_pool_of_seeds_moved_are_in_the_model(
    request: pytest.FixtureRequest, tmp_path: Path, family: str
) -> None:
    """All of them and the head, less the noise of two seeds; a compact model of it is that model, cut down."""
    run = tmp_path / "tuned-whole"
    shutil.copytree(request.getfixturevalue(f"{family}_run"), run)
    before = read_source(run)
    adapter = {name: value * np.float32("lora_" not in name) for name, value in before.adapter.items()}
    pool = SeedPool(seed=3, coefficients=np.array([0, 5e-3, 0, -2e-3], "<f4").tobytes())
    metadata = {"artifact_digest": before.digest, "rank": str(RANK), "lora_scaling": str(SCALING), "round_number": "11"}
    data = encode_tensors(adapter, metadata=metadata, octets={names.POOL: pool_octets(pool)})
    (run / "adapters" / "round-0011.safetensors").write_bytes(data)

    source = read_source(run)
    assert source.pool == pool
    stored = load_file(source.artifact_dir / names.BASE_FILE)
    starts = {spec.name: np.asarray(stored_tensor(stored, spec)) for spec in source.manifest.tensors}
    starts |= {spec.name: adapter[spec.name] for spec in source.manifest.dense}
    state = merged_model(source).state_dict()
    for index, (name, start) in enumerate(starts.items()):
        noise = np.float32(5e-3) * signs(3, 0, 0, 1, index, start.size)
        noise += np.float32(-2e-3) * signs(3, 0, 0, 3, index, start.size)
        np.testing.assert_array_equal(state[name].numpy(), start - noise.reshape(start.shape))

    plan = read_plan(run, source.manifest, 0.25)
    compact_run(run, 0.25, tmp_path / "compact")
    ids, mask = random_batch(source.manifest)
    got = CompactModel.open(tmp_path / "compact", num_threads=1).logits(ids, mask)
    expected = torch_logits(reference(source, plan), ids, mask)
    assert np.abs((got if got.ndim == 2 else got[mask == 1]) - expected).max() <= 1e-4
