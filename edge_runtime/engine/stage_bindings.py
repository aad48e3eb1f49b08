"""Bindings of a model's stages, with all inputs that stay the same for all batches: weights, sizes and scaling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.frozen import Array, BlockWeights, FrozenWeights
from edge_runtime.engine.session import Binding, Graph
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Manifest


class StageBindings:
    """The bindings of one model: one for each stage and block, made on first use.

    Args:
        graph: returns the graph of a stage, by the name of its file.
        manifest: manifest of the artifact.
        weights: frozen weights of one plan.
        layout: layout of the adapters.
        lora_scaling: alpha / rank.

    Attributes:
        layout: layout of the adapters.
        parts: place of each block's adapters in the flat vector.
    """

    def __init__(
        self,
        graph: Callable[[str], Graph],
        manifest: Manifest,
        weights: FrozenWeights,
        layout: AdapterLayout,
        lora_scaling: float,
    ) -> None:
        self._graph = graph
        self._manifest = manifest
        self._weights = weights
        self.layout, self.parts = layout, layout.parts(manifest)
        self._blocks = BlockWeights(weights, manifest.block_prefixes)
        self._lora_scaling = np.array(lora_scaling, np.float32)
        self._bindings: dict[tuple[str, int | None], Binding] = {}

    def hold(self, layout: AdapterLayout, lora_scaling: float) -> None:
        """See :meth:`edge_runtime.engine.model.Model.hold`."""
        self.layout, self.parts = layout, layout.parts(self._manifest)
        self._lora_scaling[...] = lora_scaling
        for (_, layer), binding in self._bindings.items():
            self._bind_sizes(binding, layer)

    def reload(self, name: str) -> None:
        """See :meth:`edge_runtime.engine.model.Model.reload`."""
        self._blocks.reload()
        for (_, layer), binding in self._bindings.items():
            prefix = self._blocks.prefix(layer)
            if name.startswith(prefix) and name.removeprefix(prefix) in binding.graph.inputs:
                binding.bind(name.removeprefix(prefix), self._blocks.readable(name, prefix))

    def convert_again(self) -> None:
        """Read the weights of blocks anew, after their values changed in place."""
        self._blocks.reload()

    def block(self, stage: str, layer: int, hidden: Array, context: Mapping[str, Any], params: Array) -> Binding:
        """A stage of a block, with all inputs bound except outputs and gradients.

        Args:
            stage: file of the stage.
            layer: number of the block.
            hidden: hidden states before it, float32 ``[B, L, H]``.
            context: other inputs of all blocks, as values of onnxruntime.
            params: flat adapter, float32 ``[N]``.
        """
        binding = self.stage(stage, layer)
        self._blocks.load(layer)
        binding.bind(names.HIDDEN, hidden)
        if names.PARAMS in binding.graph.inputs:
            binding.bind(names.PARAMS, params[self.parts.blocks[layer]])
        for name, value in context.items():
            if name in binding.graph.inputs:
                binding.bind_value(name, value)
        return binding

    def stage(self, stage: str, layer: int | None) -> Binding:
        """A stage of a block, or of embedding and head (``layer`` None), with weights and sizes bound."""
        if (stage, layer) not in self._bindings:
            binding = self._bindings[stage, layer] = Binding(self._graph(stage))
            self._bind_weights(binding, layer)
            self._bind_sizes(binding, layer)
        return self._bindings[stage, layer]

    def bind_dense(self, binding: Binding, params: Array) -> None:
        """Bind the dense tensors of a flat adapter, if the model has any."""
        if self._manifest.dense:
            binding.bind(names.PARAMS, params[self.parts.dense])

    def _bind_weights(self, binding: Binding, layer: int | None) -> None:
        prefix, looked_up = self._blocks.prefix(layer), names.INPUT_IDS in binding.graph.inputs
        for name in binding.graph.inputs:
            if prefix + name in self._weights and not (looked_up and name == self._manifest.word_embedding):
                binding.bind(name, self._blocks.readable(prefix + name, prefix))

    def _bind_sizes(self, binding: Binding, layer: int | None) -> None:
        sizes = self.parts.dense_sizes if layer is None else self.parts.block_sizes[layer]
        values: dict[str, npt.NDArray[Any]] = {
            names.SPLIT_SIZES: sizes,
            names.RANK: np.array([self.layout.rank], np.int64),
            names.LORA_SCALING: self._lora_scaling,
        }
        for name in binding.graph.inputs & set(values):
            binding.bind(name, values[name])
