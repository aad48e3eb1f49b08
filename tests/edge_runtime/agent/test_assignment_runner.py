"""One assignment on the runner: what comes down, what goes up, what is refused before any work is done."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge_runtime.agent.assignment_runner import AssignmentRunner, Progress, WorkContext
from edge_runtime.agent.checkpoints import Checkpoints
from edge_runtime.agent.errors import StoppedError
from edge_runtime.agent.methods.lora.method import stand_in_plan
from edge_runtime.agent.pauses import Pauses
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.agent.traffic import Traffic
from edge_runtime.board.guard import PauseLimits
from edge_runtime.board.sensors import Sensors
from edge_runtime.engine import memory
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.errors import InsufficientMemoryError
from edge_runtime.engine.model import MODES, Mode
from edge_runtime.errors import PlanError, TensorError
from edge_runtime.formats import adapter as adapters
from edge_runtime.formats import names
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import Payload, check_payload, decode_payload, encode_payload
from edge_runtime.formats.plan import PackedPlan, Plan
from edge_runtime.wire import chunks
from edge_runtime.wire.messages import Assignment, AssignmentKey, Update, Welcome
from edge_runtime.wire.work import Arm, HyperParameters, LoraWork, Pruning
from exporter.artifact.export import export_model
from tests.conftest import save_bert
from tests.edge_runtime.agent.stage import EXAMPLES
from tests.replies import blob_of, lora_of

Array = npt.NDArray[np.float32]
RANK = 2
NO_CHECKPOINTS = Checkpoints(Path("nowhere"), 0)


@pytest.fixture
def make_runner(tiny_bert_artifact: Path, tmp_path: Path) -> Any:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(EXAMPLES))

    def make(
        memory_limit_bytes: int = 10**12, modes: tuple[Mode, ...] = MODES, artifact: Path = tiny_bert_artifact
    ) -> AssignmentRunner:
        settings = WorkSettings(
            data=data, num_holdout=4, num_threads=1, memory_limit_bytes=memory_limit_bytes, modes=modes
        )
        return AssignmentRunner(Artifact.open(artifact), settings, 0.0)

    return make


@pytest.fixture
def runner(make_runner: Any) -> AssignmentRunner:
    runner: AssignmentRunner = make_runner()
    return runner


def plan_of(manifest: Manifest, ratio: float) -> Plan:
    return stand_in_plan(manifest, Arm(pruning_ratio=ratio, rank=RANK))


def start(manifest: Manifest, plan: Plan, **extras: Any) -> bytes:
    rng = np.random.default_rng(0)
    dense = {spec.name: np.zeros(spec.shape, np.float32) for spec in manifest.dense}
    full = adapters.initial(manifest, dense, RANK, rng)
    return encode_payload(Payload(adapter=adapters.restrict(manifest, full, plan, RANK), **extras))


def run(
    runner: AssignmentRunner,
    blob: bytes,
    plan: Plan,
    prunings: tuple[Pruning, ...] = (),
    stop: threading.Event | None = None,
    checkpoints: Checkpoints | None = None,
    pauses: Pauses | None = None,
    **hyper: Any,
) -> tuple[Update, Payload]:
    given: dict[str, Any] = {
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "lora_scaling": 2.0,
        "max_grad_norm": 1.0,
        "num_warmup_steps": 1,
        "num_local_steps": 4,
        "batch_size": 4,
        "num_accumulation_steps": 1,
        "max_length": 16,
        "seed": 0,
        **hyper,
    }
    assignment = Assignment(
        key=AssignmentKey(run_id="run", round_number=1, device_id="board-7", attempt=1),
        deadline_s=60.0,
        payload=chunks.describe(blob),
        work=LoraWork(
            arm=Arm(pruning_ratio=0.5, rank=RANK),
            plan=plan.packed,
            hyper_parameters=HyperParameters(**given),
            prunings=prunings,
        ),
    )
    welcome = Welcome(
        run_id="run",
        device_id="board-7",
        artifact_url="http://localhost/",
        artifact_digest=runner.digest,
        arms=(lora_of(assignment).arm,),
        batch_size=4,
        max_length=16,
    )
    context = WorkContext(
        welcome=welcome,
        stop=stop or threading.Event(),
        progress=Progress(),
        traffic=Traffic(lambda: (0, 0)),
        fetch_s=0.0,
        checkpoints=checkpoints or NO_CHECKPOINTS,
        pauses=pauses or Pauses(PauseLimits(), Sensors()),
    )
    update, made = runner.run(assignment, blob, context)
    assert blob_of(update).size_bytes == len(made)
    return update, decode_payload(made)


def test_without_extras_an_update_is_the_adapter(runner: AssignmentRunner) -> None:
    manifest = runner.artifact.manifest
    plan = plan_of(manifest, 0.5)
    update, made = run(runner, start(manifest, plan), plan)
    check_payload(manifest, plan, RANK, made, is_update=True)
    assert made.importance == {}
    assert update.measurements.importance_s == 0.0


def test_update_is_under_the_last_plan_with_a_score_per_unit_that_stays(runner: AssignmentRunner) -> None:
    manifest = runner.artifact.manifest
    plans = [plan_of(manifest, ratio) for ratio in (0.0, 0.25, 0.5)]
    prunings = (Pruning(at_step=2, plan=plans[1].packed), Pruning(at_step=4, plan=plans[2].packed))
    update, made = run(runner, start(manifest, plans[0]), plans[0], prunings, importance_every_steps=1)
    check_payload(manifest, plans[2], RANK, made, is_update=True)
    assert {key: scores.size for key, scores in made.importance.items()} == {
        (layer, group): size for layer in range(2) for group, size in (("heads", 2), ("channels", 12))
    }
    assert all(scores.all() for scores in made.importance.values())
    assert update.measurements.importance_s > 0.0
    assert update.evaluation is not None


def test_factors_that_are_not_trained_do_not_go_up(runner: AssignmentRunner) -> None:
    manifest = runner.artifact.manifest
    plan = plan_of(manifest, 0.25)
    _, made = run(runner, start(manifest, plan), plan, trainable="lora_b")
    check_payload(manifest, plan, RANK, made, is_update=True, trainable="lora_b")
    assert not any(names.is_lora_a(name) for name in made.adapter)
    assert all(value.any() for name, value in made.adapter.items() if name.endswith("lora_B.weight"))


def test_class_balance_leaves_a_rare_class_its_say(make_runner: Any, tmp_path: Path) -> None:
    """One red example in forty: trained as they come, red is unlearned; in turns with blue it is not."""
    rows = [f'{{"text": "the blue cat {verb}", "label": "blue"}}' for verb in ("runs", "sings", "sleeps")] * 13
    runner: AssignmentRunner = make_runner()  # its file is read at the first assignment
    (tmp_path / "data.jsonl").write_text("\n".join([*rows, '{"text": "the red cat runs", "label": "red"}']))
    manifest = runner.artifact.manifest
    plan, red = plan_of(manifest, 0.0), manifest.labels.index("red")
    hyper: dict[str, Any] = {"num_local_steps": 12, "weight_decay": 0.0}

    _, natural = run(runner, start(manifest, plan), plan, **hyper)
    _, balanced = run(runner, start(manifest, plan), plan, class_balance=1.0, **hyper)

    def lead(made: Payload) -> float:
        bias = made.adapter["classifier.bias"]
        return float(bias[red] - np.delete(bias, red).max())

    assert lead(natural) < -0.1
    assert abs(lead(balanced)) < 0.05


def test_merged_factors_change_what_is_trained(runner: AssignmentRunner) -> None:
    manifest = runner.artifact.manifest
    plan, rng = Plan.full(manifest), np.random.default_rng(3)
    merged = {
        t.module: (
            rng.normal(0, 0.3, (1, t.in_features)).astype(np.float32),
            rng.normal(0, 0.3, (t.out_features, 1)).astype(np.float32),
        )
        for t in manifest.targets
    }
    plain, _ = run(runner, start(manifest, plan), plan)
    update, made = run(runner, start(manifest, plan, merged=merged), plan)
    assert made.merged == {}
    assert update.train_loss != plain.train_loss


@pytest.mark.parametrize("mode", MODES)
def test_memory_is_that_of_the_first_plan(make_runner: Any, runner: AssignmentRunner, mode: Mode) -> None:
    """The peak is before the first pruning."""
    manifest = runner.artifact.manifest
    full, small = Plan.full(manifest), plan_of(manifest, 0.75)
    limit = memory.estimate_training_bytes(manifest, full, RANK, 4, 16, mode) - 1
    assert memory.estimate_training_bytes(manifest, small, RANK, 4, 16, mode) < limit
    tight = make_runner(memory_limit_bytes=limit, modes=(mode,))
    run(tight, start(manifest, small), small)
    with pytest.raises(InsufficientMemoryError):
        run(tight, start(manifest, full), full, (Pruning(at_step=1, plan=small.packed),))


def test_short_of_memory_an_assignment_is_trained_block_by_block(
    make_runner: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two blocks the last computes first tokens alone, and staged mode saves nothing: here are four."""
    source, deep = save_bert(tmp_path / "deep", num_hidden_layers=4), tmp_path / "artifact"
    export_model(source, "text-classification", deep, labels=["red", "green", "blue"])
    runner = make_runner(artifact=deep)
    manifest = runner.artifact.manifest
    full, small = Plan.full(manifest), plan_of(manifest, 0.75)
    limit = memory.estimate_training_bytes(manifest, full, RANK, 4, 16, "fused") - 1
    assert memory.estimate_training_bytes(manifest, full, RANK, 4, 16, "staged") <= limit
    tight = make_runner(memory_limit_bytes=limit, artifact=deep)
    with caplog.at_level("INFO"):
        update, made = run(tight, start(manifest, full), full)
        run(tight, start(manifest, small), small)
    lines = [record.message for record in caplog.records if record.name == "edge_runtime.agent.methods.lora.method"]
    said = [line for line in lines if "mode," in line]
    assert [message.split(",")[0] for message in said] == ["round 1: staged mode", "round 1: fused mode"]
    expected, roomy = run(runner, start(manifest, full), full)
    assert update.train_loss == pytest.approx(expected.train_loss, rel=1e-5)
    for name, value in roomy.adapter.items():
        np.testing.assert_allclose(made.adapter[name], value, rtol=0, atol=2e-5, err_msg=name)


