"""Staged mode: a graph for each stage, run block by block; a block's forward is computed again in its backward.

Alive at a time are the hidden states between blocks, the activations of one block and, where a norm ends a block, the
residual sums before these norms, which spare the backward each block's last linear layer. Scores are computed for so
many positions at a time as take :data:`SCORE_BYTES`, which bounds what a large vocabulary costs.

Shape legend: ``B`` examples, ``L`` length, ``H`` hidden size, ``T`` scored positions, ``C`` classes or vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Batch, Int64
from edge_runtime.engine.frozen import Array, FrozenWeights
from edge_runtime.engine.session import Binding, Graph
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.probe import Head

SCORE_BYTES: Final = 4 * 2**20
"""Size of the scores that are computed at a time; several arrays of that size are alive."""


class StagedGraphs:
    """The stages of an artifact, each loaded on first use; see :mod:`edge_runtime.formats.names`.

    Args:
        artifact: the opened artifact.
        num_threads: threads for one operator.
    """

    def __init__(self, artifact: Artifact, *, num_threads: int) -> None:
        self.manifest = artifact.manifest
        self.first_tuned = artifact.manifest.first_tuned
        self._artifact = artifact
        self._num_threads = num_threads
        self._loaded: dict[str, Graph] = {}

    def stage(self, name: str) -> Graph:
        """The stage in the file ``name``.

        Raises:
            GraphError: onnxruntime refuses it.
            InsufficientMemoryError: too little memory.
        """
        if name not in self._loaded:
            self._loaded[name] = Graph(self._artifact.path(name), num_threads=self._num_threads)
        return self._loaded[name]

    @property
    def keeps_stored(self) -> Collection[str]:
        """Matrices of blocks, converted when it is their turn; and a word embedding that is only looked up."""
        kept = {tensor.name for tensor in self.manifest.tensors if tensor.layer is not None and len(tensor.shape) > 1}
        return kept | self.manifest.looked_up

    def forward(self, layer: int) -> str:
        """File of a block's forward."""
        if layer < self.first_tuned:
            return names.PLAIN_BLOCK_STAGE
        is_last = self.manifest.scores_first_only and layer == self.manifest.num_layers - 1
        return names.LAST_BLOCK_STAGE if is_last else names.BLOCK_STAGE

    def backward(self, layer: int) -> str:
        """File of a block's backward."""
        if self.manifest.scores_first_only and layer == self.manifest.num_layers - 1:
            return names.LAST_BACKWARD_STAGE
        return names.FIRST_BACKWARD_STAGE if layer == self.first_tuned else names.BLOCK_BACKWARD_STAGE

    def load_training(self) -> None:
        """See :meth:`edge_runtime.engine.model.Graphs.load_training`."""
        layers = range(self.manifest.num_layers)
        needed = {names.EMBEDDING_STAGE, names.HEAD_STAGE, *map(self.forward, layers)}
        needed.update(map(self.backward, layers[self.first_tuned :]))
        for name in names.STAGES:
            if name in needed:
                self.stage(name)

    def model(self, weights: FrozenWeights, layout: AdapterLayout, lora_scaling: float) -> StagedModel:
        """See :meth:`edge_runtime.engine.model.Graphs.model`."""
        return StagedModel(self, weights, layout, lora_scaling)


