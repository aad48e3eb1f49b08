"""``fedspine compare`` as a whole: real runs, interrupted and resumed, and what is left of them."""

from __future__ import annotations

import csv
import json
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_server.experiments.compare.summary_schema import Summary, decode_summary
from broker_server.experiments.run.docstrings import docstring_examples, standard_library
from edge_runtime.errors import ExitCode
from tests.e2e.processes import Run, assert_gone, error_line

QUICK = Path(__file__).resolve().parents[2] / "benchmarks" / "compare" / "quick.toml"
TIMEOUT_S = 900.0


def _compare(*arguments: str) -> Run:
    """Run a comparison to its end."""
    with Run(*arguments, command="compare") as run:
        run.wait(TIMEOUT_S)
    return run


def _wait_for(path: Path, run: Run) -> None:
    give_up_at = time.monotonic() + TIMEOUT_S
    while not path.exists():
        assert run.process.poll() is None, run.process.communicate()
        assert time.monotonic() < give_up_at, f"{path} was not written"
        time.sleep(0.05)


def _summary(root: Path) -> Summary:
    return decode_summary((root / "summary.json").read_bytes())


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int | float):
        yield float(value)


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    """The quick comparison, whose runs end with a measurement on 54 held-out examples where it has 539."""
    held_out = tmp_path / "held-out.jsonl"
    examples = docstring_examples(standard_library())[::100]
    held_out.write_text("".join(json.dumps(example) + "\n" for example in examples), encoding="utf-8")
    file = tmp_path / "quick.toml"
    text = QUICK.read_text(encoding="utf-8")
    file.write_text(text.replace("[run]\n", f"[run]\ntest = {json.dumps(str(held_out))}\n", 1), encoding="utf-8")
    return file


@pytest.mark.e2e
@pytest.mark.slow
def test_the_quick_comparison_is_sane_and_goes_on_after_an_interruption(quick: Path, tmp_path: Path) -> None:
    """Sanity, not speed: what a comparison of the whole system must be able to do, at its smallest."""
    root = tmp_path / "out"
    table = tmp_path / "rows.csv"
    arguments = (str(quick), "--quick", "--out", str(root), "--csv", str(table))
    first, second = root / "runs" / "fedspine" / "seed-0", root / "runs" / "fedit" / "seed-0"
    with Run(*arguments, command="compare") as run:
        _wait_for(second / "updates", run)
        processes = run.descendants()
        run.send(signal.SIGINT)
        assert run.wait() == ExitCode.INTERRUPTED
    assert "the same command goes on" in error_line(run)
    assert_gone(processes)
    kept = (first / "report.json").read_bytes()
    begun = json.loads((second / "job.json").read_text(encoding="utf-8"))["run_id"]

    again = _compare(*arguments)

    assert again.process.returncode == 0, again.errors
    assert "1 of them finished before" in again.output
    assert (first / "report.json").read_bytes() == kept
    assert json.loads((second / "job.json").read_text(encoding="utf-8"))["run_id"] == begun
    assert not (first / "devices").exists()
    _check_sane(_summary(root))
    assert all(math.isfinite(number) for number in _numbers(json.loads((root / "summary.json").read_text())))
    assert "<svg" in (root / "comparison.html").read_text(encoding="utf-8")
    assert "| FedSpine |" in (root / "comparison.md").read_text(encoding="utf-8")
    _check_rows(table)


def _check_sane(summary: Summary) -> None:
    assert (summary.clock, summary.failed, summary.missing) == ("emulated", (), ())
    assert set(summary.methods) == {"fedspine", "fedit", "loraprune", "oracle"}
    for method in summary.methods.values():
        assert method.num_finished == 1
        assert set(method.outcomes) == {"accepted"}
        assert method.final_perplexity
        assert method.final_perplexity.median is not None
        assert method.perplexity_at_sparsity
        assert method.perplexity_at_sparsity.median is not None
        assert method.curve[-1].quality < method.curve[0].quality, "on the same examples"
        assert (method.total_time_s.median or 0) > 0
        assert 0 <= (method.idle_ratio.median or -1) < 1
        assert {point.device_class for point in method.arms} == {"tx2", "nx", "agx"}
    assert summary.methods["oracle"].regret.median == 0.0
    assert summary.methods["fedspine"].regret.median is not None
    assert {point.values["pruning_ratio"] for point in summary.methods["fedit"].arms} == {0.0}


