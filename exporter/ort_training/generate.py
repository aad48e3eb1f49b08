"""A child process of its own environment: onnxruntime-training's ``generate_artifacts`` on a forward graph.

``python -m exporter.ort_training.generate DIRECTORY`` takes :data:`FORWARD` and :data:`REQUEST` out of the directory
and writes the models of :mod:`edge_runtime.ort_training.description` into it. It runs in an environment with
onnxruntime-training and without torch; the exporter, which has torch and another onnxruntime, starts it. It prints the
versions of the packages that it used, as JSON.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec
import onnx

from edge_runtime.formats import names
from edge_runtime.ort_training import api
from edge_runtime.ort_training import description as ort_models
from edge_runtime.ort_training.module import TrainingModule
from edge_runtime.system.versions import installed

FORWARD: Final = "forward.onnx"
REQUEST: Final = "request.json"
PACKAGES: Final = ("fedspine", "onnxruntime-training", "onnx")

_PYTORCH_ADAMW: Final = 0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """The request to the child process."""

    frozen: tuple[str, ...]
    """Initializers of the forward graph that are parameters, but are not trained."""
    optimizer: ort_models.OptimizerSettings


def generate(directory: Path) -> None:
    """Write training, evaluation and optimizer model and checkpoint, and load them as a device does."""
    request = msgspec.json.decode((directory / REQUEST).read_bytes(), type=Request)
    forward = onnx.load(directory / FORWARD)
    artifacts = api.load("artifacts")
    parameters = {"requires_grad": [names.PARAMS], "frozen_params": list(request.frozen), "loss": None}
    counted = forward.graph.output.pop()  # a training step needs the loss alone
    optimizer = _optimizer(api.load("onnxblock"), request.optimizer)
    artifacts.generate_artifacts(forward, optimizer=optimizer, artifact_directory=directory, **parameters)
    forward.graph.output.append(counted)
    with tempfile.TemporaryDirectory(dir=directory) as aside:
        artifacts.generate_artifacts(forward, artifact_directory=aside, **parameters)
        Path(aside, ort_models.EVALUATION_MODEL).replace(directory / ort_models.EVALUATION_MODEL)
    TrainingModule(api.load("api"), directory, num_threads=1)


def _optimizer(onnxblock: Any, settings: ort_models.OptimizerSettings) -> Any:
    """AdamW as ``torch.optim.AdamW`` has it, after clipping as ``torch.nn.utils.clip_grad_norm_``.

    onnxblock's own AdamW writes ``adam_mode`` 1 into its node: epsilon and decay as transformers' old AdamW had them.
    The operator knows mode 0 too (``AdamWOptimizer`` in ContribOperators of onnxruntime-training), which is PyTorch's
    and ours.
    """

    class PyTorchAdamW(onnxblock.optim.optim.AdamWOptimizer):  # type: ignore[misc]
        def _build_optimizer_node(
            self, input_names: list[str], output_name: str, node_name: str, node_attributes: dict[str, Any]
        ) -> Any:
            attributes = {**node_attributes, "adam_mode": _PYTORCH_ADAMW}
            return super()._build_optimizer_node(input_names, output_name, node_name, attributes)

    norm = settings.max_grad_norm
    block = onnxblock.optim.AdamW(clip_grad=None if norm is None else onnxblock.optim.ClipGradNorm(norm))
    block._adamw = PyTorchAdamW(  # noqa: SLF001 - there is no other way to choose the node
        betas=(settings.beta1, settings.beta2), eps=settings.epsilon, weight_decay=settings.weight_decay
    )
    return block


def main() -> int:
    """Serve one request; anything that goes wrong is one line on stderr."""
    try:
        generate(Path(sys.argv[1]))
    except Exception as error:  # noqa: BLE001 - the parent shows the line
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:1000]}", file=sys.stderr)  # noqa: T201
        return 1
    print(msgspec.json.encode(installed(PACKAGES)).decode())  # noqa: T201 - the answer
    return 0


if __name__ == "__main__":
    sys.exit(main())
