"""Staged mode: a graph for each stage, run block by block; a block's forward is computed again in its backward.

The hidden states between blocks and the activations of one block are in memory at a time. If a norm ends a block, the
residual sums before these norms are too, so that the backward need not compute the last linear layer of a block again.
Scores are computed for as many positions at a time as fit :data:`SCORE_BYTES`, which bounds the memory of a large
vocabulary.

Shape legend: ``B`` examples, ``L`` length, ``H`` hidden size, ``T`` scored positions, ``C`` classes or vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Batch, Int64, Lowered
from edge_runtime.engine.frozen import Array, FrozenWeights
from edge_runtime.engine.session import Graph
from edge_runtime.engine.stage_bindings import StageBindings
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.head import Head

SCORE_BYTES: Final = 4 * 2**20
"""Size of the scores that are computed at a time; several arrays of this size are in memory."""


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
            GraphError: onnxruntime refuses the stage.
            InsufficientMemoryError: too little memory.
        """
        if name not in self._loaded:
            self._loaded[name] = Graph(self._artifact.path(name), num_threads=self._num_threads)
        return self._loaded[name]

    @property
    def keeps_stored(self) -> Collection[str]:
        """Matrices of blocks, converted when their block runs, and a word embedding that is only looked up."""
        kept = {tensor.name for tensor in self.manifest.tensors if tensor.layer is not None and len(tensor.shape) > 1}
        return kept | self.manifest.looked_up

    def forward(self, layer: int) -> str:
        """File of a block's forward."""
        if layer < self.first_tuned:
            return names.PLAIN_BLOCK_STAGE
        is_last = self.manifest.scores_first_only and layer == self.manifest.num_layers - 1
        return names.LAST_BLOCK_STAGE if is_last else names.BLOCK_STAGE

    def backward(self, layer: int, first: int) -> str:
        """File of a block's backward; for the ``first`` tuned block it has no gradient of the input."""
        if self.manifest.scores_first_only and layer == self.manifest.num_layers - 1:
            return names.LAST_BACKWARD_STAGE
        return names.FIRST_BACKWARD_STAGE if layer == first else names.BLOCK_BACKWARD_STAGE

    def load_training(self) -> None:
        """See :meth:`edge_runtime.engine.model.Graphs.load_training`."""
        layers = range(self.manifest.num_layers)
        needed = {names.EMBEDDING_STAGE, names.HEAD_STAGE, *map(self.forward, layers)}
        needed.update(self.backward(layer, self.first_tuned) for layer in layers[self.first_tuned :])
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
        self._stages = StageBindings(graphs.stage, self._manifest, weights, layout, lora_scaling)
        self._loss_scale = np.zeros((), np.float32)
        self._buffers: dict[int, Array] = {}

    def hold(self, layout: AdapterLayout, lora_scaling: float) -> None:
        """See :meth:`edge_runtime.engine.model.Model.hold`."""
        self._stages.hold(layout, lora_scaling)

    def reload(self, name: str) -> None:
        """See :meth:`edge_runtime.engine.model.Model.reload`."""
        self._stages.reload(name)

    def convert_again(self) -> None:
        """See :meth:`edge_runtime.engine.stage_bindings.StageBindings.convert_again`."""
        self._stages.convert_again()

    def gradient(self, batch: Batch, params: Array, grads: Array, summed: Array, num_targets: int) -> float:
        """See :meth:`edge_runtime.engine.model.Model.gradient`."""
        rows, targets = batch.scored()
        if targets.size == 0:
            summed[...] = grads
            return 0.0
        # Gradient checkpointing: the forward pass keeps only the input of each tuned block (and the residual sum of
        # those whose backward needs it). A backward graph computes its block again from that input, so the activations
        # inside a block are in memory for one block at a time.
        num_layers, first = self._manifest.num_layers, max(batch.cut, self._graphs.first_tuned)
        kept = [layer for layer in self._manifest.residual_layers if layer >= first]
        buffers = self._hidden(num_layers - first + 2 + len(kept), batch)
        residuals = {layer: _flat(buffer) for layer, buffer in zip(kept, buffers, strict=False)}
        state, spare, *more = buffers[len(kept) :]
        context = self._embed(batch, state)
        if batch.below is not None:
            state[...] = batch.below
        # Blocks below the first tuned one need no gradient: two buffers take turns, and no input is kept.
        for layer in range(batch.cut, first):
            self._forward(layer, state, spare, context, params)
            state, spare = spare, state
        # From the first tuned block on, each block writes into a buffer of its own, which is the next block's input.
        hidden = dict(zip(range(first, num_layers + 1), (state, *more), strict=True))
        for layer in range(first, num_layers):
            self._forward(layer, hidden[layer], hidden[layer + 1], context, params, residuals.get(layer))
        # `upstream` is the gradient of a block's output. The head overwrites the last block's output with it, because
        # that output is no longer needed. `other` is the whole buffer behind `upstream`, which may be its first tokens.
        upstream, other = self._given(num_layers - 1, hidden[num_layers]), hidden[num_layers]
        self._loss_scale[...] = 1.0 / num_targets
        loss = self._head(upstream, rows, targets, params, grads, summed)
        for layer in reversed(range(first, num_layers)):
            binding = self._stages.block(self._graphs.backward(layer, first), layer, hidden[layer], context, params)
            binding.bind(names.HIDDEN_GRAD, upstream)
            if layer in residuals:
                binding.bind(names.RESIDUAL, residuals[layer])
            binding.bind(names.GRAD_ACCUM, grads[self._stages.parts.blocks[layer]])
            binding.bind_output(names.GRAD_ACCUM_OUT, summed[self._stages.parts.blocks[layer]])
            if names.INPUT_GRAD in binding.graph.outputs:
                binding.bind_output(names.INPUT_GRAD, spare)
            binding.run()
            # The gradient in `spare` belongs to the output of the block below. The buffer `other`, which held the old
            # `upstream`, is free for the next one: the two buffers take turns.
            upstream, spare, other = spare, other, spare
        return loss

    def score(self, batch: Batch, params: Array) -> tuple[float, int]:
        """See :meth:`edge_runtime.engine.model.Model.score`."""
        if batch.num_targets == 0:
            return 0.0, 0
        states, contexts = self._embedded([batch])
        (hidden,) = self._after(range(self._manifest.num_layers), states, [batch], contexts, params)
        return self._score(hidden, batch, params)

    def lower(self, batch: Batch, params: Array, cut: int) -> Lowered:
        """Run embedding and the blocks below ``cut``, 0 to the number of blocks; forward graphs alone.

        Args:
            batch: examples.
            params: flat adapter, float32 ``[N]``; only the factors of those blocks are read.
            cut: number of blocks.

        Raises:
            GraphError: onnxruntime failed.
            InsufficientMemoryError: it could not allocate.
        """
        states, contexts = self._embedded([batch])
        (hidden,) = self._after(range(cut), states, [batch], contexts, params)
        return Lowered(hidden=hidden.copy(), context=contexts[0])

    def upper(self, lowered: Lowered, batch: Batch, params: Array, cut: int) -> tuple[float, int]:
        """Run the blocks from ``cut`` on, and score: after :meth:`lower`, the result of :meth:`score` to the last bit.

        Args:
            lowered: the same batch at the same cut; it is not changed, so several adapters can share it.
            batch: examples.
            params: flat adapter, float32 ``[N]``; only the factors of those blocks and dense tensors are read.
            cut: number of blocks before ``lowered``. Returns and raises as :meth:`score`.
        """
        layers = range(cut, self._manifest.num_layers)
        (hidden,) = self._after(layers, [lowered.hidden], [batch], [lowered.context], params)
        return self._score(hidden, batch, params)

    def upper_each(
        self, lowered: Lowered, batch: Batch, params: Array, cut: int, count: int, write: Callable[[int, slice], None]
    ) -> list[float]:
        """Sums of losses of several adapters, equal to those of :meth:`upper` to the last bit.

        All adapters pass a block before the next block is loaded, so its weights are converted once. ``write`` takes
        the number of an adapter, below ``count``, and a place of ``params``, and writes the adapter's elements there
        before they are read. The hidden states of all adapters are in memory together, twice.
        """
        layers, parts = range(cut, self._manifest.num_layers), self._stages.parts
        turns = iter([(index, parts.blocks[layer]) for layer in layers for index in range(count)])
        states, contexts = [lowered.hidden] * count, [lowered.context] * count
        given = self._after(layers, states, [batch] * count, contexts, params, lambda: write(*next(turns)))
        sums = []
        for index, hidden in enumerate(given):
            write(index, parts.dense)
            sums.append(self._score(hidden, batch, params)[0])
        return sums

    def _score(self, hidden: Array, batch: Batch, params: Array) -> tuple[float, int]:
        """Score the output of the last block; see :meth:`score`."""
        rows, targets = batch.scored()
        scored = self._at(rows, hidden)
        binding = self._stages.stage(names.SCORE_STAGE, None)
        loss_sum, num_correct, total, correct = np.zeros((), np.float32), np.zeros((), np.int64), 0.0, 0
        self._stages.bind_dense(binding, params)
        binding.bind_output(names.LOSS_SUM, loss_sum)
        binding.bind_output(names.NUM_CORRECT, num_correct)
        for piece in self._pieces(targets.size):
            binding.bind(names.HIDDEN, scored[piece])
            binding.bind(names.TARGETS, targets[piece])
            binding.run()
            total, correct = total + float(loss_sum), correct + int(num_correct)
        return total, correct

    def features(self, batches: Sequence[Batch], before_block: Callable[[], None] | None = None) -> list[Array]:
        """Return the inputs of the classifier's last linear layer, without an adapter: float32 ``[B, H]`` per batch.

        All batches pass a block before the next block is loaded, so its weights are converted once for all of them.
        The head's graph computes scores ``W p + b``. With rows of the identity as W and zero as b the scores are
        features, as many at a time as there are classes. So the graphs of every artifact suffice.

        Args:
            batches: one or more; their hidden states are in memory together, twice.
            before_block: called before a batch passes a block; raises to stop.

        Raises:
            GraphError: onnxruntime failed.
            InsufficientMemoryError: it could not allocate.
        """
        params = np.zeros(self._stages.layout.num_elements, np.float32)
        states, contexts = self._embedded(batches)
        given = self._after(range(self._manifest.num_layers), states, batches, contexts, params, before_block)
        scored = np.concatenate(
            [self._at(batch.scored()[0], hidden) for batch, hidden in zip(batches, given, strict=True)]
        )
        head = Head.of(self._manifest)
        weight = self._stages.layout.unflatten(params)[head.weight]
        binding = self._stages.stage(names.SCORE_STAGE, None)
        binding.bind(names.HIDDEN, scored)
        binding.bind(names.TARGETS, np.zeros(len(scored), np.int64))
        binding.bind_output(names.LOSS_SUM, np.zeros((), np.float32))
        binding.bind_output(names.NUM_CORRECT, np.zeros((), np.int64))
        self._stages.bind_dense(binding, params)
        features = np.empty((len(scored), head.num_features), np.float32)
        for begin in range(0, head.num_features, head.num_classes):
            end = min(begin + head.num_classes, head.num_features)
            weight[...] = np.eye(head.num_classes, head.num_features, begin)
            features[:, begin:end] = binding.run_for([names.LOGITS])[names.LOGITS].numpy()[:, : end - begin]
        return np.split(features, np.cumsum([batch.num_targets for batch in batches])[:-1])

    def _embedded(self, batches: Sequence[Batch]) -> tuple[list[Array], list[dict[str, Any]]]:
        """Hidden states before the first block, in the first buffer, and the context tensors, of each batch."""
        states = self._buffer(0, batches)
        return states, [self._embed(batch, state) for batch, state in zip(batches, states, strict=True)]

    def _after(
        self,
        layers: range,
        states: list[Array],
        batches: Sequence[Batch],
        contexts: Sequence[Mapping[str, Any]],
        params: Array,
        before_block: Callable[[], None] | None = None,
    ) -> list[Array]:
        """Hidden states after the blocks ``layers``, in one of the first two buffers; unchanged without a block."""
        spare, out = self._buffer(0, batches), self._buffer(1, batches)
        for layer in layers:
            for batch, state, after, context in zip(batches, states, out, contexts, strict=True):
                if before_block is not None:
                    before_block()
                residual = _flat(*self._buffer(2, [batch])) if layer in self._manifest.residual_layers else None
                self._forward(layer, state, after, context, params, residual)
            states, out, spare = out, spare, out
        return [self._given(layers[-1], state) for state in states] if layers else states

    def _embed(self, batch: Batch, out: Array) -> dict[str, Any]:
        """Write hidden states ``[B, L, H]``; return the context tensors, as values of onnxruntime."""
        binding = self._stages.stage(names.EMBEDDING_STAGE, None)
        table, indices = self._weights.table(self._manifest.word_embedding, batch.input_ids)
        binding.bind(self._manifest.word_embedding, table)
        binding.bind(names.INPUT_IDS, indices)
        binding.bind(names.ATTENTION_MASK, batch.attention_mask)
        binding.bind_output(names.HIDDEN_OUT, out)
        return binding.run_for(self._context_names)

    @cached_property
    def _context_names(self) -> tuple[str, ...]:
        """Names of the embedding's outputs that are inputs of blocks."""
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
        """Write the hidden states after a block, and its residual sum if that is an output of the graph."""
        binding = self._stages.block(self._graphs.forward(layer), layer, hidden, context, params)
        binding.bind_output(names.HIDDEN_OUT, self._given(layer, out))
        if residual is not None:
            binding.bind_output(names.RESIDUAL, residual)
        binding.run()
        binding.bind(names.HIDDEN, out)  # releases the binding's reference to the input

    def _given(self, layer: int, buffer: Array) -> Array:
        """Return the part of a buffer for a block's hidden states: all ``[B, L, H]``, or its first ``[B, 1, H]``."""
        if self._graphs.forward(layer) != names.LAST_BLOCK_STAGE:
            return buffer
        batch, _, hidden_size = buffer.shape
        return buffer.reshape(-1)[: batch * hidden_size].reshape(batch, 1, hidden_size)

    def _at(self, rows: Int64, hidden: Array) -> Array:
        """Hidden states of the scored positions, ``[T, H]``, from the last block's output."""
        return hidden.reshape(-1, self._manifest.hidden_size)[self._among_given(rows)]

    def _among_given(self, rows: Int64) -> Int64 | slice:
        """Scored positions as indices of the positions that the last block outputs."""
        return slice(None) if self._manifest.scores_first_only else rows

    def _head(self, hidden: Array, rows: Int64, targets: Int64, params: Array, grads: Array, summed: Array) -> float:
        """Return the loss; overwrite ``hidden`` by its gradient, and add the gradients of dense tensors."""
        tokens, given = hidden.reshape(-1, self._manifest.hidden_size), self._among_given(rows)
        scored = tokens[given]
        binding = self._stages.stage(names.HEAD_STAGE, None)
        loss, total = np.zeros((), np.float32), 0.0
        binding.bind(names.LOSS_SCALE, self._loss_scale)
        binding.bind_output(names.LOSS, loss)
        if self._manifest.dense:
            self._stages.bind_dense(binding, params)
            binding.bind(names.GRAD_ACCUM, grads[self._stages.parts.dense])
            binding.bind_output(names.GRAD_ACCUM_OUT, summed[self._stages.parts.dense])
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
        """An array ``[B, L, H]`` for each batch, consecutive in one buffer."""
        shapes = [(*batch.input_ids.shape, self._manifest.hidden_size) for batch in batches]
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        if index not in self._buffers or self._buffers[index].size < ends[-1]:
            self._buffers[index] = np.empty(ends[-1], np.float32)
        parts = np.split(self._buffers[index][: ends[-1]], ends[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _pieces(self, num_targets: int) -> Iterator[slice]:
        """Cut the scored positions into pieces; one piece if the gradient of a trained head is summed over them."""
        size = num_targets
        if not self._manifest.dense:
            size = max(1, SCORE_BYTES // (4 * self._manifest.text.vocab_size))
        for begin in range(0, num_targets, max(1, size)):
            yield slice(begin, begin + size)


def _flat(hidden: Array) -> Array:
    """View ``[B, L, H]`` as ``[B * L, H]``."""
    return hidden.reshape(-1, hidden.shape[-1])
