"""A method as a package outside writes it: how many examples of each class a device has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import msgspec
import numpy as np

from edge_runtime.agent.methods.protocol import Before, Surroundings, Task
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Dataset
from edge_runtime.engine.evaluator import EvaluationResult
from edge_runtime.engine.trainer import TrainingResult
from edge_runtime.formats.tensors import WireDtype, encode_integers
from edge_runtime.wire.messages import Assignment, Welcome
from edge_runtime.wire.work import PluginWork


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings that the server may send."""

    factor: int = 1


class LabelCounts:
    """See :class:`edge_runtime.agent.methods.protocol.Method`."""

    def __init__(self, artifact: Artifact, settings: WorkSettings) -> None:
        del settings
        self._num_classes = len(artifact.manifest.labels or ())

    def check_run(self, welcome: Welcome) -> None:
        """Every run with classes will do."""
        del welcome
        assert self._num_classes

    def begin(self, assignment: Assignment, work: PluginWork, blob: bytes, around: Surroundings) -> Task:
        """Read the settings."""
        del assignment, blob, around
        settings = work.settings_as(Settings)
        return Task(max_length=work.max_length, start=lambda _: Counting(self._num_classes, settings.factor))


@dataclasses.dataclass
class Counting:
    """See :class:`edge_runtime.agent.methods.protocol.Execution`."""

    num_classes: int
    factor: int
    made: bytes = b""

    def resume(self, dataset: Dataset) -> None:
        """It begins anew."""

    def evaluate(self, holdout: Dataset) -> EvaluationResult:
        """Nothing is predicted."""
        del holdout
        return EvaluationResult(loss_sum=0.0, num_targets=0, num_correct=0)

    def train(self, dataset: Dataset, before: Before, on_step: Callable[[int, float], None]) -> TrainingResult:
        """Count."""
        del before
        assert dataset.labels is not None
        counts = np.bincount(dataset.labels, minlength=self.num_classes)
        self.made = encode_integers({"counts": self.factor * counts.astype(np.int64)})
        on_step(1, 0.0)
        return TrainingResult(mean_loss=0.0, step_times_s=(0.0,), importance_s=0.0)

    def encode(self, dtype: WireDtype) -> bytes:
        """The counts."""
        del dtype
        return self.made
