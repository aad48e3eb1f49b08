"""The memory that training will need.

The estimate is the sum of all arrays that are in memory at the peak. Their sizes follow from shapes and constants,
which were fitted to VmHWM of onnxruntime 1.31 on x86-64 over two models (a 22.7 M parameter encoder, a 5.5 M parameter
decoder) and 18 settings of batch, length, pruning ratio and rank for each mode. Measured again on 2026-11-21 (MiniLM,
both modes), estimates are 5 % above.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Final

from edge_runtime.engine.model import Mode
from edge_runtime.engine.staged import SCORE_BYTES
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.ranking import HEADS

_FLOAT_BYTES: Final = 4
_STORED_BYTES: Final = {"float32": 4.0, "float16": 2.0, "int8": 1.02, "nf4": 0.54}
"""Bytes of an element, scales included."""
_PROCESS_BYTES: Final = 90 * 1024 * 1024
"""Interpreter, packages, loaded graphs (76 MB measured), tokenizer and examples."""
_STATE_VECTORS: Final = 13.7
"""Fused mode: vectors of N floats, for adapter, gradients, moments, their next values, and parts inside the graph."""
_STAGED_STATE_VECTORS: Final = 9.5
"""Staged mode: as above, with the pieces of one block."""
_LINEAR_FLOATS: Final = 1.02
"""Fused mode: floats per token for each input and output of a linear layer."""
_STAGED_LINEAR_FLOATS: Final = 1.35
"""Staged mode: the same for the linear layers of one block."""
_ATTENTION_FLOATS: Final = 1.35
"""Fused mode: floats per attention weight (heads x length x length)."""
_STAGED_ATTENTION_FLOATS: Final = 1.9
"""Staged mode: the same for the attention weights of one block."""
_SHORT_LINEAR_SHARE: Final = 0.3
"""Share of a last block that outputs first tokens alone: about the share of keys and values in its linear layers."""
_LOGIT_FLOATS: Final = 4.65
"""Floats per score of a causal-lm (tokens x vocabulary, or the part that staged mode computes at a time)."""
FEATURE_BATCHES: Final = 4
"""Full batches whose tokens pass a block together when features are computed, so that the block is loaded once."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMemory:
    """The memory in use at the peak of a training step, bytes."""

    process: int
    """Interpreter, packages, graphs, tokenizer, examples."""
    weights: int
    """Frozen weights: as float32; in staged mode as they are stored, and one block as float32 too."""
    state: int
    """Adapter, gradients, moments."""
    hidden: int
    """Staged mode: hidden states between blocks and residual sums; fused mode: 0, as ``linear`` includes them."""
    linear: int
    """Inputs and outputs of linear layers, and arrays computed from them: of all blocks, or of one."""
    attention: int
    """Attention weights: of all blocks, or of one."""
    scores: int
    """Scores of a causal-lm and their gradient."""

    @property
    def activations(self) -> int:
        """All memory that grows with the batch."""
        return self.hidden + self.linear + self.attention + self.scores


def estimate_training_bytes(
    manifest: Manifest, plan: Plan, rank: int, batch_size: int, max_length: int, mode: Mode = "fused"
) -> int:
    """Peak resident memory of a device process that trains and evaluates, bytes.

    Args:
        manifest: the artifact's manifest.
        plan: units that stay.
        rank: LoRA rank.
        batch_size: examples in a micro-batch.
        max_length: tokens of the longest batch.
        mode: how graphs are run.

    Raises:
        TensorError: the rank is out of range.
    """
    parts = training_memory(manifest, plan, rank, batch_size, max_length, mode)
    stored = sum(math.prod(tensor.shape) * _STORED_BYTES[tensor.dtype] for tensor in manifest.tensors)
    # While weights are sliced, the stored ones may be resident too; they are freed before the first step.
    return parts.process + parts.weights + max(int(stored), parts.state + parts.activations)


def estimate_features_bytes(manifest: Manifest, plan: Plan, batch_size: int, max_length: int) -> int:
    """Peak resident memory of a device process that computes features of a frozen model, bytes.

    An upper bound: it counts for a block's forward pass the memory of forward and backward in staged training.
    """
    parts = training_memory(manifest, plan, 1, batch_size, max_length, "staged")
    stored = sum(math.prod(tensor.shape) * _STORED_BYTES[tensor.dtype] for tensor in manifest.tensors)
    hidden = _FLOAT_BYTES * (2 * FEATURE_BATCHES + 1) * batch_size * max_length * manifest.hidden_size
    return parts.process + parts.weights + max(int(stored), hidden + parts.linear + parts.attention)


