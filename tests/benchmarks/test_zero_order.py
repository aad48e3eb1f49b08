"""The script that compares methods by counted work plays the real methods, counts what they did, and goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import zero_order, zero_order_cuts, zero_order_gradient, zero_order_table
from benchmarks.counted_fleet import Fleet
from broker_server.benchmark.products import products_of_forward, products_of_step, total_flops
from broker_server.experiments.run.resolve import resolve
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.formats.plan import Plan
from edge_runtime.zero_order.parts import TunedParts

DEVICES, STEPS, BATCH, LENGTH = 2, 3, 4, 8
OUTER, INNER = 4, 4
TEXTS = {"red": "the cat sat on the mat", "green": "the dog sat on the mat", "blue": "on the mat the cat sat"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Texts of one length, so that every batch has the same shape."""
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for label, text in TEXTS.items()) * 12)
    return path


@pytest.fixture
def fleet(tiny_bert_artifact: Path, data: Path, tmp_path: Path) -> Any:
    """A function that gives a fleet whose devices all have the same examples."""
    artifact = Artifact.open(tiny_bert_artifact)
    dataset = load_examples(data, artifact, LENGTH)
    assert len(set(dataset.lengths)) == 1

    def made(method: str, **more: object) -> Fleet:
        given = {"local_steps": STEPS, "batch_size": BATCH, "max_length": LENGTH, "devices": DEVICES, "split": "iid"}
        settings = resolve(
            {
                "task": "text-classification",
                "model": str(tiny_bert_artifact),
                "data": str(data),
                "method": method,
                "emulate": "none",
                "rounds": 9,
                **given,
                **more,
            }
        )
        folder = tmp_path / method
        folder.mkdir()
        return Fleet(artifact, settings, dict.fromkeys(("one", "two"), dataset), folder)

    return made


def forward(artifact: Artifact, layers: range, *, is_scored: bool, rank: int = 8, batch: int = BATCH) -> int:
    """Texts have 6 words, and a token at either end."""
    return total_flops(products_of_forward(artifact.manifest, rank, batch, LENGTH, layers, is_scored=is_scored))


@pytest.mark.parametrize("method", ["decomfl", "fedspzo", "topzo"])
def test_a_step_takes_the_passes_that_the_document_says(fleet: Any, tiny_bert_artifact: Path, method: str) -> None:
    played = fleet(method)
    artifact = Artifact.open(tiny_bert_artifact)
    model = played.play_round(1, played.initial())
    probe = forward(artifact, range(2), is_scored=True, rank=0, batch=1)
    assert played.counts["flops"] == DEVICES * 3 * 12 * probe

    before = played.counts["flops"]
    after = played.play_round(2, model)
    lower, upper = (forward(artifact, range(1), is_scored=False), forward(artifact, range(1, 2), is_scored=True))
    passes = {
        "decomfl": 2 * OUTER * (lower + upper),
        "fedspzo": 2 * (lower + INNER * upper),
        "topzo": lower + 2 * INNER * upper,
    }
    assert played.counts["flops"] - before == DEVICES * STEPS * passes[method]
    assert len(played.losses) == DEVICES * STEPS
    changed = [name for name in model.adapter if np.any(after.adapter[name] != model.adapter[name])]
    assert changed
    assert all("lora_A" not in name for name in changed)


def test_a_device_that_missed_nothing_pulls_the_model_once(fleet: Any) -> None:
    played = fleet("topzo")
    model, down, up = played.initial(), [], []
    for number in range(1, 5):
        before = dict(played.counts)
        model = played.play_round(number, model)
        down.append(played.counts["bytes_down"] - before.get("bytes_down", 0))
        up.append(played.counts["bytes_up"] - before.get("bytes_up", 0))
    payload = 4 * sum(value.size for value in model.adapter.values())
    assert down[1] > DEVICES * payload
    assert max(down[2:]) < DEVICES * 1500
    assert max(up[1:]) < DEVICES * 900


def test_some_devices_take_part_in_a_round_and_others_in_the_next(fleet: Any, tmp_path: Path) -> None:
    played = fleet("mezo", zo_head="as-it-is")
    model, seen = played.initial(), []
    for number in range(1, 6):
        model = played.play_round(number, model, 1)
        assert len(played.losses) == STEPS
        seen.append({path.name for path in (tmp_path / "mezo").glob("*.reply")})
    assert seen[0] < seen[-1] == {"one.reply", "two.reply"}


