"""Tokenised examples in memory, and batches of them.

Shape legend: ``B`` examples of a batch, ``L`` length of a batch in tokens, ``T`` tokens of the dataset, ``E`` examples.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.errors import DataEmptyError, DataInvalidError
from edge_runtime.formats import names

Array = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One micro-batch: the input of the graphs."""

    input_ids: Int64
    """int64 ``[B, L]``, padded on the right."""
    attention_mask: Int64
    """int64 ``[B, L]``, 1 = token, 0 = padding."""
    labels: Int64
    """int64 ``[B]`` (text-classification), or ``[B, L]`` (causal-lm: the tokens themselves, -100 at padding)."""
    below: Array | None = None
    """Hidden states after the first ``cut`` blocks, float32 ``[B, L, H]``: the model continues from them, and tokens
    only give the lengths of examples. None = the model begins with the tokens."""
    cut: int = 0
    """Number of blocks before ``below``."""

    @property
    def num_targets(self) -> int:
        """Number of targets: T of :meth:`scored`."""
        return self.labels.size if self.labels.ndim == 1 else int((self.labels[:, 1:] != names.IGNORE_LABEL).sum())

    def scored(self) -> tuple[Int64, Int64]:
        """Return the scored positions, and the target of each.

        These are the first token of each example (text-classification), or every token with a successor (causal-lm).
        No other scores are computed.

        Returns:
            Rows of the ``B * L`` tokens, int64 ``[T]``, ascending; and the class or the next token, int64 ``[T]``.
        """
        if self.labels.ndim == 1:
            return np.arange(self.labels.size) * self.input_ids.shape[1], self.labels
        following = np.full_like(self.labels, names.IGNORE_LABEL)
        following[:, :-1] = self.labels[:, 1:]
        flat = following.reshape(-1)
        rows = np.flatnonzero(flat != names.IGNORE_LABEL)
        return rows, flat[rows]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """A batch after the lower blocks of a model; later calls do not overwrite its arrays."""

    hidden: Array
    """Hidden states, float32 ``[B, L, H]``; ``[B, 1, H]`` after a last block that outputs first tokens alone."""
    context: Mapping[str, Any]
    """The other inputs of all blocks, as values of onnxruntime."""


