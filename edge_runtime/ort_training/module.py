"""The loaded models of one arm: parameters, sums of gradients, optimizer steps and evaluation.

Only this file calls onnxruntime-training on the device. It translates the errors of onnxruntime-training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.session import ERRORS_ONLY, translate
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.ort_training import description as ort_models
from edge_runtime.ort_training.errors import OrtModelsError

Array = npt.NDArray[np.float32]

_DEVICE: Final = "cpu"


class TrainingModule:
    """Training, evaluation and optimizer model of one arm, on one checkpoint.

    It starts with the exported weights and adapter; :meth:`fill` and :meth:`take` replace them. The scaling is 1 until
    :meth:`hold`.

    Args:
        api: ``onnxruntime.training.api``.
        directory: files of the arm.
        num_threads: threads for one operator.

    Raises:
        GraphError: onnxruntime-training refuses a file.
        InsufficientMemoryError: a file cannot be loaded for lack of memory.
    """

    def __init__(self, api: Any, directory: Path, *, num_threads: int) -> None:  # noqa: ANN401 - it has no types
        self._directory = directory
        self._scaling = np.ones((), np.float32)
        with self._translated("cannot be loaded"):
            self._state = api.CheckpointState.load_checkpoint(str(directory / ort_models.CHECKPOINT))
            self._module = api.Module(
                str(directory / ort_models.TRAINING_MODEL),
                self._state,
                str(directory / ort_models.EVALUATION_MODEL),
                _DEVICE,
                _options(num_threads),
            )
            self._optimizer = api.Optimizer(str(directory / ort_models.OPTIMIZER_MODEL), self._module)
            self._module.train()
            self._training_inputs = tuple(self._module.input_names())
            self._module.eval()
            self._evaluation_inputs = tuple(self._module.input_names())

    def fill(self, weights: Mapping[str, Array], params: Array) -> None:
        """Replace the exported weights by frozen weights and a flat adapter ``[N]``.

        Raises:
            OrtModelsError: the checkpoint has another parameter.
            GraphError: a parameter has another size.
        """
        with self._translated("have parameters of other sizes"):
            for name in [name for name, _ in self._state.parameters]:
                if name != names.PARAMS and name not in weights:
                    msg = f"{self._directory} has a parameter {name!r} that the artifact lacks: export the models again"
                    raise OrtModelsError(msg)
                self._state.parameters[name] = params if name == names.PARAMS else weights[name]

    def take(self, params: Array) -> None:
        """Load a flat adapter ``[N]``; the exported frozen weights stay.

        Raises:
            GraphError: the adapter has another size.
        """
        with self._translated("have an adapter of another size"):
            self._state.parameters[names.PARAMS] = params

    def hold(self, layout: AdapterLayout, lora_scaling: float) -> None:
        """See :meth:`edge_runtime.engine.model.Scorer.hold`; the sizes are those of the models."""
        del layout
        self._scaling = np.array(lora_scaling, np.float32)

    def params(self) -> Array:
        """A copy of the current flat adapter, float32 ``[N]``."""
        return np.array(self._state.parameters[names.PARAMS].data)

    def reset_gradient(self) -> None:
        """Begin the next sum of gradients at zero."""
        self._module.lazy_reset_grad()

    def accumulate(self, batch: Batch, share: float) -> float:
        """Add the gradient of ``share`` times a batch's mean loss; return this product, nats, 0 without targets.

        Raises:
            GraphError: onnxruntime-training failed.
            InsufficientMemoryError: it could not allocate.
        """
        self._module.train()
        loss = self._run(self._training_inputs, batch, share / batch.num_targets if batch.num_targets else 0.0)
        return float(loss)

    def gradient(self) -> Array:
        """Return the summed gradient, a copy, float32 ``[N]``."""
        return np.array(self._state.parameters[names.PARAMS].grad)

    def update(self, learning_rate: float) -> None:
        """Clip, and make one step of AdamW.

        Raises:
            GraphError: onnxruntime-training failed.
            InsufficientMemoryError: it could not allocate.
        """
        with self._translated("failed in the optimizer"):
            self._optimizer.set_learning_rate(learning_rate)
            self._optimizer.step()

    def score(self, batch: Batch, params: Array) -> tuple[float, int]:
        """See :meth:`edge_runtime.engine.model.Scorer.score`; the trained adapter is not changed."""
        if batch.num_targets == 0:
            return 0.0, 0
        held = self.params()
        differs = not np.array_equal(held, params)
        if differs:
            self._state.parameters[names.PARAMS] = params
        try:
            self._module.eval()
            loss_sum, num_correct = self._run(self._evaluation_inputs, batch, 1.0)
        finally:
            if differs:
                self._state.parameters[names.PARAMS] = held
        return float(loss_sum), int(num_correct)

    def _run(self, inputs: tuple[str, ...], batch: Batch, loss_scale: float) -> Any:  # noqa: ANN401 - it has no types
        rows, targets = batch.scored()
        if not rows.size:  # the models need one position or more; at a loss scale of 0 it adds nothing
            rows = targets = np.zeros(1, np.int64)
        feeds = {
            names.INPUT_IDS: batch.input_ids,
            names.ATTENTION_MASK: batch.attention_mask,
            names.ROWS: rows,
            names.TARGETS: targets,
            names.LORA_SCALING: self._scaling,
            names.LOSS_SCALE: np.array(loss_scale, np.float32),
        }
        with self._translated("failed"):
            return self._module(*(feeds[name] for name in inputs))

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except OrtModelsError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise translate(error, f"ort-training models in {self._directory} {what}") from error


def _options(num_threads: int) -> Any:  # noqa: ANN401 - onnxruntime has no types
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # As in the portable engine: several processes share the cores of a board.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
