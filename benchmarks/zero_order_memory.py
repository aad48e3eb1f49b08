"""A device's memory by method: ``python -m benchmarks.zero_order_memory ARTIFACT...``.

Every artifact is evaluated, tuned by zero-order steps, and trained by backpropagation in staged and in fused mode; with
``--cases`` also by zero-order steps of all weights, which those stored in few bits are refused for. Each case has a
fresh process with the steps of a device's assignment: examples from a file, payload, graphs, work. The first only
evaluates, with the graphs that zero-order work loads. Random tokens, one batch size and length for all.
Writes JSON lines to stdout: the peak resident set (``VmHWM``) of each and its ratio to the evaluation's.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import tempfile
import threading
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from benchmarks.memory import base_of
from benchmarks.step import environment
from edge_runtime.agent.assignment_runner import AssignmentRunner, Progress, WorkContext
from edge_runtime.agent.checkpoints import Checkpoints
from edge_runtime.agent.pauses import Pauses
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.agent.traffic import Traffic
from edge_runtime.benchmark.work import random_examples
from edge_runtime.board.guard import PauseLimits
from edge_runtime.board.sensors import Sensors
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.evaluator import score_all
from edge_runtime.engine.model import MODES
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.engine.staged import StagedGraphs
from edge_runtime.formats import adapter
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import Payload, decode_payload, encode_payload
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.seed_pool import SeedPool
from edge_runtime.system.resident import peak_rss_bytes
from edge_runtime.wire import chunks
from edge_runtime.wire.messages import Assignment, AssignmentKey, Welcome
from edge_runtime.wire.work import Arm, HyperParameters, LoraWork, SeedPoolWork, Work, ZeroOrderWork

Case = Literal["evaluation", "zero-order", "all-weights", "staged", "fused"]
CASES: Final[tuple[Case, ...]] = ("evaluation", "zero-order", "all-weights", "staged", "fused")
DEFAULT: Final = ("evaluation", "zero-order", "staged", "fused")
POOL: Final = SeedPool(seed=0, noise="rademacher", coefficients=np.full(16, 1e-6, "<f4").tobytes())
"""A model that 16 seeds have moved."""
NUM_BATCHES: Final = 2
NUM_STEPS: Final = 2
MIB: Final = 2**20
UNLIMITED: Final = 2**40


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One measurement."""

    artifact: Path
    case: Case
    rank: int
    batch_size: int
    length: int
    inner: int
    threads: int


