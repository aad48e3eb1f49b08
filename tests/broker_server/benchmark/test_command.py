"""``fedspine bench engine`` as a whole: real contenders on tiny models, and what a person may get wrong."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from broker_server import cli
from broker_server.benchmark.schema import BenchReport, decode_bench
from broker_server.benchmark.settings import LOSS_TOLERANCE
from edge_runtime.errors import ExitCode
from tests.e2e.processes import Run, assert_gone

SMALL = ("--batch-size", "2", "--length", "8", "--runs", "1", "--steps", "2", "--threads", "1")


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary folders."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


def bench(*arguments: str) -> Run:
    """Run to the end."""
    with Run("engine", *arguments, *SMALL, command="bench") as run:
        run.wait()
    return run


def check(report: BenchReport) -> None:
    """Check what holds of every benchmark."""
    assert report.same_work
    for name, engine in report.engines.items():
        assert 0 < engine.step_s_spread.least <= engine.step_s_p50 <= engine.step_s_spread.most < engine.cold_start_s
        assert engine.tokens_per_s == pytest.approx(16 / engine.step_s_p50)
        assert 30e6 < engine.peak_rss_bytes < 2e9
        assert engine.num_trainable > 0
        if engine.reference is not None:
            other = report.engines[engine.reference]
            assert engine.loss_gap is not None
            assert abs(engine.loss_after_50 - other.loss_after_50) <= engine.loss_gap <= LOSS_TOLERANCE, name
            assert engine.num_trainable == other.num_trainable
    assert report.limit.step_flops > 0
    assert 0 < report.limit_ratio <= report.limit_ratio_per_shape
    assert report.limit_ratio <= report.limit_ratio_p50
    assert {"system", "processor", "cores", "onnxruntime", "load_before", "load_after"} <= set(report.machine)


@pytest.mark.slow
def test_all_engines_train_the_same_encoder(tiny_bert_model: Path, scratch: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    options = ("--task", "text-classification", "--targets", "query,value", "--arm", "0.0:4", "--num-labels", "3")
    run = bench("--model", str(tiny_bert_model), *options, "--json", str(file))

    assert run.process.returncode == 0, run.errors
    report = decode_bench(file.read_bytes())
    check(report)
    assert list(report.engines) == ["fused", "staged", "torch"]
    assert "torch" in report.engines["torch"].versions
    assert "onnxruntime" not in report.engines["torch"].versions
    for name in report.engines:
        assert any(line.startswith(name) for line in run.output.splitlines())
        assert f"run 1 of 1: {name}: " in run.errors
    assert str(tmp_path) not in file.read_text()
    assert list(scratch.glob("fedspine-*")) == []


@pytest.mark.slow
def test_a_pruned_decoder_stands_beside_the_whole_one(tiny_llama_model: Path, scratch: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text("what was there before")
    run = bench("--model", str(tiny_llama_model), "--task", "causal-lm", "--arm", "0.5:4", "--json", str(file))

    assert run.process.returncode == 0, run.errors
    report = decode_bench(file.read_bytes())
    check(report)
    arms = {name: engine.arm for name, engine in report.engines.items()}
    assert arms == {
        "fused": "0.5:4",
        "staged": "0.5:4",
        "fused-unpruned": "0.0:4",
        "staged-unpruned": "0.0:4",
        "torch": "0.0:4",
    }
    assert report.engines["fused"].num_trainable < report.engines["torch"].num_trainable
    assert list(scratch.glob("fedspine-*")) == []


@pytest.mark.slow
def test_a_quantised_base_is_measured_without_a_peer(tiny_llama_model: Path, scratch: Path) -> None:
    run = bench("--model", str(tiny_llama_model), "--task", "causal-lm", "--base", "nf4", "--against", "")

    assert run.process.returncode == 0, run.errors
    names = {line.split()[0]: line.split()[2] for line in run.output.splitlines() if line.startswith(("fused", "st"))}
    assert names == {"fused": "nf4", "staged": "nf4"}
    assert list(scratch.glob("fedspine-*")) == []


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["0.0:4", "0.5:4"])
def test_onnxruntime_training_does_the_same_work(
    arm: str, tiny_llama_model: Path, scratch: Path, tmp_path: Path
) -> None:
    if "FEDSPINE_ORT_TRAINING_PYTHON" not in os.environ:
        pytest.skip("needs onnxruntime-training: scripts/test-ort-training makes its environment")
    file = tmp_path / "bench.json"
    options = ("--task", "causal-lm", "--against", "ort-training", "--arm", arm, "--json", str(file))
    run = bench("--model", str(tiny_llama_model), *options)

    assert run.process.returncode == 0, run.errors
    report = decode_bench(file.read_bytes())
    check(report)
    assert {name: engine.arm for name, engine in report.engines.items()} == {
        "fused": arm,
        "staged": arm,
        "ort-training": arm,
    }
    assert report.engines["ort-training"].versions["onnxruntime-training"] == "1.19.2"
    assert "bin/python" not in file.read_text()
    assert list(scratch.glob("fedspine-*")) == []


@pytest.mark.slow
def test_what_the_export_refuses_has_its_own_code(tiny_llama_model: Path, scratch: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    config = json.loads((tiny_llama_model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    run = bench("--model", str(model), "--task", "causal-lm", "--json", str(tmp_path / "bench.json"))

    assert run.process.returncode == ExitCode.MODEL_UNSUPPORTED
    assert "fedspine: error: export: " in run.errors
    assert not (tmp_path / "bench.json").exists()
    assert list(scratch.glob("fedspine-*")) == []


@pytest.mark.slow
def test_examples_longer_than_the_model_allows_are_refused(tiny_llama_model: Path, scratch: Path) -> None:
    options = ("--model", str(tiny_llama_model), "--task", "causal-lm", *SMALL, "--length", "65")
    with Run("engine", *options, command="bench") as run:
        run.wait()

    assert run.process.returncode == ExitCode.USAGE
    assert "--length 65 is too long for tiny-llama: give 64 tokens or fewer" in run.errors
    assert list(scratch.glob("fedspine-*")) == []


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(
    number: signal.Signals, tiny_llama_model: Path, scratch: Path, tmp_path: Path
) -> None:
    file = tmp_path / "bench.json"
    options = ("--model", str(tiny_llama_model), "--task", "causal-lm", "--json", str(file), *SMALL, "--runs", "500")
    with Run("engine", *options, command="bench") as run:
        wait_for_a_request(scratch, run)
        while not (processes := run.descendants()):  # between two contenders there is none
            time.sleep(0.01)
        run.send(number)
        run.wait()

    assert run.process.returncode == ExitCode.INTERRUPTED
    assert run.errors.splitlines()[-1] == "fedspine: error: interrupted; all processes ended, nothing was written"
    assert processes
    assert_gone(processes)
    assert not file.exists()
    assert list(scratch.glob("fedspine-*")) == []


def wait_for_a_request(scratch: Path, run: Run) -> None:
    """Until the second contender was started."""
    give_up_at = time.monotonic() + 300
    while not list(scratch.glob("fedspine-bench-*/staged-0.json")):
        assert run.process.poll() is None, run.process.communicate()
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["--against", "tensorflow"], ExitCode.USAGE, "not known; known: torch, ort-training"),
        (["--against", "ort-training", "--ort-python", "none"], ExitCode.MISSING_DEPENDENCY, "setup-ort-training"),
        (["--arm", "2:8"], ExitCode.ARM_OUT_OF_RANGE, "2"),
        (["--arm", "0.5"], ExitCode.ARM_OUT_OF_RANGE, "RATIO:RANK"),
        (["--task", "chess"], ExitCode.USAGE, "task is 'chess'"),
        (["--runs", "0"], ExitCode.USAGE, "runs is 0"),
        (["--threads", "-1"], ExitCode.USAGE, "threads is -1"),
        (["--base", "int2"], ExitCode.USAGE, "base is 'int2'"),
        (["--json", "none/bench.json"], ExitCode.USAGE, "has no folder"),
        (["--json", "."], ExitCode.USAGE, "is a directory"),
        (["--model", "./no/model"], ExitCode.MODEL_NOT_FOUND, "does not exist"),
        (["--nope"], ExitCode.USAGE, "--nope"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_a_person_gets_wrong_is_one_line_and_a_code(
    arguments: list[str],
    code: ExitCode,
    part: str,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(scratch)
    needed = ["--model", "someone/model", "--task", "causal-lm"]
    assert cli.call(["bench", "engine", *needed, *arguments]) == code  # of an option that is given twice, the last
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fedspine: error: ")
    assert part in line
    assert list(scratch.glob("fedspine-*")) == []
