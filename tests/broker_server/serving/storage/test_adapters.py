"""Global adapters on disk: with what was merged, beside it in PEFT's format, and refused when damaged."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from broker_server.errors import StoreError
from broker_server.methods.aggregation import Aggregated
from broker_server.serving.storage.adapters import PEFT_FOLDER, GlobalAdapters, adapter_path, peft_directory
from broker_server.serving.storage.peft_folder import WHOLE_FOLDER, PeftFolder
from edge_runtime.formats import names, peft_format
from edge_runtime.formats.adapter import initial
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.seed_pool import SeedPool
from edge_runtime.formats.tensors import decode_tensors, decode_with_octets, encode_tensors
from edge_runtime.zero_order.noise import signs
from tests.broker_server import tiny

MANIFEST = tiny.manifest()
POOL = SeedPool(seed=5, coefficients=np.array([0, 0.25], "<f4").tobytes())


def state(*, merged: bool) -> Aggregated:
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(4, 3)).astype(np.float32)
    adapter = tiny.adapter(Plan.full(MANIFEST), 2, rng)
    memory = {"log": np.arange(256, dtype=np.uint8)}
    return Aggregated(adapter=adapter, merged={"mixer": factors} if merged else {}, memory=memory)


@pytest.fixture
def adapters(tmp_path: Path) -> GlobalAdapters:
    return GlobalAdapters(tmp_path, MANIFEST, "d" * 64, rank=2, lora_scaling=2.0)


@pytest.mark.parametrize("merged", [False, True])
def test_what_is_written_is_read(adapters: GlobalAdapters, *, merged: bool) -> None:
    written = state(merged=merged)
    adapters.write(3, written)
    assert (adapters.exists(3), adapters.exists(4)) == (True, False)
    read = adapters.read(3)
    assert list(read.merged) == list(written.merged)
    for key, value in written.adapter.items():
        np.testing.assert_array_equal(read.adapter[key], value)
    for module, pair in written.merged.items():
        for mine, theirs in zip(pair, read.merged[module], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert {name: value.tobytes() for name, value in read.memory.items()} == {"log": bytes(range(256))}


def test_a_pool_of_seeds_comes_back(adapters: GlobalAdapters, tmp_path: Path) -> None:
    written = dataclasses.replace(state(merged=False), pool=POOL)
    adapters.write(2, written)
    assert adapters.read(2).pool == POOL
    assert not peft_directory(tmp_path).exists(), "there is no adapter where all weights are tuned"
    adapters.write(3, state(merged=False))
    assert adapters.read(3).pool is None


def test_a_pool_that_is_damaged_is_refused(adapters: GlobalAdapters, tmp_path: Path) -> None:
    broken = SeedPool(seed=1, coefficients=np.array([np.nan], "<f4").tobytes())
    adapters.write(2, dataclasses.replace(state(merged=False), pool=broken))
    with pytest.raises(StoreError, match=r"coefficients that are not finite.*: start a new run, or put the file back"):
        adapters.read(2)
    assert adapter_path(tmp_path, 2).exists()


def test_a_whole_checkpoint_takes_the_place_of_the_adapter(tmp_path: Path) -> None:
    """Every weight and the head less the noise of the pool, under the names that transformers reads."""
    artifact = tiny.write_artifact(tmp_path / "artifact", has_bias=True)
    manifest = artifact.manifest
    folder = PeftFolder(peft_directory(tmp_path), manifest, artifact)
    adapters = GlobalAdapters(tmp_path, manifest, artifact.digest, rank=2, lora_scaling=2.0, peft_folder=folder)
    before = Aggregated(adapter=initial(manifest, artifact.initial(), 2, np.random.default_rng(0)))
    adapters.write(0, before)
    assert peft_directory(tmp_path).is_dir()
    adapters.write(1, dataclasses.replace(before, pool=POOL))
    assert not peft_directory(tmp_path).exists()
    whole = tmp_path / "adapters" / WHOLE_FOLDER
    made = load_file(whole / "model.safetensors")
    starts = {spec.name: artifact.weight(spec) for spec in manifest.tensors}
    starts |= {spec.name: before.adapter[spec.name] for spec in manifest.dense}
    assert made.keys() == starts.keys()
    for index, (name, start) in enumerate(starts.items()):
        noise = signs(5, 0, 0, 1, index, start.size).reshape(start.shape)
        np.testing.assert_array_equal(made[name], start - np.float32(0.25) * noise)
    assert "not an adapter" in (whole / "README.md").read_text()
    assert (whole / names.TOKENIZER_FILE).exists() == (names.TOKENIZER_FILE in manifest.files)
    assert adapters.keep(0).pool is None
    assert peft_directory(tmp_path).is_dir()


def test_peft_s_file_holds_the_sum(adapters: GlobalAdapters, tmp_path: Path) -> None:
    written = state(merged=True)
    adapters.write(1, written)
    weights = decode_tensors((tmp_path / "adapters" / PEFT_FOLDER / peft_format.WEIGHTS_FILE).read_bytes())
    a, b = (weights[peft_format.KEY_PREFIX + name("mixer")] for name in (names.lora_a, names.lora_b))
    assert not [name for name in weights if "memory" in name]
    merged_a, merged_b = written.merged["mixer"]
    expected = written.adapter["mixer.lora_B.weight"] @ written.adapter["mixer.lora_A.weight"] + merged_b @ merged_a
    np.testing.assert_allclose(b @ a, expected, atol=1e-5)


@pytest.mark.parametrize("damage", ["gone", "cut", "half of a pair", "of another model", "another memory"])
def test_a_damaged_file_is_refused_with_its_round(adapters: GlobalAdapters, tmp_path: Path, damage: str) -> None:
    adapters.write(2, state(merged=True))
    path = adapter_path(tmp_path, 2)
    data = path.read_bytes()
    tensors, _ = decode_with_octets(data)
    path.unlink()
    if damage == "cut":
        path.write_bytes(data[:-8])
    if damage == "half of a pair":
        path.write_bytes(encode_tensors({key: value for key, value in tensors.items() if "merged_B" not in key}))
    if damage == "of another model":
        path.write_bytes(encode_tensors({**tensors, "mixer.merged_A.weight": np.ones((3, 5), np.float32)}))
    if damage == "another memory":
        path.write_bytes(data.replace(bytes(range(256)), bytes(256)))
    with pytest.raises(StoreError, match="put the file back") as caught:
        adapters.read(2)
    assert caught.value.round_number == 2
