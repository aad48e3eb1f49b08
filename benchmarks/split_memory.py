"""Memory of split tuning with frozen lower blocks, on devices and on the server: ``python -m benchmarks.split_memory``.

Each case is a fresh process. ``device``: what a device does with the work, by cut, under a memory limit that is just
enough for it; whether first-order training (rank 1, nothing pruned, staged) is refused under that limit is tried.
``first-order``: that training without a limit. ``server``: tuning on the activations of so many devices in turn, one
model for all. ``parallel``: the same with a model for each device, whose weights are copies that nothing shares; they
are all alive to the end, as the plain way has them. Tokens are random, all examples of one length, weights are those
of the artifact. Writes JSON to stdout: peak resident set (``VmHWM``) and processor seconds of the work.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import zero_order_memory
from benchmarks.fleet import processor
from benchmarks.step import environment
from broker_server.methods.split.tuning import UpperTuner
from edge_runtime.agent.assignment_runner import AssignmentRunner
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.benchmark.work import random_examples
from edge_runtime.engine import memory
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.errors import InsufficientMemoryError
from edge_runtime.engine.frozen import FrozenWeights
from edge_runtime.formats import adapter
from edge_runtime.formats.activations import Activations, Form
from edge_runtime.formats.payload import Payload, encode_payload
from edge_runtime.formats.plan import Plan
from edge_runtime.system.resident import peak_rss_bytes
from edge_runtime.wire.messages import Assignment, AssignmentKey
from edge_runtime.wire.work import HyperParameters, SplitWork

MIB: Final = 2**20
RANK: Final = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One process."""

    artifact: Path
    kind: str
    cut: int
    devices: int
    batch_size: int
    length: int
    examples: int
    steps: int


class OwnWeights(UpperTuner):
    """A model that shares no memory with another."""

    @functools.cached_property
    def _weights(self) -> FrozenWeights:
        shared = super()._weights
        return FrozenWeights({name: np.array(shared.held(name)) for name in shared})


def main() -> None:
    """Parse, measure every case in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="what `fedspine export` wrote, its weights not quantized")
    parser.add_argument("--cuts", default="1,2,3,4,5", help="of devices, default: %(default)s")
    parser.add_argument("--cut", type=int, default=1, help="of the server, default: %(default)s")
    parser.add_argument("--devices", default="1,16", help="of the server, default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--length", type=int, default=64, help="tokens of an example, default: %(default)s")
    parser.add_argument("--examples", type=int, default=64, help="of a device, default: %(default)s")
    parser.add_argument("--steps", type=int, default=1, help="of the server on each device, default: %(default)s")
    options = parser.parse_args()
    sizes = {name: getattr(options, name) for name in ("artifact", "batch_size", "length", "examples", "steps")}
    cases = [Case(kind="device", cut=cut, devices=1, **sizes) for cut in map(int, options.cuts.split(","))]
    cases.append(Case(kind="first-order", cut=0, devices=1, **sizes))
    for count in map(int, options.devices.split(",")):
        cases += [Case(kind=kind, cut=options.cut, devices=count, **sizes) for kind in ("server", "parallel")]
    runs = []
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        for case, result in zip(cases, pool.map(measure, cases), strict=True):
            runs.append({name: getattr(case, name) for name in ("kind", "cut", "devices")} | result)
            print(f"split_memory: {json.dumps(runs[-1])}", file=sys.stderr, flush=True)
    kept = {name: value for name, value in sizes.items() if name != "artifact"}
    json.dump({"environment": environment() | {"processor": processor()}, "options": kept, "runs": runs}, sys.stdout)
    print()


def measure(case: Case) -> dict[str, Any]:
    """Do the work of a case in this process."""
    found = {"device": device, "first-order": first_order}.get(case.kind, server)(case)
    return {"peak_mib": round(peak_rss_bytes() / MIB, 1)} | found


def device(case: Case) -> dict[str, Any]:
    """A device's pass of the lower blocks; its memory limit is what they are estimated at."""
    artifact = Artifact.open(case.artifact)
    manifest, sizes = artifact.manifest, (case.batch_size, case.length)
    form = Form.of(manifest, artifact.digest, case.cut, "int8", case.length)
    with tempfile.TemporaryDirectory() as folder:
        dataset = runner_of(case, artifact, Path(folder), zero_order_memory.UNLIMITED).load(case.length)
        coded = form.num_bytes(len(dataset), dataset.tokens.size)
        limit = memory.estimate_lower_bytes(manifest, case.cut, *sizes, coded)
        runner = runner_of(case, artifact, Path(folder), limit)
        work = SplitWork(cut=case.cut, dtype="int8", batch_size=case.batch_size, max_length=case.length)
        key = AssignmentKey(run_id="memory", round_number=1, device_id="board", attempt=1)
        began = time.process_time()
        _, blob = runner.run(
            Assignment(key=key, deadline_s=3600.0, work=work),
            b"",
            zero_order_memory.context_of(runner, setting_of(case)),
        )
        used, peak = time.process_time() - began, peak_rss_bytes()
        try:
            train(runner, case)
            is_refused = False
        except InsufficientMemoryError:
            is_refused = True
    return {
        "peak_mib": round(peak / MIB, 1),
        "limit_mib": round(limit / MIB, 1),
        "first_order_is_refused": is_refused,
        "cpu_s": round(used, 2),
        "blob_bytes": len(blob),
    }