class StagedModel:
    """See :class:`edge_runtime.engine.model.Model`."""

    def __init__(
        self, graphs: StagedGraphs, weights: FrozenWeights, layout: AdapterLayout, lora_scaling: float
    ) -> None:
        self._graphs = graphs
        self._manifest = graphs.manifest
        self._weights = weights
        self._layout, self._parts = layout, layout.parts(self._manifest)
        self._converted: dict[str, Array] = {}
        self._loaded: int | None = None
        self._lora_scaling = np.array(lora_scaling, np.float32)
        self._loss_scale = np.zeros((), np.float32)
        self._bindings: dict[tuple[str, int | None], Binding] = {}
        self._buffers: dict[int, Array] = {}

    def hold(self, layout: AdapterLayout, lora_scaling: float) -> None:
        """See :meth:`edge_runtime.engine.model.Model.hold`."""
        self._layout, self._parts = layout, layout.parts(self._manifest)
        self._lora_scaling[...] = lora_scaling
        for (_, layer), binding in self._bindings.items():
            self._bind_sizes(binding, layer)

    def reload(self, name: str) -> None:
        """See :meth:`edge_runtime.engine.model.Model.reload`."""
        self._loaded = None
        for (_, layer), binding in self._bindings.items():
            prefix = self._prefix(layer)
            if name.startswith(prefix) and name.removeprefix(prefix) in binding.graph.inputs:
                binding.bind(name.removeprefix(prefix), self._readable(name, prefix))

    def gradient(self, batch: Batch, params: Array, grads: Array, summed: Array, num_targets: int) -> float:
        """See :meth:`edge_runtime.engine.model.Model.gradient`."""
        rows, targets = batch.scored()
        if targets.size == 0:
            summed[...] = grads
            return 0.0
        num_layers, first = self._manifest.num_layers, self._graphs.first_tuned
        kept = self._manifest.residual_layers
        buffers = self._hidden(num_layers - first + 2 + len(kept), batch)
        residuals = {layer: _flat(buffer) for layer, buffer in zip(kept, buffers, strict=False)}
        state, spare, *more = buffers[len(kept) :]
        context = self._embed(batch, state)
        # Below the first tuned block no gradient is wanted: two buffers take turns, and nothing is kept.
        for layer in range(first):
            self._forward(layer, state, spare, context, params)
            state, spare = spare, state
        # From there on each block's input is kept: its backward graph computes the block again from it.
        hidden = dict(zip(range(first, num_layers + 1), (state, *more), strict=True))
        for layer in range(first, num_layers):
            self._forward(layer, hidden[layer], hidden[layer + 1], context, params, residuals.get(layer))
        # The last block's output is not needed after the head, so the head writes its gradient over it.
        upstream, other = self._given(num_layers - 1, hidden[num_layers]), hidden[num_layers]
        self._loss_scale[...] = 1.0 / num_targets
        loss = self._head(upstream, rows, targets, params, grads, summed)
        for layer in reversed(range(first, num_layers)):
            binding = self._block(self._graphs.backward(layer), layer, hidden[layer], context, params)
            binding.bind(names.HIDDEN_GRAD, upstream)
            if layer in residuals:
                binding.bind(names.RESIDUAL, residuals[layer])
            binding.bind(names.GRAD_ACCUM, grads[self._parts.blocks[layer]])
            binding.bind_output(names.GRAD_ACCUM_OUT, summed[self._parts.blocks[layer]])
            if names.INPUT_GRAD in binding.graph.outputs:
                binding.bind_output(names.INPUT_GRAD, spare)
            binding.run()
            # What was just written is the gradient of the next block down; the buffer of the one before is free.
            upstream, spare, other = spare, other, spare
        return loss

    def score(self, batch: Batch, params: Array) -> tuple[float, int]:
        """See :meth:`edge_runtime.engine.model.Model.score`."""
        rows, targets = batch.scored()
        if targets.size == 0:
            return 0.0, 0
        (given,) = self._last_hidden([batch], params)
        scored = given[self._among_given(rows)]
        binding = self._stage(names.SCORE_STAGE, None)
        loss_sum, num_correct, total, correct = np.zeros((), np.float32), np.zeros((), np.int64), 0.0, 0
        self._bind_dense(binding, params)
        binding.bind_output(names.LOSS_SUM, loss_sum)
        binding.bind_output(names.NUM_CORRECT, num_correct)
        for piece in self._pieces(targets.size):
            binding.bind(names.HIDDEN, scored[piece])
            binding.bind(names.TARGETS, targets[piece])
            binding.run()
            total, correct = total + float(loss_sum), correct + int(num_correct)
        return total, correct

    def features(self, batches: Sequence[Batch], before_block: Callable[[], None] | None = None) -> list[Array]:
        """What enters the classifier's last linear layer, float32 ``[B, H]`` of each batch; with no adapter.

        All batches pass a block before the next block is loaded, so its weights are converted once for all of them.
        The head's graph gives scores ``W p + b``. With rows of the identity for W and zero for b these are features,
        as many at a time as there are classes; so every artifact will do.

        Args:
            batches: one or more; their hidden states are in memory together, twice.
            before_block: called before a batch passes a block; raises to stop.

        Raises:
            GraphError: onnxruntime failed.
            InsufficientMemoryError: it could not allocate.
        """
        params = np.zeros(self._layout.num_elements, np.float32)
        given = self._last_hidden(batches, params, before_block)
        scored = np.concatenate(
            [one[self._among_given(batch.scored()[0])] for one, batch in zip(given, batches, strict=True)]
        )
        head = Head.of(self._manifest)
        weight = self._layout.unflatten(params)[head.weight]
        binding = self._stage(names.SCORE_STAGE, None)
        binding.bind(names.HIDDEN, scored)
        binding.bind(names.TARGETS, np.zeros(len(scored), np.int64))
        binding.bind_output(names.LOSS_SUM, np.zeros((), np.float32))
        binding.bind_output(names.NUM_CORRECT, np.zeros((), np.int64))
        self._bind_dense(binding, params)
        features = np.empty((len(scored), head.num_features), np.float32)
        for begin in range(0, head.num_features, head.num_classes):
            end = min(begin + head.num_classes, head.num_features)
            weight[...] = np.eye(head.num_classes, head.num_features, begin)
            features[:, begin:end] = binding.run_for([names.LOGITS])[names.LOGITS].numpy()[:, : end - begin]
        return np.split(features, np.cumsum([batch.num_targets for batch in batches])[:-1])

    def _last_hidden(
        self, batches: Sequence[Batch], params: Array, before_block: Callable[[], None] | None = None
    ) -> list[Array]:
        """What the last block gives for each batch: hidden states ``[B * L, H]``, or of the first tokens ``[B, H]``."""
        kept = self._manifest.residual_layers
        states, spare = self._buffer(0, batches), self._buffer(1, batches)
        contexts = [self._embed(batch, state) for batch, state in zip(batches, states, strict=True)]
        for layer in range(self._manifest.num_layers):
            for batch, state, out, context in zip(batches, states, spare, contexts, strict=True):
                if before_block is not None:
                    before_block()
                residual = _flat(*self._buffer(2, [batch])) if layer in kept else None
                self._forward(layer, state, out, context, params, residual)
            states, spare = spare, states
        last, hidden_size = self._manifest.num_layers - 1, self._manifest.hidden_size
        return [self._given(last, state).reshape(-1, hidden_size) for state in states]

    def _embed(self, batch: Batch, out: Array) -> dict[str, Any]:
        """Write hidden states ``[B, L, H]``; returns the context tensors, as onnxruntime has them."""
        binding = self._stage(names.EMBEDDING_STAGE, None)
        table, indices = self._weights.table(self._manifest.word_embedding, batch.input_ids)
        binding.bind(self._manifest.word_embedding, table)
        binding.bind(names.INPUT_IDS, indices)
        binding.bind(names.ATTENTION_MASK, batch.attention_mask)
        binding.bind_output(names.HIDDEN_OUT, out)
        return binding.run_for(self._context_names)

    @cached_property
    def _context_names(self) -> tuple[str, ...]:
        """Those that blocks take of the embedding's outputs."""
        made = self._graphs.stage(names.EMBEDDING_STAGE).outputs - {names.HIDDEN_OUT}
        return tuple(sorted(made))

    def _forward(
        self,
        layer: int,
        hidden: Array,
        out: Array,
        context: Mapping[str, Any],
        params: Array,
        residual: Array | None = None,
    ) -> None:
        """Write the hidden states after a block, and its residual sum, if the graph gives it."""
        binding = self._block(self._graphs.forward(layer), layer, hidden, context, params)
        binding.bind_output(names.HIDDEN_OUT, self._given(layer, out))
        if residual is not None:
            binding.bind_output(names.RESIDUAL, residual)
        binding.run()

    def _given(self, layer: int, buffer: Array) -> Array:
        """Where a block writes its hidden states: all of a buffer ``[B, L, H]``, or ``[B, 1, H]`` at its beginning."""
        if self._graphs.forward(layer) != names.LAST_BLOCK_STAGE:
            return buffer
        batch, _, hidden_size = buffer.shape
        return buffer.reshape(-1)[: batch * hidden_size].reshape(batch, 1, hidden_size)

    def _among_given(self, rows: Int64) -> Int64 | slice:
        """Scored positions among those that the last block gives."""
        return slice(None) if self._manifest.scores_first_only else rows

    def _head(self, hidden: Array, rows: Int64, targets: Int64, params: Array, grads: Array, summed: Array) -> float:
        """Loss; its gradient with respect to ``hidden`` takes the place of that, and dense gradients are added."""
        tokens, given = hidden.reshape(-1, self._manifest.hidden_size), self._among_given(rows)
        scored = tokens[given]
        binding = self._stage(names.HEAD_STAGE, None)
        loss, total = np.zeros((), np.float32), 0.0
        binding.bind(names.LOSS_SCALE, self._loss_scale)
        binding.bind_output(names.LOSS, loss)
        if self._manifest.dense:
            self._bind_dense(binding, params)
            binding.bind(names.GRAD_ACCUM, grads[self._parts.dense])
            binding.bind_output(names.GRAD_ACCUM_OUT, summed[self._parts.dense])
        gradient = np.empty_like(scored)
        for piece in self._pieces(targets.size):
            binding.bind(names.HIDDEN, scored[piece])
            binding.bind(names.TARGETS, targets[piece])
            binding.bind_output(names.INPUT_GRAD, gradient[piece])
            binding.run()
            total += float(loss)
        tokens[...] = 0.0
        tokens[given] = gradient
        return total

    def _hidden(self, count: int, batch: Batch) -> list[Array]:
        """Arrays ``[B, L, H]`` for hidden states and residual sums, the same memory for every batch."""
        return [self._buffer(index, [batch])[0] for index in range(count)]

    def _buffer(self, index: int, batches: Sequence[Batch]) -> list[Array]:
        """An array ``[B, L, H]`` for each batch, one behind the other."""
        shapes = [(*batch.input_ids.shape, self._manifest.hidden_size) for batch in batches]
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        if index not in self._buffers or self._buffers[index].size < ends[-1]:
            self._buffers[index] = np.empty(ends[-1], np.float32)
        parts = np.split(self._buffers[index][: ends[-1]], ends[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _pieces(self, num_targets: int) -> Iterator[slice]:
        """Cut the scored positions; not where a trained head sums its gradient over them."""
        size = num_targets
        if not self._manifest.dense:
            size = max(1, SCORE_BYTES // (4 * self._manifest.text.vocab_size))
        for begin in range(0, num_targets, max(1, size)):
            yield slice(begin, begin + size)

    def _block(self, stage: str, layer: int, hidden: Array, context: Mapping[str, Any], params: Array) -> Binding:
        """A stage of a block with all but its outputs and gradients bound."""
        binding = self._stage(stage, layer)
        self._load(layer)
        binding.bind(names.HIDDEN, hidden)
        if names.PARAMS in binding.graph.inputs:
            binding.bind(names.PARAMS, params[self._parts.blocks[layer]])
        for name, value in context.items():
            if name in binding.graph.inputs:
                binding.bind_value(name, value)
        return binding

    def _stage(self, stage: str, layer: int | None) -> Binding:
        """A stage with weights and sizes bound: of a block, or None for embedding and head."""
        if (stage, layer) not in self._bindings:
            binding = self._bindings[stage, layer] = Binding(self._graphs.stage(stage))
            self._bind_weights(binding, layer)
            self._bind_sizes(binding, layer)
        return self._bindings[stage, layer]

    def _bind_weights(self, binding: Binding, layer: int | None) -> None:
        prefix, looked_up = self._prefix(layer), names.INPUT_IDS in binding.graph.inputs
        for name in binding.graph.inputs:
            if prefix + name in self._weights and not (looked_up and name == self._manifest.word_embedding):
                binding.bind(name, self._readable(prefix + name, prefix))

    def _prefix(self, layer: int | None) -> str:
        return "" if layer is None else self._manifest.block_prefixes[layer]

    def _readable(self, name: str, prefix: str) -> Array:
        """Where a stage reads a weight: where it lies, if that is float32; else memory that blocks share."""
        if not prefix or self._weights.is_float32(name):
            return self._weights[name]
        shape, local = self._weights.held(name).shape, name.removeprefix(prefix)
        size = math.prod(shape)
        if local not in self._converted:
            largest = max(self._weights.held(p + local).size for p in self._manifest.block_prefixes)
            self._converted[local] = np.empty(largest, np.float32)
            self._loaded = None
        return self._converted[local][:size].reshape(shape)

    def _load(self, layer: int) -> None:
        """Convert the weights of a block that are not float32, unless they were the last to be converted."""
        if self._loaded == layer:
            return
        prefix = self._manifest.block_prefixes[layer]
        for local in self._converted:
            if not self._weights.is_float32(prefix + local):
                self._weights.write(prefix + local, self._readable(prefix + local, prefix))
        self._loaded = layer

    def _bind_sizes(self, binding: Binding, layer: int | None) -> None:
        sizes = self._parts.dense_sizes if layer is None else self._parts.block_sizes[layer]
        values: dict[str, npt.NDArray[Any]] = {
            names.SPLIT_SIZES: sizes,
            names.RANK: np.array([self._layout.rank], np.int64),
            names.LORA_SCALING: self._lora_scaling,
        }
        for name in binding.graph.inputs & set(values):
            binding.bind(name, values[name])

    def _bind_dense(self, binding: Binding, params: Array) -> None:
        if self._manifest.dense:
            binding.bind(names.PARAMS, params[self._parts.dense])


def _flat(hidden: Array) -> Array:
    """``[B, L, H]`` as ``[B * L, H]``, the same memory."""
    return hidden.reshape(-1, hidden.shape[-1])
