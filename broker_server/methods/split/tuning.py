"""Split tuning's engine on the server: one model, whose upper blocks are tuned on one device's activations at a time.

Shape legend: ``B`` examples of a batch, ``L`` length, ``H`` hidden size.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Batch, Int64, batches
from edge_runtime.engine.frozen import FrozenWeights
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.engine.trainer import Trainer, TrainingRun, train
from edge_runtime.engine.training_state import History
from edge_runtime.formats import names
from edge_runtime.formats.activations import Activations
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.work import HyperParameters

Array = npt.NDArray[np.float32]


class ActivationSet:
    """A device's activations, as batches are drawn from them: see :class:`edge_runtime.engine.dataset.Examples`.

    Args:
        activations: coded; a batch of them is decoded at a time.
        cut: number of blocks that they are after.
        pad_token_id: stands at every position, because no block reads tokens.
        has_classes: whether labels are classes, or the tokens of a language model.
    """

    def __init__(self, activations: Activations, cut: int, pad_token_id: int, *, has_classes: bool) -> None:
        self._activations = activations
        self._cut = cut
        self._pad_token_id = pad_token_id
        self._offsets = np.concatenate([[0], np.cumsum(activations.lengths)])
        self._classes = activations.labels.astype(np.int64) if has_classes else None

    @property
    def labels(self) -> Int64 | None:
        """Classes, int64 ``[E]``; None for a language model."""
        return self._classes

    def __len__(self) -> int:
        """E."""
        return len(self._activations.lengths)

    def batch(self, indices: Int64) -> Batch:
        """The examples ``indices`` (int64 ``[B]``, at least one), padded with zeros to the longest of them."""
        lengths = self._activations.lengths[indices]
        shape = (indices.size, int(lengths.max()))
        mask = (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
        below: Array | None = None
        targets = np.full(shape, names.IGNORE_LABEL, np.int64)
        for row, (index, length) in enumerate(zip(indices, lengths, strict=True)):
            begin, end = self._offsets[index], self._offsets[index + 1]
            rows = self._activations.rows(begin, end)
            if below is None:
                below = np.zeros((*shape, rows.shape[1]), np.float32)
            below[row, :length] = rows
            if self._classes is None:
                targets[row, :length] = self._activations.labels[begin:end]
        return Batch(
            input_ids=np.full(shape, self._pad_token_id, np.int64),
            attention_mask=mask,
            labels=targets if self._classes is None else self._classes[indices],
            below=below,
            cut=self._cut,
        )


class UpperTuner:
    """The upper blocks of one artifact: weights and graphs are loaded once, for all devices and rounds.

    Args:
        artifact: of the run.
        cut: number of blocks below.
        rank: LoRA rank of the adapters.
        num_threads: threads for one operator.
    """

    def __init__(self, artifact: Artifact, cut: int, rank: int, num_threads: int) -> None:
        self._artifact = artifact
        self._cut = cut
        self._rank = rank
        self._num_threads = num_threads
        self._plan = Plan.full(artifact.manifest)

    @functools.cached_property
    def _trainer(self) -> Trainer:
        return Trainer(self._artifact, num_threads=self._num_threads, mode="staged")

    @functools.cached_property
    def _weights(self) -> FrozenWeights:
        wanted = {t.name for t in self._artifact.manifest.tensors if t.layer is None or t.layer >= self._cut}
        kept = self._trainer.graphs.keeps_stored
        return slice_weights(self._artifact, self._plan, keep_stored=kept, wanted=wanted)

    def tune(
        self, adapter: Mapping[str, Array], activations: Activations, hyper: HyperParameters, round_number: int
    ) -> tuple[dict[str, Array], float]:
        """An adapter after local steps on one device's activations, and the mean of the steps' losses.

        Batches are drawn as a device draws them that trains itself. AdamW begins anew, as it does there.

        Args:
            adapter: to start from, under the full plan; it is not changed.
            activations: of the device.
            hyper: of the round and the device.
            round_number: of the round.

        Raises:
            DivergedError: training left the finite numbers.
            InsufficientMemoryError: it could not allocate.
        """
        manifest = self._artifact.manifest
        has_classes = manifest.task == "text-classification"
        examples = ActivationSet(activations, self._cut, manifest.text.pad_token_id, has_classes=has_classes)
        run = TrainingRun(self._trainer, self._plan, self._rank, adapter, hyper, self._weights, self._cut)
        rng = np.random.default_rng([hyper.seed, round_number])
        drawn = batches(examples, hyper.batch_size, rng, class_balance=hyper.class_balance)
        done = History()
        train(run, drawn, hyper, history=done)
        return run.adapter(), float(np.mean(done.losses))
