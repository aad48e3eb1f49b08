"""Stages as graphs of their own: a device runs one block at a time, and keeps the activations of no other.

One graph serves all blocks, since they differ in their weights only, which are inputs. The backward of a block contains
its forward, which is computed again; but where a norm follows the residual sum, that sum is kept from the forward, and
the last linear layer, whose output nothing else needs, is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.formats import names
from exporter.artifact.graph import Graph
from exporter.artifact.pieces import accumulated, dimensions, size_of, split_params, unit_sizes
from exporter.artifact.stages import Stages, grad_of
from exporter.artifact.trace import BATCH, LENGTH, RANK, TARGETS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

    from edge_runtime.formats.manifest import Manifest
    from exporter.artifact.graph import Dimension, Output
    from exporter.artifact.stage_graph import StageGraph
    from models.family import Family, ParamSpec

_TOKENS = ("batch", "length")


def stage_graphs(family: Family, manifest: Manifest, stages: Stages) -> dict[str, onnx.ModelProto]:
    """All graphs of the staged mode, by file; their inputs and outputs are in :mod:`edge_runtime.formats.names`."""
    some: dict[str, onnx.ModelProto] = {}
    if stages.plain_block is not None:
        some[names.PLAIN_BLOCK_STAGE] = _block(family, stages.plain_block, "length", has_factors=False)
    if family.scores_first_only:
        some[names.LAST_BLOCK_STAGE] = _block(family, stages.last_block, 1)
        some[names.LAST_BACKWARD_STAGE] = _block_backward(family, stages.last_block, 1, is_first=False)
    return {
        names.EMBEDDING_STAGE: _embedding(family, stages),
        names.BLOCK_STAGE: _block(family, stages.block, "length"),
        names.BLOCK_BACKWARD_STAGE: _block_backward(family, stages.block, "length", is_first=False),
        names.FIRST_BACKWARD_STAGE: _block_backward(family, stages.block, "length", is_first=True),
        **some,
        names.HEAD_STAGE: _head(family, stages),
        names.SCORE_STAGE: _score(family, manifest, stages),
    }


def _embedding(family: Family, stages: Stages) -> onnx.ModelProto:
    graph = Graph()
    inputs = {name: graph.input(name, np.int64, _TOKENS) for name in (names.INPUT_IDS, names.ATTENTION_MASK)}
    inputs |= _weights(graph, [p for p in family.embedding_params if p.name != family.word_embedding])
    rows = ("token_rows", family.hidden_size)
    inputs[family.word_embedding] = graph.input(family.word_embedding, np.float32, rows)
    sizes = {BATCH: size_of(graph, names.INPUT_IDS, 0), LENGTH: size_of(graph, names.INPUT_IDS, 1)}
    wanted = [names.HIDDEN, *(spec.name for spec in family.context)]
    found = stages.embedding.place(graph, inputs, sizes, wanted)
    outputs: dict[str, Output] = {names.HIDDEN_OUT: (found[names.HIDDEN], np.float32, (*_TOKENS, family.hidden_size))}
    outputs |= {spec.name: (found[spec.name], np.float32, spec.shape) for spec in family.context}
    return graph.model("embedding", outputs)


def _block(family: Family, stage: StageGraph, num_out: Dimension, *, has_factors: bool = True) -> onnx.ModelProto:
    graph = Graph()
    inputs, sizes = _block_inputs(graph, family, has_factors=has_factors)
    kept = [names.RESIDUAL] if has_factors and _keeps_residual(family, num_out) else []
    found = stage.place(graph, inputs, sizes, [names.HIDDEN, *kept])
    shape = ("batch", num_out, family.hidden_size)
    outputs: dict[str, Output] = {names.HIDDEN_OUT: (found[names.HIDDEN], np.float32, shape)}
    outputs |= {name: (found[name], np.float32, _residual_shape(family)) for name in kept}
    return graph.model("block", outputs)


def _block_backward(family: Family, stage: StageGraph, num_out: Dimension, *, is_first: bool) -> onnx.ModelProto:
    graph = Graph()
    hidden = (*_TOKENS, family.hidden_size)
    inputs, sizes = _block_inputs(graph, family)
    inputs[names.HIDDEN_GRAD] = graph.input(names.HIDDEN_GRAD, np.float32, ("batch", num_out, family.hidden_size))
    graph.input(names.GRAD_ACCUM, np.float32, ("num_params",))
    kept = [names.RESIDUAL] if _keeps_residual(family, num_out) else []
    given = {name: graph.input(name, np.float32, _residual_shape(family)) for name in kept}
    factors = _factors(family)
    wanted = [*map(grad_of, factors), *([] if is_first else [names.INPUT_GRAD])]
    found = stage.place(graph, inputs, sizes, wanted, given)
    summed = accumulated(graph, factors, {name: found[grad_of(name)] for name in factors})
    outputs: dict[str, Output] = {names.GRAD_ACCUM_OUT: (summed, np.float32, ("num_params",))}
    if not is_first:
        outputs[names.INPUT_GRAD] = (found[names.INPUT_GRAD], np.float32, hidden)
    return graph.model("first_backward" if is_first else "block_backward", outputs)


def _keeps_residual(family: Family, num_out: Dimension) -> bool:
    """Return whether a block's residual sum is kept for its backward: not worth it for first tokens alone."""
    return family.post_norm and num_out != 1


