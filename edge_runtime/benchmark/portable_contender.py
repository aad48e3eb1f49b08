"""The portable engine in a benchmark: ``python -m edge_runtime.benchmark.portable_contender REQUEST``."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np

from edge_runtime.benchmark.process import Contender, contend
from edge_runtime.benchmark.protocol import BenchmarkRequest
from edge_runtime.benchmark.work import Examples, prepare_work
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.errors import EngineError
from edge_runtime.engine.model import MODES
from edge_runtime.engine.trainer import Trainer


def prepare(request: BenchmarkRequest) -> Contender:
    """Load the engine as a device with a cached artifact does: files were checked on arrival and are not read again.

    Raises:
        EngineError: the request names no mode of this engine; or see :class:`Trainer`.
        WireError: the artifact's manifest, or the arm, cannot be used.
    """
    modes = [mode for mode in MODES if mode == request.engine]
    if not modes:
        msg = f"engine {request.engine!r} is not a mode of this one, expected one of {', '.join(MODES)}"
        raise EngineError(msg)
    artifact = Artifact.open(Path(request.artifact), verify=False)
    work = prepare_work(artifact.manifest, artifact.initial(), request)
    trainer = Trainer(artifact, num_threads=request.num_threads, mode=modes[0])
    run = trainer.start(work.plan, request.arm.rank, work.adapter, request.hyper_parameters)
    batches = itertools.cycle([batch_of(examples) for examples in work.batches])
    return Contender(step=lambda: run.step([next(batches)]), num_trainable=run.layout.num_elements)


def batch_of(examples: Examples) -> Batch:
    """A batch without padding, as input of the graphs."""
    mask = np.ones(examples.input_ids.shape, np.int64)
    return Batch(input_ids=examples.input_ids, attention_mask=mask, labels=examples.labels)


if __name__ == "__main__":
    sys.exit(contend(prepare, ("onnxruntime", "numpy"), sys.argv[1:]))
