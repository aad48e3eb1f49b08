"""Stages composed into whole graphs: training (forward, loss, backward) and evaluation.

Fused mode: a block's backward contains its forward, which is merged with the earlier forward, so nothing is computed
twice. Only nodes that an output needs are placed: the gradient of the embedding, for example, is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.names import HIDDEN, HIDDEN_GRAD, INPUT_GRAD
from edge_runtime.formats.plan import Plan
from exporter.artifact.graph import Graph
from exporter.artifact.pieces import accumulated, dimensions, size_of, split_params, unit_sizes
from exporter.artifact.stages import Stages, grad_of
from exporter.artifact.trace import BATCH, LENGTH, RANK, TARGETS

if TYPE_CHECKING:
    import onnx

    from edge_runtime.formats.manifest import Manifest
    from exporter.artifact.graph import Dimension
    from exporter.artifact.stage_graph import StageGraph
    from models.family import Family


class Composition:
    """A graph with the inputs that training and evaluation share; blocks are placed one after the other."""

    def __init__(self, family: Family, manifest: Manifest, stages: Stages) -> None:
        self.graph = Graph()
        self._family = family
        self._manifest = manifest
        self._stages = stages
        self._inputs()
        layout = AdapterLayout.of(manifest, Plan.full(manifest), 1)
        self._trainable = split_params(self.graph, list(layout.shapes), {d.name: d.shape for d in manifest.dense})
        self._batch_sizes = {
            BATCH: size_of(self.graph, names.INPUT_IDS, 0),
            LENGTH: size_of(self.graph, names.INPUT_IDS, 1),
        }
        self._context: dict[str, str] = {}

    def _inputs(self) -> None:
        graph = self.graph
        for name in (names.INPUT_IDS, names.ATTENTION_MASK):
            graph.input(name, np.int64, ("batch", "length"))
        for name in (names.TARGETS,) if self._family.scores_first_only else (names.ROWS, names.TARGETS):
            graph.input(name, np.int64, ("targets",))
        graph.input(names.PARAMS, np.float32, ("num_params",))
        graph.input(names.SPLIT_SIZES, np.int64, ("num_tensors",))
        graph.input(names.RANK, np.int64, (1,))
        graph.input(names.LORA_SCALING, np.float32, ())
        for spec in self._manifest.tensors:
            axes = dimensions(spec.shape, spec.prune, f"layer{spec.layer}_")
            if spec.name in self._manifest.looked_up:
                axes[0] = "token_rows"  # only the rows that a batch needs
            graph.input(spec.name, np.float32, axes)

    def _unit_sizes(self, layer: int) -> dict[str, str]:
        return unit_sizes(self.graph, self._family, self._family.block_prefix(layer))

    def embed(self) -> str:
        """Place the embedding; returns the first hidden states."""
        inputs = {name: name for name in (names.INPUT_IDS, names.ATTENTION_MASK)}
        inputs |= {p.name: p.name for p in self._family.embedding_params}
        wanted = [HIDDEN, *(spec.name for spec in self._family.context)]
        with self.graph.scope("embedding"):
            self._context = self._stages.embedding.place(self.graph, inputs, self._batch_sizes, wanted)
        return self._context.pop(HIDDEN)

    def _block_inputs(self, layer: int, hidden: str) -> dict[str, str]:
        prefix = self._family.block_prefix(layer)
        inputs = {p.name: prefix + p.name for p in self._family.block_params}
        if layer >= self._family.first_tuned:
            for module in self._family.target_modules:
                for factor in (names.lora_a(module), names.lora_b(module)):
                    inputs[factor] = self._trainable[prefix + factor]
        return {**inputs, **self._context, names.LORA_SCALING: names.LORA_SCALING, HIDDEN: hidden}

    def _stage(self, layer: int) -> StageGraph:
        if self._stages.plain_block is not None and layer < self._family.first_tuned:
            return self._stages.plain_block
        return self._stages.last_block if layer == self._family.num_layers - 1 else self._stages.block

    def block(self, layer: int, hidden: str) -> str:
        """Place the forward of a block; returns its hidden states."""
        sizes = {**self._batch_sizes, RANK: names.RANK, **self._unit_sizes(layer)}
        with self.graph.scope(f"block{layer}"):
            out = self._stage(layer).place(self.graph, self._block_inputs(layer, hidden), sizes, [HIDDEN])
        return out[HIDDEN]

    def block_backward(self, layer: int, hidden: str, gradient: str) -> tuple[dict[str, str], str | None]:
        """Place the vector-Jacobian product of a block.

        Args:
            layer: index of the block.
            hidden: hidden states that the block took.
            gradient: with respect to those that it gave.

        Returns:
            Gradients of the trainable tensors by name, and the gradient with respect to ``hidden``; None for the first
            block that is tuned, because nothing before it is.
        """
        prefix = self._family.block_prefix(layer)
        inputs = {**self._block_inputs(layer, hidden), HIDDEN_GRAD: gradient}
        factors = [f for m in self._family.target_modules for f in (names.lora_a(m), names.lora_b(m))]
        wanted = [*map(grad_of, factors)] + ([INPUT_GRAD] if layer > self._family.first_tuned else [])
        sizes = {**self._batch_sizes, RANK: names.RANK, **self._unit_sizes(layer)}
        with self.graph.scope(f"block{layer}.backward"):
            out = self._stage(layer).place(self.graph, inputs, sizes, wanted)
        return {prefix + factor: out[grad_of(factor)] for factor in factors}, out.get(INPUT_GRAD)

    def head(self, hidden: str, wanted: list[str]) -> dict[str, str]:
        """Place the head, or the part that ``wanted`` needs, on the positions that are scored.

        Args:
            hidden: hidden states of the last block, ``[B, S, H]``, or ``[B, 1, H]`` where no others are scored.
            wanted: outputs of the stage; the gradient with respect to ``hidden`` comes back in its shape.
        """
        graph, sizes = self.graph, {TARGETS: size_of(self.graph, names.TARGETS, 0)}
        inputs = {p.name: self._trainable.get(p.name, p.name) for p in self._family.head_params}
        inputs |= {names.TARGETS: names.TARGETS, names.LOSS_SCALE: names.LOSS_SCALE}
        with graph.scope("head"):
            shape = graph.op("Shape", hidden)
            tokens = graph.op("Reshape", hidden, graph.constant([-1, self._manifest.hidden_size], np.int64))
            is_scored = self._family.scores_first_only
            inputs[HIDDEN] = tokens if is_scored else graph.op("Gather", tokens, names.ROWS, axis=0)
            found = self._stages.head.place(graph, inputs, sizes, wanted)
            if INPUT_GRAD in found:
                gradient = found[INPUT_GRAD] if is_scored else self._spread(found[INPUT_GRAD], tokens)
                found[INPUT_GRAD] = graph.op("Reshape", gradient, shape)
        return found

    def _spread(self, gradient: str, tokens: str) -> str:
        """The gradient of scored positions ``[T, H]`` among zeros for the others, in the shape of ``tokens``."""
        zeros = self.graph.op("ConstantOfShape", self.graph.op("Shape", tokens))
        rows = self.graph.op("Unsqueeze", names.ROWS, self.graph.constant([1], np.int64))
        return self.graph.op("ScatterND", zeros, rows, gradient)


def evaluation_graph(family: Family, manifest: Manifest, stages: Stages) -> onnx.ModelProto:
    """Forward and counts; names in :mod:`edge_runtime.formats.names`."""
    composition = Composition(family, manifest, stages)
    hidden = composition.embed()
    for layer in range(family.num_layers):
        hidden = composition.block(layer, hidden)
    wanted = [names.LOSS_SUM, names.NUM_CORRECT]
    if manifest.task == "text-classification":
        wanted.append(names.LOGITS)
    found = composition.head(hidden, wanted)
    outputs: dict[str, tuple[str, type[np.generic], tuple[Dimension, ...]]] = {
        names.LOSS_SUM: (found[names.LOSS_SUM], np.float32, ()),
        names.NUM_CORRECT: (found[names.NUM_CORRECT], np.int64, ()),
    }
    if manifest.task == "text-classification":
        outputs[names.LOGITS] = (found[names.LOGITS], np.float32, ("targets", len(manifest.labels)))
    return composition.graph.model("evaluation", outputs)


def training_graph(family: Family, manifest: Manifest, stages: Stages) -> onnx.ModelProto:
    """Forward, loss and backward; names in :mod:`edge_runtime.formats.names`."""
    composition = Composition(family, manifest, stages)
    graph = composition.graph
    graph.input(names.LOSS_SCALE, np.float32, ())
    graph.input(names.GRAD_ACCUM, np.float32, ("num_params",))
    hidden = [composition.embed()]
    for layer in range(family.num_layers):
        hidden.append(composition.block(layer, hidden[-1]))
    dense = [spec.name for spec in manifest.dense]
    head = composition.head(hidden[-1], [names.LOSS, INPUT_GRAD, *map(grad_of, dense)])
    gradients = {name: head[grad_of(name)] for name in dense}
    upstream: str | None = head[INPUT_GRAD]
    for layer in reversed(range(family.first_tuned, family.num_layers)):
        if upstream is not None:
            found, upstream = composition.block_backward(layer, hidden[layer], upstream)
            gradients |= found
    trainable = list(AdapterLayout.of(manifest, Plan.full(manifest), 1).shapes)
    return graph.model(
        "training",
        {
            names.LOSS: (head[names.LOSS], np.float32, ()),
            names.GRAD_ACCUM_OUT: (accumulated(graph, trainable, gradients), np.float32, ("num_params",)),
        },
    )
