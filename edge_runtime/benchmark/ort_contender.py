"""onnxruntime-training in a benchmark; runs as ``python -m edge_runtime.benchmark.ort_contender`` in its environment.

At ratio 0 the models hold the weights of the artifact already, so only the first adapter is loaded: this is the normal
use of onnxruntime-training with one model. Files are not checked, as for all contenders.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from edge_runtime.benchmark.portable_contender import batch_of
from edge_runtime.benchmark.process import Contender, contend
from edge_runtime.benchmark.protocol import BenchmarkRequest
from edge_runtime.benchmark.work import prepare_work
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.frozen import FrozenWeights
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.ort_training import api
from edge_runtime.ort_training.models import ModelFolder
from edge_runtime.ort_training.module import TrainingModule
from edge_runtime.ort_training.trainer import OrtRun


def prepare(request: BenchmarkRequest) -> Contender:
    """Load the models of the request's arm, and fill in the tensors that the models lack.

    Raises:
        OrtTrainingError: onnxruntime-training or the models cannot be used.
        EngineError: the artifact cannot be used.
        WireError: a description, or the arm, cannot be used.
    """
    artifact, hyper = Artifact.open(Path(request.artifact), verify=False), request.hyper_parameters
    manifest = artifact.manifest
    work = prepare_work(manifest, artifact.initial(), request)
    folder = ModelFolder.open(Path(request.ort_models), artifact)
    models = folder.find(work.plan, request.arm.rank, hyper)
    module = TrainingModule(api.load("api"), folder.directory / models.directory, num_threads=request.num_threads)
    layout = AdapterLayout.of(manifest, work.plan, request.arm.rank)
    params = layout.flatten(work.adapter)
    if request.arm.pruning_ratio:
        module.fill(slice_weights(artifact, work.plan), params)
    else:
        module.take(params)
    run = OrtRun(artifact, work.plan, layout, hyper, FrozenWeights({}), module)
    batches = itertools.cycle([batch_of(examples) for examples in work.batches])
    return Contender(step=lambda: run.step([next(batches)]), num_trainable=layout.num_elements)


if __name__ == "__main__":
    sys.exit(contend(prepare, ("onnxruntime-training", "numpy"), sys.argv[1:]))
