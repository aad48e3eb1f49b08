"""The source and the place of a compact model: chosen, refused, and nothing half-written."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

from edge_runtime.errors import ExitCode
from edge_runtime.formats.manifest import digest_of
from edge_runtime.formats.tensors import decode_tensors, encode_tensors
from edge_runtime.inference import CompactModel
from edge_runtime.system.files import DiskFullError
from exporter.compact.export import compact_run
from exporter.compact.source import read_plan, read_source
from exporter.errors import CompactInputError, CompactRatioError, OutputExistsError
from tests.conftest import Disk


@pytest.mark.parametrize(("asked", "taken"), [(None, 10), (0, 0), (2, 2)])
def test_adapter_is_the_rounds_or_the_last(bert_run: Path, asked: int | None, taken: int) -> None:
    assert read_source(bert_run, round_number=asked).round_number == taken


def test_an_existing_directory_is_kept_unless_forced(bert_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "compact"
    compact_run(bert_run, 0.0, out)

    with pytest.raises(OutputExistsError, match="--force") as refusal:
        compact_run(bert_run, 0.5, out)
    assert refusal.value.exit_code is ExitCode.USAGE
    assert CompactModel.open(out).info.pruning_ratio == 0.0
    compact_run(bert_run, 0.5, out, force=True)

    assert CompactModel.open(out).info.pruning_ratio == 0.5
    assert list(tmp_path.iterdir()) == [out]


def test_force_replaces_nothing_but_compact_models(bert_run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")

    with pytest.raises(OutputExistsError, match="no compact model"):
        compact_run(bert_run, 0.0, tmp_path, force=True)

    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("quantize", "num_models"), [(None, 0.7), ("int8", 1.5)], ids=["no room for the graph", "no room to quantise"]
)
def test_a_full_disk_has_its_exit_code(
    quantize: Any, num_models: float, run_dir: Path, tmp_path: Path, small_disk: Disk
) -> None:
    """The disk holds so many times the graph."""
    compact_run(run_dir, 0.0, tmp_path / "whole")
    disk = small_disk(int(num_models * (tmp_path / "whole" / "model.onnx").stat().st_size))

    with pytest.raises(DiskFullError) as refusal:
        compact_run(run_dir, 0.0, disk / "compact", quantize=quantize)

    assert refusal.value.exit_code is ExitCode.DISK_FULL
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_sparsity_out_of_range_is_refused(bert_run: Path, tmp_path: Path, sparsity: float) -> None:
    with pytest.raises(CompactRatioError, match="expected 0 or more and less than 1") as refusal:
        compact_run(bert_run, sparsity, tmp_path / "compact")

    assert refusal.value.exit_code is ExitCode.ARM_OUT_OF_RANGE
    assert list(tmp_path.iterdir()) == []


def _empty_adapters(run: Path) -> None:
    shutil.rmtree(run / "adapters")
    (run / "adapters").mkdir()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no run": shutil.rmtree,
    "no adapters": lambda run: shutil.rmtree(run / "adapters"),
    "empty adapters": _empty_adapters,
    "cut adapter": lambda run: _truncate(run / "adapters" / "round-0010.safetensors"),
    "no metadata": lambda run: (run / "adapters" / "round-0010.safetensors").write_bytes(
        encode_tensors({"x": np.zeros(1, np.float32)})
    ),
    "no artifact": lambda run: shutil.rmtree(run / "artifacts"),
    "changed manifest": lambda run: _truncate(next((run / "artifacts").iterdir()) / "manifest.json"),
    "cut base": lambda run: _truncate(next((run / "artifacts").iterdir()) / "base.safetensors"),
    "no importance": lambda run: (run / "importance.safetensors").unlink(),
    "cut importance": lambda run: _truncate(run / "importance.safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_refused_and_nothing_is_written(bert_run: Path, tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(bert_run, run)
    DAMAGE[damage](run)
    out = tmp_path / "out"
    out.mkdir()

    with pytest.raises(CompactInputError) as refusal:
        compact_run(run, 0.25, out / "compact")

    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code is ExitCode.ARTIFACT_CORRUPTED
    assert list(out.iterdir()) == []


def test_what_a_method_remembers_is_no_part_of_the_model(bert_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(bert_run, run)
    path = run / "adapters" / "round-0010.safetensors"
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    octets = {"memory.log": np.arange(9, dtype=np.uint8)}
    path.write_bytes(encode_tensors(decode_tensors(path.read_bytes()), metadata=metadata, octets=octets))
    before, after = read_source(bert_run), read_source(run)
    assert before.adapter.keys() == after.adapter.keys()
    assert all(np.array_equal(value, after.adapter[name]) for name, value in before.adapter.items())


def test_a_round_that_does_not_exist_is_refused(bert_run: Path, tmp_path: Path) -> None:
    with pytest.raises(CompactInputError, match="no round 3; it has 0 to 10"):
        compact_run(bert_run, 0.25, tmp_path / "compact", round_number=3)


def note_digest(run_dir: Path, round_number: int, digest: str | None, of: str = "adapter") -> None:
    """Write a round's record into a database of the run, as far as the digest of one of its files goes."""
    with contextlib.closing(sqlite3.connect(run_dir / "state.sqlite")) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS rounds (round_number INTEGER PRIMARY KEY, record TEXT)")
        record = json.dumps({"files": {of: digest}} if digest else {})
        connection.execute("INSERT OR REPLACE INTO rounds VALUES (?, ?)", (round_number, record))


def test_an_adapter_that_is_not_the_recorded_one_is_refused(bert_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(bert_run, run_dir)
    path = run_dir / "adapters" / "round-0002.safetensors"
    for digest in (None, digest_of(path.read_bytes())):  # of an earlier release, and as it was written
        note_digest(run_dir, 2, digest)
        assert read_source(run_dir, round_number=2).round_number == 2
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CompactInputError, match="not the file that was written"):
        read_source(run_dir, round_number=2)
    assert read_source(run_dir, adapter=path).round_number == 2  # asked for by name


def test_importance_that_is_not_the_recorded_one_is_refused(bert_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(bert_run, run_dir)
    path, manifest = run_dir / "importance.safetensors", read_source(bert_run).manifest
    plans = []
    for digest in (None, digest_of(path.read_bytes())):  # of an earlier release, and as it was written
        note_digest(run_dir, 10, digest, of="importance")
        plans.append(read_plan(run_dir, manifest, 0.25))
    assert plans[0] == plans[1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CompactInputError, match="not the file that was written"):
        read_plan(run_dir, manifest, 0.25)


def test_a_database_that_is_none_is_passed_over(bert_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(bert_run, run_dir)
    (run_dir / "state.sqlite").write_bytes(b"not a database, but long enough to be looked at " * 99)
    assert read_source(run_dir, round_number=2).round_number == 2