def _check_rows(path: Path) -> None:
    """Four methods, one seed, three devices in two rounds, and a row for what was before training."""
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 4 * (1 + 2 * 3)
    assert {row["method"] for row in rows} == {"fedspine", "fedit", "loraprune", "oracle"}
    played = [row for row in rows if row["device_id"]]
    assert {row["outcome"] for row in played} == {"accepted"}
    for name in ("rank", "num_steps", "completion_s", "bytes_up", "bytes_down", "train_loss", "round_perplexity"):
        assert all(float(row[name]) > 0 for row in played), name


@pytest.fixture(scope="module")
def two_methods(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert_model: Path, train_file: Path, held_out_file: Path
) -> Path:
    """A comparison of two methods, one of which gives its devices too little memory."""
    path = tmp_path_factory.mktemp("two-methods") / "compare.toml"
    path.write_text(
        f"""
title = "Tiny"
methods = ["fits", "starves"]
seeds = [3]
target = 0.1
[run]
model = {json.dumps(str(tiny_bert_model))}
task = "text-classification"
data = {json.dumps(str(train_file))}
test = {json.dumps(str(held_out_file))}
devices = 2
rounds = 1
local_steps = 2
batch_size = 4
max_length = 16
arms = "0.0:4,0.5:2"
sparsity = 0.5
[method.fits]
scheduler = "uniform"
[method.starves]
device_memory_mb = 1
"""
    )
    return path


@pytest.fixture(scope="module")
def half_failed(two_methods: Path) -> tuple[Path, Run]:
    """The output of that comparison, of which one method finished, and its process."""
    root = two_methods.parent / "out"
    return root, _compare(str(two_methods), "--out", str(root))


@pytest.mark.e2e
def test_a_run_that_fails_does_not_lose_the_others(two_methods: Path, half_failed: tuple[Path, Run]) -> None:
    root, run = half_failed

    assert run.process.returncode == ExitCode.RUN_FAILED
    line = error_line(run)
    assert "1 of 2 runs failed: starves seed 3" in line
    assert "the same command runs these again" in line
    summary = _summary(root)
    assert [(failed.method, failed.seed) for failed in summary.failed] == [("starves", 3)]
    assert summary.methods["fits"].num_finished == 1
    assert summary.methods["fits"].time_to_target_s.num_known == 1
    assert len(list((root / "artifacts").iterdir())) == 1

    only = _compare(str(two_methods), "--out", str(root), "--method", "fits")
    assert only.process.returncode == 0, only.errors
    assert _summary(root).missing == ("starves seed 3",)


@pytest.mark.e2e
def test_runs_with_other_settings_are_not_mixed_in(
    two_methods: Path, half_failed: tuple[Path, Run], tmp_path: Path
) -> None:
    root, _ = half_failed
    before = (root / "summary.json").read_bytes()
    other = tmp_path / "compare.toml"
    other.write_text(two_methods.read_text().replace("rounds = 1", "rounds = 2"))

    run = _compare(str(other), "--out", str(root), "--method", "fits")

    assert run.process.returncode == ExitCode.RUN_EXISTS
    assert "was run with rounds = 1, but the comparison now says 2" in error_line(run)
    assert (root / "summary.json").read_bytes() == before


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('title = "x"', "the file lacks the key 'methods'"),
        ('title = "x"\nmethods = ["chess"]\n[run]\n', "method 'chess' is not known"),
    ],
    ids=["no methods", "unknown method"],
)
def test_what_is_wrong_is_said_in_a_line_and_leaves_nothing(text: str, part: str, tmp_path: Path) -> None:
    config = tmp_path / "compare.toml"
    config.write_text(text)

    run = _compare(str(config), "--out", str(tmp_path / "out"))

    assert run.process.returncode == ExitCode.USAGE
    assert part in error_line(run)
    assert not (tmp_path / "out").exists()