def main() -> None:
    """Parse, measure every case in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="+", metavar="ARTIFACT", help="what `fedspine export` wrote")
    parser.add_argument("--cases", default=",".join(DEFAULT), help=f"of {', '.join(CASES)}; default: %(default)s")
    parser.add_argument("--rank", type=int, default=8, help="LoRA rank, default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, help="examples in a batch, default: %(default)s")
    parser.add_argument("--length", type=int, default=64, help="tokens of an example, default: %(default)s")
    parser.add_argument("--inner", type=int, default=4, help="perturbations of the upper half, default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="threads of an operator, default: %(default)s")
    options = vars(parser.parse_args())
    paths, cases = options.pop("artifacts"), options.pop("cases").split(",")
    settings = [Setting(artifact=path, case=case, **options) for path in paths for case in CASES if case in cases]
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        evaluation: dict[Path, float] = {}
        print(json.dumps({"environment": environment()}))
        for setting, result in zip(settings, pool.map(measure, settings), strict=True):
            if setting.case == "evaluation":
                evaluation[setting.artifact] = result["peak_mib"]
            ratio = result["peak_mib"] / evaluation[setting.artifact] if setting.artifact in evaluation else None
            print(json.dumps({**result, "of_evaluation": ratio and round(ratio, 4)}), flush=True)


def measure(setting: Setting) -> dict[str, Any]:
    """Do the work of a case in this process; its peak."""
    rng, artifact = np.random.default_rng(0), Artifact.open(setting.artifact)
    manifest, plan = artifact.manifest, Plan.full(artifact.manifest)
    layout = AdapterLayout.of(manifest, plan, setting.rank)
    start = adapter.initial(manifest, artifact.initial() if manifest.dense else {}, setting.rank, rng)
    if setting.case == "all-weights":
        start = {dense.name: start[dense.name] for dense in manifest.dense}
    sent = [encode_payload(Payload(adapter=start))]  # taken from here: nobody holds it longer than a device does
    del start
    with tempfile.TemporaryDirectory() as folder:
        data = write_examples(Path(folder) / "data.jsonl", manifest, setting, rng)
        is_first_order = setting.case in MODES
        work_settings = WorkSettings(
            data=data,
            num_holdout=0,
            num_threads=setting.threads,
            memory_limit_bytes=UNLIMITED,
            modes=tuple(mode for mode in MODES if mode == setting.case) if is_first_order else MODES,
        )
        runner = AssignmentRunner(artifact, work_settings, 0.0)
        if setting.case == "evaluation":
            dataset = runner.load(setting.length)
            graphs = StagedGraphs(artifact, num_threads=setting.threads)
            weights = slice_weights(artifact, plan, keep_stored=graphs.keeps_stored)
            theta = layout.flatten(decode_payload(sent.pop()).adapter)
            model = graphs.model(weights, layout, 2.0)
            score_all(model, theta, dataset, setting.batch_size, lambda: None)
        else:
            assignment = assignment_of(sent[0], work_of(setting, manifest))
            runner.run(assignment, sent.pop(), context_of(runner, setting))
    return {
        "model": manifest.model_name,
        "artifact": setting.artifact.name,
        "base": base_of(manifest),
        "case": setting.case,
        "num_trainable": layout.num_elements,
        "peak_mib": round(peak_rss_bytes() / MIB, 1),
    }


def write_examples(path: Path, manifest: Manifest, setting: Setting, rng: np.random.Generator) -> Path:
    """Tokens of some full batches."""
    lines = []
    for _ in range(NUM_BATCHES):
        examples = random_examples(manifest, setting.batch_size, setting.length, rng)
        for tokens, label in zip(examples.input_ids.tolist(), examples.labels.tolist(), strict=True):
            lines.append({"input_ids": tokens} | ({"label": label} if manifest.dense else {}))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def work_of(setting: Setting, manifest: Manifest) -> Work:
    """Some steps: of FedSPZO with the cut in the middle, or of AdamW."""
    arm = Arm(pruning_ratio=0.0, rank=setting.rank)
    if setting.case == "all-weights":
        return SeedPoolWork(
            arm=arm,
            pool=POOL,
            learning_rate=1e-6,
            num_perturbations=1,
            num_local_steps=NUM_STEPS,
            epsilon=1e-3,
            batch_size=setting.batch_size,
            max_length=setting.length,
        )
    if setting.case == "zero-order":
        return ZeroOrderWork(
            arm=arm,
            seed=0,
            cut=manifest.num_layers // 2,
            lower_learning_rate=1e-3,
            learning_rate=2e-3,
            num_outer=1,
            num_inner=setting.inner,
            num_local_steps=NUM_STEPS,
            epsilon=1e-2,
            batch_size=setting.batch_size,
            max_length=setting.length,
            lora_scaling=2.0,
        )
    return LoraWork(
        arm=arm,
        plan=Plan.full(manifest).packed,
        hyper_parameters=HyperParameters(
            learning_rate=1e-4,
            weight_decay=0.0,
            lora_scaling=2.0,
            max_grad_norm=1.0,
            num_warmup_steps=0,
            num_local_steps=NUM_STEPS,
            batch_size=setting.batch_size,
            num_accumulation_steps=1,
            max_length=setting.length,
            seed=0,
        ),
    )


def assignment_of(blob: bytes, work: Work) -> Assignment:
    """As a coordinator says it."""
    key = AssignmentKey(run_id="memory", round_number=1, device_id="board", attempt=1)
    return Assignment(key=key, deadline_s=3600.0, payload=chunks.describe(blob), work=work)


def context_of(runner: AssignmentRunner, setting: Setting) -> WorkContext:
    """A device that nothing disturbs."""
    return WorkContext(
        welcome=Welcome(
            run_id="memory",
            device_id="board",
            artifact_url="http://localhost/",
            artifact_digest=runner.digest,
            arms=(Arm(pruning_ratio=0.0, rank=setting.rank),),
            batch_size=setting.batch_size,
            max_length=setting.length,
        ),
        stop=threading.Event(),
        progress=Progress(),
        traffic=Traffic(lambda: (0, 0)),
        fetch_s=0.0,
        checkpoints=Checkpoints(Path("nowhere"), 0),
        pauses=Pauses(PauseLimits(), Sensors()),
    )


if __name__ == "__main__":
    main()
