"""PEFT's files; that PEFT loads them is tested where PEFT is (tests/exporter)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.wire import peft_format
from edge_runtime.wire.adapter import AdapterLayout
from edge_runtime.wire.errors import TensorError
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.plan import Plan
from edge_runtime.wire.tensors import decode_tensors


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
