"""Global adapters on disk: with what was merged, beside it in PEFT's format, and refused when damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from broker_server.errors import StoreError
from broker_server.methods.aggregation import Aggregated
from broker_server.serving.storage.adapters import PEFT_FOLDER, GlobalAdapters, adapter_path
from edge_runtime.formats import names, peft_format
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.tensors import decode_tensors, decode_with_octets, encode_tensors
from tests.broker_server import tiny

MANIFEST = tiny.manifest()


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
