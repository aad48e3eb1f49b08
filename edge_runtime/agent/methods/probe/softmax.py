"""Softmax regression on features that all fit in memory: the exact gradient, no mini-batches.

Shape legend: ``N`` examples, ``H`` features, ``C`` classes.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.evaluator import EvaluationResult

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_NUM_POWER_STEPS: Final = 30


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Features and classes of some examples."""

    features: npt.NDArray[np.float32]
    """``[N, H]``."""
    labels: Int64
    """``[N]``."""

    def with_bias(self) -> Float64:
        """``[N, H + 1]``: the last column is 1."""
        ones = np.ones((len(self.labels), 1))
        return np.concatenate([self.features.astype(np.float64), ones], axis=1)


class Regression:
    """Minimises the mean cross-entropy plus ``l2 / 2 * sum(W ** 2)``, the bias without penalty.

    Nesterov's accelerated gradient (1983) with steps of ``learning_rate / L``, where L is the Lipschitz constant of the
    gradient by the bound of Boehning (Annals of the Institute of Statistical Mathematics 44, 1992): half the largest
    eigenvalue of the mean of p p^T, plus ``l2``. So a learning rate of 1 is safe whatever the size of the features.

    Args:
        examples: at least one.
        weight: ``[C, H]`` to start from.
        bias: ``[C]`` to start from.
        l2: 0 or more.
        learning_rate: in units of 1 / L.
    """

    def __init__(
        self,
        examples: Examples,
        weight: npt.NDArray[np.float32],
        bias: npt.NDArray[np.float32],
        *,
        l2: float,
        learning_rate: float,
    ) -> None:
        self._inputs = examples.with_bias()
        self._labels = examples.labels
        self._head = self._ahead = np.concatenate([weight, bias[:, None]], axis=1).astype(np.float64)
        self._penalty = np.full(self._head.shape[1], l2)
        self._penalty[-1] = 0.0
        self._step_size = learning_rate / (0.5 * self._largest_eigenvalue() + l2)
        self._num_steps = 0

    def step(self) -> float:
        """Make one step; return the objective at the new head, nats.

        The value may be infinite or NaN where the learning rate is too large.
        """
        self._num_steps += 1
        with np.errstate(over="ignore", invalid="ignore"):
            return self._step()

    def _step(self) -> float:
        loss, _ = self._evaluate(self._head)
        _, gradient = self._evaluate(self._ahead)
        head = self._ahead - self._step_size * gradient
        self._ahead = head + (self._num_steps - 1) / (self._num_steps + 2) * (head - self._head)
        self._head = head
        return loss

    @property
    def head(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Current weight ``[C, H]`` and bias ``[C]``."""
        return self._head[:, :-1].astype(np.float32), self._head[:, -1].astype(np.float32)

    def _evaluate(self, head: Float64) -> tuple[float, Float64]:
        count = len(self._labels)
        log_p = log_softmax(self._inputs @ head.T)
        loss = -log_p[np.arange(count), self._labels].mean() + 0.5 * float((self._penalty * head**2).sum())
        errors = np.exp(log_p)
        errors[np.arange(count), self._labels] -= 1.0
        return float(loss), errors.T @ self._inputs / count + self._penalty * head

    def _largest_eigenvalue(self) -> float:
        """Return an upper bound of the largest eigenvalue of the mean of p p^T, by power iteration."""
        gram = self._inputs.T @ self._inputs / len(self._labels)
        vector = np.ones(gram.shape[0])
        for _ in range(_NUM_POWER_STEPS):
            vector = gram @ vector
            vector /= np.linalg.norm(vector)
        # A Rayleigh quotient is below the eigenvalue by at most the residual's norm.
        value = float(vector @ gram @ vector)
        return min(value + float(np.linalg.norm(gram @ vector - value * vector)), float(np.trace(gram)))


def log_softmax(scores: Float64) -> Float64:
    """Return the logarithm of softmax of each row of ``[N, C]``."""
    scores = scores - scores.max(axis=1, keepdims=True)
    out: Float64 = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return out


def evaluate(examples: Examples, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> EvaluationResult:
    """Quality of a head on examples."""
    scores = examples.features.astype(np.float64) @ weight.T.astype(np.float64) + bias
    losses = -log_softmax(scores)[np.arange(len(examples.labels)), examples.labels]
    return EvaluationResult(
        loss_sum=float(losses.sum()),
        num_targets=len(examples.labels),
        num_correct=int((scores.argmax(axis=1) == examples.labels).sum()),
    )