def estimate_forward_bytes(manifest: Manifest, rank: int, batch_size: int, max_length: int) -> int:
    """Peak resident memory of a device process that tunes an adapter by forward passes alone, bytes.

    An upper bound, as :func:`estimate_features_bytes`. Beside activations it counts four vectors (the adapter, its
    perturbed copy, its payload and a preconditioner) and hidden states four times, three in use and one kept.

    Raises:
        TensorError: the rank is out of range.
    """
    plan = Plan.full(manifest)
    parts = training_memory(manifest, plan, rank, batch_size, max_length, "staged")
    stored = sum(math.prod(tensor.shape) * _STORED_BYTES[tensor.dtype] for tensor in manifest.tensors)
    vectors = _FLOAT_BYTES * 4 * AdapterLayout.of(manifest, plan, rank).num_elements
    hidden = _FLOAT_BYTES * 4 * batch_size * max_length * manifest.hidden_size
    activations = hidden + parts.linear + parts.attention + parts.scores
    return parts.process + parts.weights + max(int(stored), vectors + activations)


def estimate_lower_bytes(manifest: Manifest, cut: int, batch_size: int, max_length: int, num_coded: int = 0) -> int:
    """Peak resident memory of a device process that runs embedding and lower blocks alone, bytes.

    An upper bound, as :func:`estimate_features_bytes`. It counts the weights below the cut and outside the blocks,
    except an output matrix; hidden states three times; and the coded activations of all examples twice, as arrays and
    as one blob.

    Args:
        manifest: the artifact's manifest.
        cut: number of blocks.
        batch_size: examples in a forward pass.
        max_length: tokens of the longest batch.
        num_coded: bytes of the coded activations of all examples.
    """
    parts = training_memory(manifest, Plan.full(manifest), 1, batch_size, max_length, "staged")
    stored, converted = 0.0, dict.fromkeys(range(cut), 0)
    (table,) = (tensor for tensor in manifest.tensors if tensor.name == manifest.word_embedding)
    for tensor in manifest.tensors:
        size = math.prod(tensor.shape)
        if tensor.name == table.name:
            stored += size * _STORED_BYTES[tensor.dtype]
        elif tensor.layer is None:
            stored += 0 if tensor.shape == table.shape else _FLOAT_BYTES * size
        elif tensor.layer < cut:
            stored += size * (_STORED_BYTES[tensor.dtype] if len(tensor.shape) > 1 else _FLOAT_BYTES)
            if len(tensor.shape) > 1 and tensor.dtype != "float32":
                converted[tensor.layer] += size * _FLOAT_BYTES
    hidden = _FLOAT_BYTES * 3 * batch_size * max_length * manifest.hidden_size
    weights = int(stored) + max(converted.values(), default=0)
    return parts.process + weights + hidden + parts.linear + parts.attention + 2 * num_coded


def estimate_whole_bytes(manifest: Manifest, batch_size: int, max_length: int) -> int:
    """Peak resident memory of a device process that tunes all weights by forward passes alone, bytes.

    An upper bound, as :func:`estimate_forward_bytes`: all weights as float32, and a second copy of the weights of one
    block and of the weights outside the blocks, except a word embedding that is only looked up.

    Raises:
        TensorError: the manifest has no adapter of rank 1.
    """
    parts = training_memory(manifest, Plan.full(manifest), 1, batch_size, max_length, "staged")
    sizes = {tensor.name: (tensor.layer, math.prod(tensor.shape)) for tensor in manifest.tensors}
    blocks = dict.fromkeys(range(manifest.num_layers), 0)
    outside = 0
    for name, (layer, size) in sizes.items():
        if layer is not None:
            blocks[layer] += size
        elif name not in manifest.looked_up:
            outside += size
    num_floats = sum(size for _, size in sizes.values()) + max(blocks.values(), default=0) + outside
    num_floats += 3 * batch_size * max_length * manifest.hidden_size
    return parts.process + _FLOAT_BYTES * num_floats + parts.linear + parts.attention + parts.scores