def first_order(case: Case) -> dict[str, Any]:
    """The steps of a device that trains, without a limit."""
    artifact = Artifact.open(case.artifact)
    sizes = (case.batch_size, case.length)
    needed = memory.estimate_training_bytes(artifact.manifest, Plan.full(artifact.manifest), 1, *sizes, "staged")
    with tempfile.TemporaryDirectory() as folder:
        train(runner_of(case, artifact, Path(folder), zero_order_memory.UNLIMITED), case)
    return {"limit_mib": round(needed / MIB, 1)}


def train(runner: AssignmentRunner, case: Case) -> None:
    """First-order work of rank 1."""
    manifest, setting = runner.artifact.manifest, setting_of(case)
    first = runner.artifact.initial() if manifest.dense else {}
    blob = encode_payload(Payload(adapter=adapter.initial(manifest, first, 1, np.random.default_rng(0))))
    assignment = zero_order_memory.assignment_of(blob, zero_order_memory.work_of(setting, manifest))
    runner.run(assignment, blob, zero_order_memory.context_of(runner, setting))


def setting_of(case: Case) -> zero_order_memory.Setting:
    """The same sizes, of rank 1."""
    return zero_order_memory.Setting(
        artifact=case.artifact,
        case="staged",
        rank=1,
        batch_size=case.batch_size,
        length=case.length,
        inner=1,
        threads=1,
    )


def runner_of(case: Case, artifact: Artifact, folder: Path, limit: int) -> AssignmentRunner:
    """A device with the examples of a case."""
    rng, lines = np.random.default_rng(0), []
    examples = random_examples(artifact.manifest, case.examples, case.length, rng)
    for tokens, label in zip(examples.input_ids.tolist(), examples.labels.tolist(), strict=True):
        lines.append({"input_ids": tokens} | ({"label": label} if artifact.manifest.dense else {}))
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = WorkSettings(
        data=data,
        num_holdout=0,
        num_threads=1,
        memory_limit_bytes=limit,
        modes=("staged",),
        sends_activations=True,
    )
    return AssignmentRunner(artifact, settings, 0.0)


def server(case: Case) -> dict[str, Any]:
    """Tuning on random activations of every device in turn; the adapters of all are kept."""
    artifact, rng = Artifact.open(case.artifact), np.random.default_rng(0)
    manifest = artifact.manifest
    given = adapter.initial(manifest, artifact.initial() if manifest.dense else {}, RANK, rng)
    hyper = HyperParameters(
        learning_rate=1e-4,
        weight_decay=0.0,
        lora_scaling=2.0,
        max_grad_norm=1.0,
        num_warmup_steps=0,
        num_local_steps=case.steps,
        batch_size=case.batch_size,
        num_accumulation_steps=1,
        max_length=case.length,
        seed=0,
    )
    kind = OwnWeights if case.kind == "parallel" else UpperTuner
    tuners = [kind(artifact, case.cut, RANK, 1) for _ in range(case.devices if case.kind == "parallel" else 1)]
    began, tuned = time.process_time(), []
    for number in range(case.devices):
        held = activations_of(case, artifact, rng)
        tuned.append(tuners[number % len(tuners)].tune(given, held, hyper, 1)[0])
    return {"cpu_s": round(time.process_time() - began, 2)}


def activations_of(case: Case, artifact: Artifact, rng: np.random.Generator) -> Activations:
    """Random ones in int8, of a device."""
    manifest, num_tokens = artifact.manifest, case.examples * case.length
    top = len(manifest.labels) or manifest.text.vocab_size
    return Activations(
        lengths=np.full(case.examples, case.length, np.int64),
        hidden=rng.integers(-127, 128, (num_tokens, manifest.hidden_size), np.int8),
        scales=np.full(num_tokens, 0.01, np.float32),
        labels=rng.integers(0, top, case.examples if manifest.labels else num_tokens, np.int32),
    )


if __name__ == "__main__":
    main()