def _residual_shape(family: Family) -> tuple[Dimension, ...]:
    return "tokens", family.hidden_size


def _block_inputs(graph: Graph, family: Family, *, has_factors: bool = True) -> tuple[dict[str, str], dict[str, str]]:
    """Declare the inputs of a block; returns them and its sizes."""
    inputs = {names.HIDDEN: graph.input(names.HIDDEN, np.float32, (*_TOKENS, family.hidden_size))}
    inputs |= {spec.name: graph.input(spec.name, np.float32, spec.shape) for spec in family.context}
    inputs |= _weights(graph, family.block_params)
    sizes = {
        BATCH: size_of(graph, names.HIDDEN, 0),
        LENGTH: size_of(graph, names.HIDDEN, 1),
        **unit_sizes(graph, family, ""),
    }
    if has_factors:
        sizes[RANK] = graph.input(names.RANK, np.int64, (1,))
        inputs[names.LORA_SCALING] = graph.input(names.LORA_SCALING, np.float32, ())
        inputs |= _trainable(graph, _factors(family), {})
    return inputs, sizes


def _head(family: Family, stages: Stages) -> onnx.ModelProto:
    graph = Graph()
    inputs, sizes = _head_inputs(graph, family)
    inputs[names.LOSS_SCALE] = graph.input(names.LOSS_SCALE, np.float32, ())
    found = stages.head.place(graph, inputs, sizes, [names.LOSS, names.INPUT_GRAD, *map(grad_of, family.dense)])
    outputs: dict[str, Output] = {
        names.LOSS: (found[names.LOSS], np.float32, ()),
        names.INPUT_GRAD: (found[names.INPUT_GRAD], np.float32, ("targets", family.hidden_size)),
    }
    if family.dense:
        graph.input(names.GRAD_ACCUM, np.float32, ("num_params",))
        summed = accumulated(graph, family.dense, {name: found[grad_of(name)] for name in family.dense})
        outputs[names.GRAD_ACCUM_OUT] = (summed, np.float32, ("num_params",))
    return graph.model("head", outputs)


def _score(family: Family, manifest: Manifest, stages: Stages) -> onnx.ModelProto:
    graph = Graph()
    inputs, sizes = _head_inputs(graph, family)
    outputs: dict[str, tuple[type[np.generic], tuple[int | str, ...]]] = {
        names.LOSS_SUM: (np.float32, ()),
        names.NUM_CORRECT: (np.int64, ()),
    }
    if manifest.task == "text-classification":
        outputs[names.LOGITS] = (np.float32, ("targets", len(manifest.labels)))
    found = stages.head.place(graph, inputs, sizes, list(outputs))
    return graph.model("score", {name: (found[name], *kind) for name, kind in outputs.items()})


def _head_inputs(graph: Graph, family: Family) -> tuple[dict[str, str], dict[str, str]]:
    """Declare the inputs of a head; returns them and its sizes."""
    inputs = {
        names.HIDDEN: graph.input(names.HIDDEN, np.float32, ("targets", family.hidden_size)),
        names.TARGETS: graph.input(names.TARGETS, np.int64, ("targets",)),
    }
    inputs |= _weights(graph, [param for param in family.head_params if param.name not in family.dense])
    if family.dense:
        shapes = {param.name: param.shape for param in family.head_params}
        inputs |= _trainable(graph, family.dense, {name: shapes[name] for name in family.dense})
    return inputs, {TARGETS: size_of(graph, names.TARGETS, 0)}


def _factors(family: Family) -> list[str]:
    """LoRA factors of a block in the order of the flat vector."""
    return [factor for module in family.target_modules for factor in (names.lora_a(module), names.lora_b(module))]


def _weights(graph: Graph, params: Sequence[ParamSpec]) -> dict[str, str]:
    return {p.name: graph.input(p.name, np.float32, dimensions(p.shape, p.prune, "")) for p in params}


def _trainable(graph: Graph, trainable: Sequence[str], dense: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Declare the flat vector, and cut it."""
    graph.input(names.PARAMS, np.float32, ("num_params",))
    graph.input(names.SPLIT_SIZES, np.int64, ("num_tensors",))
    return split_params(graph, trainable, dense)