def training_memory(
    manifest: Manifest, plan: Plan, rank: int, batch_size: int, max_length: int, mode: Mode
) -> TrainingMemory:
    """The parts of :func:`estimate_training_bytes`, which has the same arguments and errors."""
    tokens = batch_size * max_length
    num_params = AdapterLayout.of(manifest, plan, rank).num_elements
    widths, heads = _linear_widths(manifest, plan), _num_query_heads(manifest, plan)
    scores = tokens * manifest.text.vocab_size if manifest.task == "causal-lm" else 0
    if mode == "fused":
        state, hidden = _STATE_VECTORS * num_params, 0
        linear = _LINEAR_FLOATS * tokens * _of_tuned(manifest, widths, _SHORT_LINEAR_SHARE)
        attention = _ATTENTION_FLOATS * tokens * max_length * _of_tuned(manifest, heads, 0.0)
    else:
        scores = min(scores, SCORE_BYTES // _FLOAT_BYTES)
        state = _STAGED_STATE_VECTORS * num_params
        num_hidden = manifest.num_layers - manifest.first_tuned + 2 + len(manifest.residual_layers)
        hidden = tokens * manifest.hidden_size * num_hidden
        linear = _STAGED_LINEAR_FLOATS * tokens * max(widths.values(), default=0)
        attention = _STAGED_ATTENTION_FLOATS * tokens * max_length * max(heads.values(), default=0)
    return TrainingMemory(
        process=_PROCESS_BYTES,
        weights=_weight_bytes(manifest, plan, mode),
        state=int(_FLOAT_BYTES * state),
        hidden=_FLOAT_BYTES * hidden,
        linear=int(_FLOAT_BYTES * linear),
        attention=int(_FLOAT_BYTES * attention),
        scores=int(_FLOAT_BYTES * _LOGIT_FLOATS * scores),
    )


def _of_tuned(manifest: Manifest, counts: Mapping[int, int], short_share: float) -> float:
    """Sum of counts over the tuned layers; a last block that outputs first tokens alone counts by ``short_share``."""
    is_short, last = manifest.scores_first_only, manifest.num_layers - 1
    return sum(
        count * (short_share if is_short and layer == last else 1.0)
        for layer, count in counts.items()
        if layer >= manifest.first_tuned
    )


def _linear_widths(manifest: Manifest, plan: Plan) -> dict[int, int]:
    """Sum of the inputs and outputs of all linear layers of each block, under the plan."""
    widths: dict[int, int] = {}
    for layer, shape in _matrices(manifest, plan):
        widths[layer] = widths.get(layer, 0) + sum(shape)
    return widths


def _matrices(manifest: Manifest, plan: Plan) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Layer and shape of every matrix of a block, under the plan."""
    for tensor in manifest.tensors:
        if tensor.layer is not None and len(tensor.shape) == 2:
            yield tensor.layer, plan.shape(tensor)


def _num_query_heads(manifest: Manifest, plan: Plan) -> dict[int, int]:
    """Query heads that stay in each layer; with grouped-query attention the width of a unit gives their number."""
    widths: dict[int, list[int]] = {}
    for tensor in manifest.tensors:
        for prune in tensor.prune:
            if tensor.layer is not None and prune.group == HEADS and prune.axis == 0:
                widths.setdefault(tensor.layer, []).append(prune.unit_size)
    return {layer: plan.kept(layer, HEADS).size * (max(sizes) // min(sizes)) for layer, sizes in widths.items()}


def _weight_bytes(manifest: Manifest, plan: Plan, mode: Mode) -> int:
    """Bytes of the sliced weights.

    A word embedding that is not an output matrix is held as it is stored. So are matrices of blocks in staged mode, and
    the matrices of one block are also in memory as float32.
    """
    weights = 0.0
    converted: dict[int, int] = {}
    for tensor in manifest.tensors:
        shape = plan.shape(tensor)
        size = math.prod(shape)
        if mode == "staged" and tensor.layer is not None and len(shape) > 1 and tensor.dtype != "float32":
            weights += size * _STORED_BYTES[tensor.dtype]
            converted[tensor.layer] = converted.get(tensor.layer, 0) + size * _FLOAT_BYTES
        elif tensor.name in manifest.looked_up:
            weights += size * _STORED_BYTES[tensor.dtype]
        else:
            weights += size * _FLOAT_BYTES
    return int(weights) + max(converted.values(), default=0)