class Examples(Protocol):
    """Examples that batches are drawn from."""

    @property
    def labels(self) -> Int64 | None:
        """Classes, int64 ``[E]``; None for causal-lm."""

    def __len__(self) -> int:
        """E."""

    def batch(self, indices: Int64) -> Batch:
        """The examples ``indices`` (int64 ``[B]``, at least one), padded to the longest of them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Examples as one vector of tokens, cut by offsets."""

    tokens: npt.NDArray[np.int32]
    """int32 ``[T]``."""
    offsets: Int64
    """int64 ``[E + 1]``, ascending: example ``e`` is ``tokens[offsets[e]:offsets[e + 1]]``."""
    labels: Int64 | None
    """int64 ``[E]``; None for causal-lm, where the tokens are the targets."""
    pad_token_id: int

    def __len__(self) -> int:
        return self.offsets.size - 1

    @property
    def lengths(self) -> Int64:
        """Tokens of each example, int64 ``[E]``."""
        return np.diff(self.offsets)

    def digest(self) -> str:
        """SHA-256 of all examples in their order, hexadecimal."""
        digest = hashlib.sha256(f"{self.pad_token_id} {len(self)} {self.labels is None} ".encode())
        for part in (self.tokens, self.offsets, self.labels):
            if part is not None:
                digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def subset(self, indices: Int64) -> Self:
        """The examples ``indices`` (int64 ``[n]``), in this order, as a new dataset."""
        parts = [self.tokens[self.offsets[i] : self.offsets[i + 1]] for i in indices]
        return dataclasses.replace(
            self,
            tokens=np.concatenate(parts) if parts else self.tokens[:0],
            offsets=np.concatenate([[0], np.cumsum(self.lengths[indices])]).astype(np.int64),
            labels=None if self.labels is None else self.labels[indices],
        )

    def split_holdout(self, num_holdout: int, seed: int) -> tuple[Self, Self]:
        """Two disjoint parts: training examples, and ``num_holdout`` examples drawn at random for evaluation.

        Args:
            num_holdout: examples to hold out, 0 or more; at least one example is left for training.
            seed: the same seed holds out the same examples.

        Raises:
            DataInvalidError: ``num_holdout`` is negative.
            DataEmptyError: fewer than ``num_holdout + 1`` examples.
        """
        if num_holdout < 0:
            msg = f"{num_holdout} examples to hold out, expected 0 or more"
            raise DataInvalidError(msg)
        if len(self) <= num_holdout:
            msg = f"{len(self)} examples, too few to hold out {num_holdout} and train on the rest"
            raise DataEmptyError(msg)
        order = np.random.default_rng(seed).permutation(len(self))
        return self.subset(np.sort(order[num_holdout:])), self.subset(np.sort(order[:num_holdout]))

    def batch(self, indices: Int64) -> Batch:
        """The examples ``indices`` (int64 ``[B]``, at least one), padded to the longest of them.

        Not rounded up to a multiple of 8: on short texts (SST-2) that cost 14 % more time a step, and more memory.
        """
        lengths = self.lengths[indices]
        length = int(lengths.max())
        input_ids = np.full((indices.size, length), self.pad_token_id, np.int64)
        attention_mask = np.zeros((indices.size, length), np.int64)
        for row, (index, count) in enumerate(zip(indices, lengths, strict=True)):
            input_ids[row, :count] = self.tokens[self.offsets[index] : self.offsets[index + 1]]
            attention_mask[row, :count] = 1
        if self.labels is None:
            labels = np.where(attention_mask == 1, input_ids, names.IGNORE_LABEL)
        else:
            labels = self.labels[indices]
        return Batch(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


def batches(
    dataset: Examples, batch_size: int, rng: np.random.Generator, *, class_balance: float = 0.0
) -> Iterator[Batch]:
    """Endless shuffled batches.

    Every batch has the same size: the smaller of ``batch_size`` and the number of examples. A batch may end one epoch
    and begin the next, so no example is left out.

    Args:
        dataset: examples.
        batch_size: examples at a time, 1 or more.
        rng: draws the orders.
        class_balance: 0 = every example once an epoch, each epoch in another order. Above 0, up to 1: a class of n
            examples gets a share of the draws in proportion to ``n ** (1 - class_balance)``, so at 1 all classes that
            occur get equal shares; and every class has its own epochs. Kang et al. (arXiv 1910.09217), equation 1, with
            ``q = 1 - class_balance``; they draw at random, here the draws of a class are spread evenly.

    Raises:
        DataEmptyError: the dataset has no example.
        DataInvalidError: ``class_balance`` is not 0, and the examples have no classes (causal-lm).
    """
    if len(dataset) == 0:
        msg = "no example to train on: the dataset is empty"
        raise DataEmptyError(msg)
    if class_balance == 0.0:
        indices = _epochs(np.arange(len(dataset)), rng)
    elif dataset.labels is not None:
        indices = _by_class(dataset.labels, class_balance, rng)
    else:
        msg = "class balance was asked for, but the examples have no classes: expected text-classification"
        raise DataInvalidError(msg)
    size = min(batch_size, len(dataset))
    while True:
        yield dataset.batch(np.fromiter(itertools.islice(indices, size), np.int64, size))


def _epochs(indices: Int64, rng: np.random.Generator) -> Iterator[int]:
    """``indices`` (at least one) in endless epochs, each in a new random order."""
    while True:
        yield from rng.permutation(indices)


def _by_class(labels: Int64, class_balance: float, rng: np.random.Generator) -> Iterator[int]:
    """Endless indices; class ``c`` of share ``p`` is drawn at times ``(u + k) / p``, with a random phase u."""
    classes, counts = np.unique(labels, return_counts=True)
    weights = counts.astype(np.float64) ** (1.0 - class_balance)
    periods = weights.sum() / weights
    pools = [_epochs(np.flatnonzero(labels == label), rng) for label in classes]
    due = [(float(at), turn) for turn, at in enumerate(rng.random(classes.size) * periods)]
    heapq.heapify(due)
    while True:
        at, turn = due[0]
        yield next(pools[turn])
        heapq.heapreplace(due, (at + periods[turn], turn))


def eval_batches(dataset: Dataset, batch_size: int) -> Iterator[Batch]:
    """Every example once, the longest first: there is little padding, and the first batch needs the most memory."""
    order = np.argsort(-dataset.lengths, kind="stable")
    for start in range(0, len(dataset), batch_size):
        yield dataset.batch(order[start : start + batch_size])