def test_prunings_that_bring_units_back_are_refused_at_once(runner: AssignmentRunner) -> None:
    manifest = runner.artifact.manifest
    small = plan_of(manifest, 0.5)
    prunings = (Pruning(at_step=4, plan=Plan.full(manifest).packed),)
    with pytest.raises(PlanError, match="cannot bring units back"):
        run(runner, start(manifest, small), small, prunings)


def test_plans_are_opened_once_each_however_many_parts_use_them(
    runner: AssignmentRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By memory estimates, the payload's check, slicing, training, scores, a pruning, checkpoints and the update."""
    manifest = runner.artifact.manifest
    plan, smaller = plan_of(manifest, 0.25), plan_of(manifest, 0.5)
    blob, pruning = start(manifest, plan), Pruning(at_step=3, plan=smaller.packed)
    opened: list[PackedPlan] = []
    unpacked: list[int] = []
    original, unpack = PackedPlan.open, np.unpackbits

    def open_plan(packed: PackedPlan, manifest: Manifest) -> Plan:
        opened.append(packed)
        return original(packed, manifest)

    def unpack_bits(bits: npt.NDArray[np.uint8], **options: Any) -> npt.NDArray[np.uint8]:
        unpacked.append(bits.size)
        return unpack(bits, **options)

    monkeypatch.setattr(PackedPlan, "open", open_plan)
    monkeypatch.setattr(np, "unpackbits", unpack_bits)
    run(runner, blob, plan, (pruning,), checkpoints=Checkpoints(tmp_path, 1), importance_every_steps=1)
    assert opened == [plan.packed, smaller.packed]
    assert len(unpacked) == 2 * len(manifest.groups)


def test_a_payload_that_does_not_fit_is_refused(runner: AssignmentRunner) -> None:
    manifest = runner.artifact.manifest
    plan = Plan.full(manifest)
    scores = {(g.layer, g.group): np.ones(g.num_units, np.float32) for g in manifest.groups}
    with pytest.raises(TensorError, match="only updates do"):
        run(runner, start(manifest, plan, importance=scores), plan)
    with pytest.raises(TensorError, match="has shape"):
        run(runner, start(manifest, plan), plan_of(manifest, 0.5))


class StopAfter(threading.Event):
    """Set once it was asked ``number`` times whether it is."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.num_asked, self._number = 0, number

    def is_set(self) -> bool:
        self.num_asked += 1
        return self.num_asked > self._number


def test_a_stop_is_seen_before_every_micro_batch_and_every_batch_of_an_evaluation(runner: AssignmentRunner) -> None:
    """4 held-out examples in batches of 1, twice, and 2 steps of 8 micro-batches: 24 places, beside those between."""
    manifest = runner.artifact.manifest
    plan = Plan.full(manifest)
    blob = start(manifest, plan)
    hyper: dict[str, Any] = {"num_local_steps": 2, "batch_size": 1, "num_accumulation_steps": 8}
    never = StopAfter(1000)
    run(runner, blob, plan, stop=never, **hyper)
    assert never.num_asked >= 24
    for number in range(never.num_asked):
        stop = StopAfter(number)
        with pytest.raises(StoppedError):
            run(runner, blob, plan, stop=stop, **hyper)
        assert stop.num_asked == number + 1


def held_out(runner: AssignmentRunner, max_length: int) -> set[tuple[int, ...]]:
    runner.load(max_length)
    dataset = runner._holdout
    assert dataset is not None
    return {tuple(dataset.subset(np.array([i])).tokens.tolist()) for i in range(len(dataset))}


def test_the_same_file_gives_the_same_held_out_examples(make_runner: Any, tmp_path: Path) -> None:
    lines = [f'{{"input_ids": [{i}], "label": 0}}' for i in range(4, 24)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    first = make_runner()
    once = held_out(first, 16)
    assert len(once) == 4
    assert held_out(first, 8) == once
    assert held_out(make_runner(), 16) == once


def test_what_is_held_back_is_said(make_runner: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "data.jsonl").write_text("\n".join(f'{{"input_ids": [{i}], "label": 0}}' for i in range(4, 15)))
    with caplog.at_level("INFO", "edge_runtime.agent.assignment_runner"):
        make_runner().load(16)
    assert "9 examples to train on, 2 held back to evaluate on (--holdout, at most 1 in 5)" in caplog.text
