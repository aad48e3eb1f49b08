from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.agent import capabilities
from edge_runtime.wire.measures import Capabilities


def find(path: Path, num_threads: int = 1) -> Capabilities:
    return capabilities.find_capabilities(path, num_threads, 1000)


def test_a_machine_measures_itself(tmp_path: Path) -> None:
    found = find(tmp_path / "c.json")
    assert found.matmul_gflops > 0.01
    assert found.memory_copy_gb_s > 0.01
    assert found.num_cores >= 1
    assert found.memory_bytes > 1_000_000
    assert found.memory_limit_bytes == 1000
    assert "onnxruntime" in found.versions


def test_a_second_start_does_not_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find(tmp_path / "c.json")
    monkeypatch.setattr(capabilities, "measure_matmul", lambda: pytest.fail("measured again"))
    assert find(tmp_path / "c.json") == first


def test_another_number_of_threads_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find(tmp_path / "c.json")
    monkeypatch.setattr(capabilities, "measure_matmul", lambda: 42.0)
    assert find(tmp_path / "c.json", num_threads=2).matmul_gflops == 42.0


@pytest.mark.parametrize("damage", [b"{", b'{"machine": "\xff"}', b"[" * 100_000], ids=["cut", "no UTF-8", "deep"])
def test_a_damaged_cache_is_measured_again(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "c.json").write_bytes(damage)
    assert find(tmp_path / "c.json").matmul_gflops > 0
    assert find(tmp_path / "c.json").matmul_gflops > 0


def test_the_default_limit_is_a_part_of_the_memory() -> None:
    assert 0 < capabilities.default_memory_limit() < capabilities.total_memory()


def test_rates_are_operations_a_second() -> None:
    ticks = iter(float(i) for i in range(1000))
    rate = capabilities.measure_matmul(clock=lambda: next(ticks))
    assert rate == pytest.approx(2e-9 * capabilities.MATRIX_SIZE**3)
