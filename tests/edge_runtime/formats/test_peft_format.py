"""PEFT's files; that PEFT loads them is tested where PEFT is (tests/exporter)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.errors import TensorError
from edge_runtime.formats import peft_format
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.tensors import decode_tensors


def full_adapter(manifest: Manifest, rank: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    layout = AdapterLayout.of(manifest, Plan.full(manifest), rank)
    return {name: np.full(shape, 0.5, np.float32) for name, shape in layout.shapes.items()}


def test_tensors_carry_the_prefix_of_peft(manifest: Manifest, tmp_path: Path) -> None:
    adapter = full_adapter(manifest, 2)
    peft_format.write_peft(tmp_path / "peft", manifest, adapter, 2, 2.0)
    written = decode_tensors((tmp_path / "peft" / peft_format.WEIGHTS_FILE).read_bytes())
    assert set(written) == {f"base_model.model.{name}" for name in adapter}


def test_alpha_is_scaling_times_rank(manifest: Manifest, tmp_path: Path) -> None:
    peft_format.write_peft(tmp_path, manifest, full_adapter(manifest, 4), 4, 2.0)
    config = json.loads((tmp_path / peft_format.CONFIG_FILE).read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8.0)
    assert config["target_modules"] == ["l0.down", "l0.q", "l1.down", "l1.q"]
    assert config["modules_to_save"] == ["classifier"]
    assert config["task_type"] == "SEQ_CLS"


def test_an_adapter_of_another_rank_leaves_nothing(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(TensorError, match="has shape"):
        peft_format.write_peft(tmp_path / "peft", manifest, full_adapter(manifest, 2), 4, 2.0)
    assert not (tmp_path / "peft").exists()


def test_merged_factors_become_components_of_their_module(manifest: Manifest, tmp_path: Path) -> None:
    adapter = full_adapter(manifest, 2)
    target = next(target for target in manifest.targets if target.module == "l1.q")
    a, b = np.full((3, target.in_features), 2.0, np.float32), np.full((target.out_features, 3), 4.0, np.float32)
    peft_format.write_peft(tmp_path, manifest, adapter, 2, 1.5, merged={"l1.q": (a, b)})
    written = decode_tensors((tmp_path / peft_format.WEIGHTS_FILE).read_bytes())
    new_a, new_b = (written[f"base_model.model.l1.q.lora_{side}.weight"] for side in "AB")
    np.testing.assert_array_equal(new_a, np.concatenate([adapter["l1.q.lora_A.weight"], a]))
    np.testing.assert_array_equal(new_b, np.concatenate([adapter["l1.q.lora_B.weight"], b], axis=1))
    config = json.loads((tmp_path / peft_format.CONFIG_FILE).read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 3.0)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({r"l1\.q": 5}, {r"l1\.q": 7.5})


def test_merged_factors_that_do_not_fit_leave_nothing(manifest: Manifest, tmp_path: Path) -> None:
    factors = np.ones((1, 2), np.float32), np.ones((2, 1), np.float32)
    with pytest.raises(TensorError, match="merged factors"):
        peft_format.write_peft(tmp_path / "peft", manifest, full_adapter(manifest, 2), 2, 1.0, merged={"l1.q": factors})
    assert not (tmp_path / "peft").exists()
