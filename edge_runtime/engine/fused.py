"""Fused mode: one graph for forward, loss and backward, and one graph for evaluation.

One run of onnxruntime is a whole step: nothing is computed twice, and the activations of all blocks are in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.frozen import Array, FrozenWeights
from edge_runtime.engine.session import Binding, Graph
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout


class FusedGraphs:
    """Training and evaluation graph of an artifact, each loaded on first use.

    Args:
        artifact: the opened artifact.
        num_threads: threads for one operator.
    """

    def __init__(self, artifact: Artifact, *, num_threads: int) -> None:
        self._artifact = artifact
        self._num_threads = num_threads

    @cached_property
    def training(self) -> Graph:
        """The graph of forward, loss and backward.

        Raises:
            GraphError: onnxruntime refuses the graph.
            InsufficientMemoryError: too little memory.
        """
        return Graph(self._artifact.path(names.TRAINING_GRAPH), num_threads=self._num_threads)

    @cached_property
    def evaluation(self) -> Graph:
        """The graph of forward, loss and counts; raises the errors of :attr:`training`."""
        return Graph(self._artifact.path(names.EVALUATION_GRAPH), num_threads=self._num_threads)

    @property
    def keeps_stored(self) -> Collection[str]:
        """Only tables that are looked up; the graphs take all other weights as float32."""
        return self._artifact.manifest.looked_up

    def load_training(self) -> None:
        """See :meth:`edge_runtime.engine.model.Graphs.load_training`."""
        _ = self.training

    def model(self, weights: FrozenWeights, layout: AdapterLayout, lora_scaling: float) -> FusedModel:
        """See :meth:`edge_runtime.engine.model.Graphs.model`."""
        return FusedModel(self, weights, layout, lora_scaling, self._artifact.manifest.looked_up)


class FusedModel:
    """See :class:`edge_runtime.engine.model.Model`."""

    def __init__(
        self,
        graphs: FusedGraphs,
        weights: FrozenWeights,
        layout: AdapterLayout,
        lora_scaling: float,
        looked_up: Collection[str],
    ) -> None:
        self._graphs = graphs
        self._weights = weights
        self._looked_up = looked_up
        self._sizes = _sizes(layout, lora_scaling)
        self._loss, self._loss_scale = np.zeros((), np.float32), np.zeros((), np.float32)
        self._loss_sum, self._num_correct = np.zeros((), np.float32), np.zeros((), np.int64)

    @cached_property
    def _training(self) -> Binding:
        binding = self._bound(self._graphs.training)
        binding.bind(names.LOSS_SCALE, self._loss_scale)
        binding.bind_output(names.LOSS, self._loss)
        return binding

    @cached_property
    def _evaluation(self) -> Binding:
        binding = self._bound(self._graphs.evaluation)
        binding.bind_output(names.LOSS_SUM, self._loss_sum)
        binding.bind_output(names.NUM_CORRECT, self._num_correct)
        return binding

    def hold(self, layout: AdapterLayout, lora_scaling: float) -> None:
        """See :meth:`edge_runtime.engine.model.Model.hold`."""
        self._sizes = _sizes(layout, lora_scaling)
        for binding in self._in_use():
            _bind_known(binding, self._sizes)

    def reload(self, name: str) -> None:
        """See :meth:`edge_runtime.engine.model.Model.reload`."""
        for binding in self._in_use():
            _bind_known(binding, {name: self._weights[name]})

    def gradient(self, batch: Batch, params: Array, grads: Array, summed: Array, num_targets: int) -> float:
        """See :meth:`edge_runtime.engine.model.Model.gradient`."""
        if batch.num_targets == 0:
            summed[...] = grads
            return 0.0
        binding = self._training
        self._bind_batch(binding, batch)
        self._loss_scale[...] = 1.0 / num_targets
        binding.bind(names.PARAMS, params)
        binding.bind(names.GRAD_ACCUM, grads)
        binding.bind_output(names.GRAD_ACCUM_OUT, summed)
        binding.run()
        return float(self._loss)

    def score(self, batch: Batch, params: Array) -> tuple[float, int]:
        """See :meth:`edge_runtime.engine.model.Model.score`."""
        if batch.num_targets == 0:
            return 0.0, 0
        binding = self._evaluation
        self._bind_batch(binding, batch)
        binding.bind(names.PARAMS, params)
        binding.run()
        return float(self._loss_sum), int(self._num_correct)

    def _in_use(self) -> list[Binding]:
        """Bindings of the graphs that were used so far."""
        return [self.__dict__[part] for part in ("_training", "_evaluation") if part in self.__dict__]

    def _bound(self, graph: Graph) -> Binding:
        binding = Binding(graph)
        for name in binding.graph.inputs.intersection(self._weights).difference(self._looked_up):
            binding.bind(name, self._weights[name])
        _bind_known(binding, self._sizes)
        return binding

    def _bind_batch(self, binding: Binding, batch: Batch) -> None:
        rows, targets = batch.scored()
        token_ids = batch.input_ids
        for name in self._looked_up:
            table, token_ids = self._weights.table(name, token_ids)
            binding.bind(name, table)
        binding.bind(names.INPUT_IDS, token_ids)
        binding.bind(names.ATTENTION_MASK, batch.attention_mask)
        binding.bind(names.TARGETS, targets)
        _bind_known(binding, {names.ROWS: rows})


def _sizes(layout: AdapterLayout, lora_scaling: float) -> dict[str, npt.NDArray[Any]]:
    """Return the inputs that describe an adapter to the graphs."""
    return {
        names.SPLIT_SIZES: layout.sizes,
        names.RANK: np.array([layout.rank], np.int64),
        names.LORA_SCALING: np.array(lora_scaling, np.float32),
    }


def _bind_known(binding: Binding, values: Mapping[str, npt.NDArray[Any]]) -> None:
    """Bind the values that are inputs of the graph; onnxruntime drops unused inputs."""
    for name in binding.graph.inputs & set(values):
        binding.bind(name, values[name])