def test_first_order_steps_count_with_their_backward_pass(fleet: Any, tiny_bert_artifact: Path) -> None:
    played = fleet("fedit", learning_rate=1e-3)
    manifest = Artifact.open(tiny_bert_artifact).manifest
    model = played.initial()
    after = played.play_round(1, model)

    step = total_flops(products_of_step(manifest, Plan.full(manifest), 8, BATCH, LENGTH))
    assert played.counts["flops"] == DEVICES * STEPS * step
    size = 4 * sum(value.size for value in model.adapter.values())
    assert played.counts["bytes_up"] > DEVICES * size
    assert any(np.any(after.adapter[name] != model.adapter[name]) for name in model.adapter)


def test_runs_start_from_one_head_and_are_not_run_again(
    tiny_bert_artifact: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = [str(tiny_bert_artifact), "--train", str(data), "--out", str(out), "--devices", "2", "--steps", "2"]
    given += ["--examples", "24", "--batch-size", "4", "--max-length", "8", "--budget", "1e-6", "--seeds", "0,1"]
    runs = ["--run", "decomfl@0.01", "--run", "fedit@0.001", "--run", "topzo@0.02,zo_cut=1,zo_inner=8"]
    zero_order.main([*given, *runs])

    results = {path.name: json.loads(path.read_text()) for path in out.glob("*.json")}
    assert len(results) == 6
    starts = {(result["points"][0]["flops"], result["points"][0]["loss"]) for result in results.values()}
    assert len(starts) == 1
    assert all(result["points"][-1]["flops"] > 1e6 for result in results.values())
    capsys.readouterr()
    zero_order.main([*given, *runs])
    assert capsys.readouterr().err == ""

    zero_order_table.main([str(out), "--json", str(tmp_path / "all.json")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 3
    merged = json.loads((tmp_path / "all.json").read_text())
    assert [run["seed"] for run in merged["runs"]] == [0, 1] * 3


def result_of(run: str, seed: int, *losses: float, tflop: float) -> dict[str, Any]:
    """A result: its start, and its end, where the loss on held-out and own examples is told."""
    start = {"loss": 0.5, "own_loss": 0.4, "accuracy": 0.8, "flops": 2e12, "bytes_up": 100, "bytes_down": 0}
    end = start | {"loss": losses[0], "own_loss": losses[1], "flops": (2 + tflop) * 1e12, "bytes_up": 2100}
    return {"run": run, "seed": seed, "options": {"devices": 2}, "points": [start, end]}


def test_ratios_are_those_of_sums_over_seeds_and_no_ratio_is_given_to_what_did_not_fall() -> None:
    results = [
        result_of("decomfl@1", 0, 0.55, 0.40, tflop=2.0),
        result_of("decomfl@1", 1, 0.50, 0.38, tflop=2.0),
        result_of("topzo@1", 0, 0.45, 0.39, tflop=1.0),
        result_of("topzo@1", 1, 0.45, 0.37, tflop=1.0),
        result_of("fedit@1", 0, 0.40, 0.30, tflop=1.0),
    ]
    rows = [line.strip("|").split("|") for line in zero_order_table.table(results, "decomfl")]
    assert len({len(row) for row in rows}) == 1
    base, top, one_seed = ([cell.strip() for cell in row] for row in rows[2:])
    assert base[-4:] == ["-", "1.00", "-", "1.00"]
    assert top[2] == "0.0500 (0.0500, 0.0500)"
    assert top[-4:] == ["-", "4.00", "-", "2.00"]
    assert one_seed[-4:] == ["-", "-", "-", "-"]


def test_a_ratio_of_three_seeds_has_the_jackknife_s_error() -> None:
    """Ratios without one seed are 2.5, 2 and 1.5."""
    fallen = {"decomfl@1": (0.1, 0.1, 0.1), "topzo@1": (0.1, 0.2, 0.3)}
    results = [
        result_of(run, seed, 0.5 - one, 0.4 - (0.05 if run == "topzo@1" else 0.01 * (seed - 1)), tflop=1.0)
        for run, each in fallen.items()
        for seed, one in enumerate(each)
    ]
    row = zero_order_table.table(results, "decomfl")[-1].strip("|").split("|")
    error = np.sqrt(2 / 3 * (0.5**2 + 0.5**2))
    assert row[-4].strip() == f"2.00 +- {error:.2f}"
    assert row[-3].strip() == "-", "the others' own loss did not fall"


def test_squares_of_gradients_are_without_bias() -> None:
    """Noise that is 100 times the gradient's square in each batch."""
    rng, size, count = np.random.default_rng(0), 4, 400
    mean, other = np.zeros(50), np.zeros(50)
    mean[:5], other[:] = 1.0, 0.5
    own = mean + rng.normal(0, 500**0.5 / 50**0.5, (count, 50))
    found = zero_order_gradient.moments(own, np.tile(other, (3, 1)), size)
    assert found["squared_norm"] == pytest.approx(5, abs=1)
    assert found["variance"] == pytest.approx(500 * size, rel=0.05)
    assert found["held_out"] == pytest.approx(2.5, abs=2)


def test_every_tuned_element_is_in_one_block_and_a_softmax_bends_upwards(
    tiny_bert_artifact: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(tiny_bert_artifact), "--train", str(data), "--test", str(data), "--devices", "2", "--split", "iid"]
    given += ["--examples", "36", "--batch-size", "6", "--max-length", "8", "--eval-examples", "36"]
    zero_order_gradient.main([*given, "--num-traces", "16", "--json", str(tmp_path / "figures.json")])

    figures = json.loads((tmp_path / "figures.json").read_text())
    parts = TunedParts.of(Artifact.open(tiny_bert_artifact).manifest, 8, 0)
    assert sum(row["elements"] for row in figures.values()) == sum(tensor.size for tensor in parts.upper)
    assert list(figures) == ["0", "1", "head"]
    for row in figures.values():  # held-out examples are the same ones
        assert row["held_out"] == pytest.approx(row["squared_norm"] + row["variance"] / 36, rel=1e-3)
    assert figures["head"]["trace"] > 3 * figures["head"]["trace_error"]
    assert len(capsys.readouterr().out.splitlines()) == 2 + 3


def test_cuts_are_told_where_there_is_a_gradient(
    tiny_bert_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"squared_norm": 0.1, "variance": 1.0, "trace": 1.0}
    figures, given = tmp_path / "figures.json", [str(tiny_bert_artifact), str(tmp_path / "figures.json")]
    figures.write_text(json.dumps({"0": row, "1": row, "head": row}))
    zero_order_cuts.main(given)
    table = capsys.readouterr().out.splitlines()
    assert table[2].startswith("| 1 | 0.33 |")
    assert table[-1].startswith("--zo-move-cut from 1: of 20 runs end 20 at 1; mean progress ")
    figures.write_text(json.dumps({"0": row | {"squared_norm": -0.1}, "1": row, "head": row}))
    with pytest.raises(SystemExit):
        zero_order_cuts.main(given)
    assert "a gradient is not told from 0: measure it with more --num-batches" in capsys.readouterr().err


def test_progress_is_the_most_that_a_step_lowers_a_quadratic() -> None:
    """Of sums of the step's own terms: all rates are tried."""
    rows = [
        {"squared_norm": 0.2, "variance": 3.0, "trace": 0.5},
        {"squared_norm": 0.1, "variance": 1.0, "trace": 2.0},
        {"squared_norm": -0.1, "variance": 2.0, "trace": 1.0},
    ]
    lower, upper = (zero_order_cuts.Part.of(some, 10) for some in (rows[:1], rows[1:]))
    assert (lower.signal, upper.signal, upper.seen, upper.trace) == pytest.approx((0.2, 0.1, 0.4, 3.0))

    def most(ratio: float) -> float:
        rates = np.linspace(1e-3, 2, 4000)
        first, second = ratio * rates, rates
        moved = first * lower.signal + second * upper.signal
        bent = first**2 * lower.trace * (lower.seen + upper.seen / 4) + second**2 * upper.trace * 0.9 / 4
        return float((moved - bent / 2).max())

    for ratio in (0.1, 0.5, 1.0):
        assert zero_order_cuts.progress(lower, upper, ratio, 3.0) == pytest.approx(2 * most(ratio) / 3, rel=1e-4)
    best = zero_order_cuts.best_ratio(lower, upper)
    assert all(most(best) >= most(best * factor) for factor in (0.8, 1.25))
