"""The device's side of split tuning: embedding and the blocks below the cut, once for each example; no backward graph.

The device needs nothing of the adapter, so nothing is pulled, and of the weights only those that it runs are loaded.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edge_runtime.agent.errors import NotAllowedError
from edge_runtime.agent.methods.protocol import Before, Surroundings, Task
from edge_runtime.agent.methods.split.noise import CutNoise, noise_key
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.bounds import limits
from edge_runtime.engine import memory
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Dataset
from edge_runtime.engine.errors import InsufficientMemoryError
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.engine.staged import StagedGraphs, StagedModel
from edge_runtime.engine.trainer import TrainingResult
from edge_runtime.errors import TensorError
from edge_runtime.formats import names
from edge_runtime.formats.activations import Coder, Form
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.tensors import WireDtype
from edge_runtime.wire.messages import Assignment, Welcome
from edge_runtime.wire.work import SplitWork

Array = npt.NDArray[np.float32]


class Split:
    """Loads forward graphs alone; see :class:`edge_runtime.agent.methods.protocol.Method`."""

    def __init__(self, artifact: Artifact, settings: WorkSettings) -> None:
        self.artifact = artifact
        self.graphs = StagedGraphs(artifact, num_threads=settings.num_threads)
        self._settings = settings

    def check_run(self, welcome: Welcome) -> None:
        """Refuse a run that the owner does not allow, or of whose model not even the lowest block fits.

        Raises:
            NotAllowedError: the owner does not.
            InsufficientMemoryError: it does not fit.
        """
        self._check_allowed()
        self.check_memory(1, welcome.batch_size, welcome.max_length, 0)

    def begin(self, assignment: Assignment, work: SplitWork, blob: bytes, around: Surroundings) -> Task:
        """Look at everything that was sent.

        Raises:
            NotAllowedError: the owner does not allow it.
            TensorError: the cut is outside the model.
            InsufficientMemoryError: the lower blocks do not fit this device.
        """
        del assignment, blob
        self._check_allowed()
        artifact = self.artifact
        form = Form.of(artifact.manifest, artifact.digest, work.cut, work.dtype, work.max_length)
        self.check_memory(work.cut, work.batch_size, work.max_length, 0)

        def start(dataset: Dataset) -> SplitExecution:
            num_coded = form.num_bytes(len(dataset), dataset.tokens.size)
            if num_coded > limits.MAX_BLOB_BYTES:
                msg = (
                    f"activations of {len(dataset)} examples are {num_coded / 1e6:.0f} MB, and a reply may have "
                    f"{limits.MAX_BLOB_BYTES / 1e6:.0f} MB: choose int8, shorter examples, or fewer on this device"
                )
                raise TensorError(msg)
            self.check_memory(work.cut, work.batch_size, work.max_length, num_coded)
            return SplitExecution(self, work, form, around)

        return Task(max_length=work.max_length, start=start)

    def _check_allowed(self) -> None:
        if not self._settings.sends_activations:
            msg = (
                "this run asks for hidden states and labels of this device's examples, which tell much of them: start "
                "the device with --send-activations if they may leave it"
            )
            raise NotAllowedError(msg)

    def check_memory(self, cut: int, batch_size: int, max_length: int, num_coded: int) -> None:
        """Refuse work that does not fit this device.

        Raises:
            InsufficientMemoryError: it does not.
        """
        needed = memory.estimate_lower_bytes(self.artifact.manifest, cut, batch_size, max_length, num_coded)
        if needed > (limit := self._settings.memory_limit_bytes):
            msg = (
                f"blocks below the cut need about {needed / 1e6:.0f} MB with activations of all examples, but this "
                f"device may use only {limit / 1e6:.0f} MB: choose a lower cut, a smaller batch or shorter "
                "examples, or raise --memory-limit"
            )
            raise InsufficientMemoryError(msg)

    def noise(self, work: SplitWork) -> CutNoise | None:
        """The noise that work asks for; None = none."""
        if not work.noise:
            return None
        key = noise_key(self._settings.folder_of("split"))
        return CutNoise(key, self.artifact.digest, work.cut, work.noise)

    def model(self, cut: int) -> StagedModel:
        """Embedding and the blocks below the cut, with their weights alone as they are stored."""
        artifact, graphs = self.artifact, self.graphs
        manifest, plan = artifact.manifest, Plan.full(artifact.manifest)
        embedding = graphs.stage(names.EMBEDDING_STAGE).inputs
        wanted = {
            tensor.name
            for tensor in manifest.tensors
            if (tensor.name in embedding if tensor.layer is None else tensor.layer < cut)
        }
        kept = {*graphs.keeps_stored, manifest.word_embedding}
        weights = slice_weights(artifact, plan, keep_stored=kept, wanted=wanted)
        return graphs.model(weights, AdapterLayout.of(manifest, plan, 1), 1.0)


class SplitExecution:
    """See :class:`edge_runtime.agent.methods.protocol.Execution`."""

    def __init__(self, method: Split, work: SplitWork, form: Form, around: Surroundings) -> None:
        self._work = work
        self._form = form
        self._around = around
        self._model = method.model(work.cut)
        self._noise = method.noise(work)
        manifest = method.artifact.manifest
        self._no_adapter = np.zeros(AdapterLayout.of(manifest, Plan.full(manifest), 1).num_elements, np.float32)
        self._coder: Coder | None = None

    def resume(self, dataset: Dataset) -> None:
        """There are no checkpoints: a process that is killed begins again."""
        del dataset

    def evaluate(self, holdout: Dataset) -> None:
        """The device has no model of its own to evaluate."""
        del holdout

    def train(self, dataset: Dataset, before: Before, on_step: Callable[[int, float], None]) -> TrainingResult:
        """Run the lower blocks on every example once, the longest first, as evaluation does.

        Raises:
            TensorError: a hidden state is not finite, or beyond the bound of a reply.
        """
        del before, on_step
        clock = self._around.clock
        began = clock()
        labels = dataset.tokens if dataset.labels is None else dataset.labels.astype(np.int32)
        coder = Coder(self._form, dataset.lengths, labels)
        order = np.argsort(-dataset.lengths, kind="stable")
        for begin in range(0, len(order), self._work.batch_size):
            self._around.check()
            chosen = order[begin : begin + self._work.batch_size]
            hidden = self._model.lower(dataset.batch(chosen), self._no_adapter, self._work.cut).hidden
            for row, example in enumerate(chosen):
                rows = hidden[row, : dataset.lengths[example]]
                if self._noise is not None:
                    tokens = dataset.tokens[dataset.offsets[example] : dataset.offsets[example + 1]]
                    rows = self._noise.added(tokens, rows)
                coder.put(int(example), rows)
            self._around.say(f"activations: {begin + len(chosen)} of {len(order)} examples")
        self._around.say("")
        self._coder = coder
        return TrainingResult(mean_loss=None, step_times_s=(clock() - began,), importance_s=0.0)

    def encode(self, dtype: WireDtype) -> bytes | None:
        """The activations; their type is that of the work."""
        del dtype
        coder, self._coder = self._coder, None
        return None if coder is None else coder.encode()
