"""The interface of training and evaluation to an artifact's graphs, the same for both modes.

Two modes run the same stages: *fused* (one graph for a whole step, fastest) and *staged* (a graph for each stage, one
block's activations at a time, least memory).

Shape legend: ``N`` trainable elements.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Literal, Protocol

from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.frozen import Array, FrozenWeights
from edge_runtime.formats.adapter import AdapterLayout

Mode = Literal["fused", "staged"]
"""Mode in which graphs are run."""
MODES: Final[tuple[Mode, ...]] = ("fused", "staged")
"""All modes, the fastest first."""


class Scorer(Protocol):
    """Scores batches under adapters for one plan; one thread at a time."""

    def hold(self, layout: AdapterLayout, lora_scaling: float) -> None:
        """Prepare for adapters of another layout.

        Args:
            layout: layout of the adapters, under the plan of the weights.
            lora_scaling: alpha / rank.
        """

    def score(self, batch: Batch, params: Array) -> tuple[float, int]:
        """Sum of the negative log-likelihoods (nats) of a batch's targets, and the number of correct predictions.

        Raises:
            GraphError: onnxruntime failed.
            InsufficientMemoryError: it could not allocate.
        """


class Model(Scorer, Protocol):
    """Graphs with the frozen weights of one plan bound."""

    def reload(self, name: str) -> None:
        """Bind the new array of a frozen weight; then call :meth:`hold` with the new layout."""

    def gradient(self, batch: Batch, params: Array, grads: Array, summed: Array, num_targets: int) -> float:
        """Add the gradient of a batch's loss, which is the sum over its targets divided by ``num_targets``.

        Args:
            batch: examples.
            params: flat adapter ``[N]``.
            grads: sum of the earlier gradients, ``[N]``.
            summed: another array ``[N]``; becomes ``grads`` plus the gradient.
            num_targets: number of targets of the batch, or of the larger batch of which it is a part.

        Returns:
            The loss, nats; 0 without targets.

        Raises:
            GraphError: onnxruntime failed.
            InsufficientMemoryError: it could not allocate.
        """


class Graphs(Protocol):
    """Graphs of one artifact in one mode. They hold no weights; all arms and, once loaded, all threads share them."""

    def load_training(self) -> None:
        """Load the graphs and weights of training now, not on first use.

        Raises:
            GraphError: onnxruntime refuses a graph.
            InsufficientMemoryError: a graph cannot be loaded for lack of memory.
        """

    def model(self, weights: FrozenWeights, layout: AdapterLayout, lora_scaling: float) -> Model:
        """A model that shares sliced weights; raises the errors of :meth:`load_training`.

        Args:
            weights: weights under the layout's plan.
            layout: layout of the adapters.
            lora_scaling: alpha / rank.
        """

    @property
    def keeps_stored(self) -> Collection[str]:
        """Frozen weights that may be held in their stored type; all others must be float32."""
