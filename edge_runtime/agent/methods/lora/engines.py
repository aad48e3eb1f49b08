"""The choice of the engine and the mode that a device trains with, by its owner's options and its memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from edge_runtime.agent.errors import EngineChoiceError
from edge_runtime.engine import memory
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.errors import InsufficientMemoryError
from edge_runtime.engine.model import MODES, Mode
from edge_runtime.engine.run import Engine
from edge_runtime.engine.trainer import Trainer
from edge_runtime.formats.plan import Plan
from edge_runtime.ort_training import api
from edge_runtime.ort_training.memory import estimate_ort_training_bytes
from edge_runtime.ort_training.models import ModelFolder
from edge_runtime.ort_training.trainer import OrtTrainer
from edge_runtime.wire.arms import LORA_AXES
from edge_runtime.wire.work import Arm, LoraWork

logger = logging.getLogger(__name__)


def choose_modes(engine: str, mode: str, ort_models: Path | None) -> tuple[Mode, ...]:
    """The modes that a device's options allow, the fastest first.

    Args:
        engine: ``portable`` or ``ort-training``.
        mode: ``auto``, ``fused`` or ``staged``.
        ort_models: folder of ort-training models, None = not given.

    Raises:
        EngineChoiceError: the options do not go together.
        OrtMissingError: the options choose onnxruntime-training, and it is not installed.
    """
    if engine == "portable":
        if ort_models is not None:
            msg = "--ort-models is for --engine ort-training: give both, or neither"
            raise EngineChoiceError(msg)
        return tuple(one for one in MODES if mode in {"auto", one})
    if ort_models is None or mode == "staged":
        fault = "needs --ort-models DIR" if ort_models is None else "runs whole steps: it has no --mode staged"
        msg = f"--engine ort-training {fault}; see docs/ort-training.md"
        raise EngineChoiceError(msg)
    api.load("api")
    return ("fused",)


class Engines:
    """The engine of one artifact, loaded in one mode at a time.

    Args:
        artifact: the opened artifact.
        num_threads: threads of one operator.
        memory_limit_bytes: memory that training may use.
        modes: permitted modes; the first that fits is taken.
        ort_models: folder of ort-training models, to train with these; None = the portable engine.

    Raises:
        OrtModelsError: the folder cannot be used for this artifact.
        WireError: the folder's description is malformed or has another version.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        num_threads: int,
        memory_limit_bytes: int,
        modes: Sequence[Mode],
        ort_models: Path | None,
    ) -> None:
        self._artifact = artifact
        self._num_threads = num_threads
        self._limit = memory_limit_bytes
        self._modes = tuple(modes)
        self._models = None if ort_models is None else ModelFolder.open(ort_models, artifact)
        self._engine: Engine | None = None

    @property
    def first_mode(self) -> Mode:
        """The fastest mode that may be used."""
        return self._modes[0]

    def load(self, mode: Mode) -> Engine:
        """The engine in a mode; the graphs of another mode are released."""
        if self._engine is None or self._engine.mode != mode:
            self._engine = None
            if self._models is None:
                self._engine = Trainer(self._artifact, num_threads=self._num_threads, mode=mode)
            else:
                self._engine = OrtTrainer(self._artifact, self._models, num_threads=self._num_threads)
        return self._engine

    def check_arms(self, arms: Sequence[Arm]) -> None:
        """Refuse a run if this device trains with ort-training models and has them for none of its arms.

        If it has them for some arms, the others are logged.

        Raises:
            ArmNotExportedError: there are models for none of the arms.
        """
        if self._models is not None and (missing := self._models.check_arms(arms)):
            logger.warning(
                "no ort-training models of %s: assignments of them will be refused", LORA_AXES.format(missing)
            )

    def check(self, work: LoraWork, plan: Plan) -> None:
        """Refuse work that the engine cannot do; ``plan`` is its first plan.

        Raises:
            ArmNotExportedError: there are no models for the arm.
            FixedHyperParametersError: the models have other hyper-parameters.
        """
        if self._models is not None:
            self._models.check(work, plan)

    def mode_for(self, plan: Plan, rank: int, batch_size: int, max_length: int) -> Mode:
        """The fastest mode that fits this device's memory.

        Raises:
            InsufficientMemoryError: by the estimates, no mode fits.
        """
        manifest = self._artifact.manifest
        work = (manifest, plan, rank, batch_size, max_length)
        if self._models is None:
            needed = {mode: memory.estimate_training_bytes(*work, mode) for mode in self._modes}
        else:
            needed = dict.fromkeys(self._modes, estimate_ort_training_bytes(*work))
        for mode, num_bytes in needed.items():
            if num_bytes <= self._limit:
                return mode
        least = min(needed.values())
        msg = (
            f"training needs about {least / 1e6:.0f} MB, but this device may use only {self._limit / 1e6:.0f} MB: "
            "assign a cheaper arm, a smaller batch or shorter examples, or raise --memory-limit"
        )
        raise InsufficientMemoryError(msg)
