"""The forward graph that onnxruntime-training differentiates: our stages composed, loss inside, values as initializers.

The same stages as in the artifact's own graphs. Nothing had to be lowered for 1.19.2's gradient builder: it knows
LayerNormalization where the node has all three of its outputs, as ours do. Operators of the model are those of the
evaluation graph; the flat adapter is split inside, so it is one parameter here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper

from edge_runtime.formats import names
from exporter.artifact.compose import Composition

if TYPE_CHECKING:
    import onnx

    from edge_runtime.formats.manifest import Manifest
    from exporter.artifact.stages import Stages
    from models.family import Family


def forward_graph(family: Family, manifest: Manifest, stages: Stages) -> onnx.ModelProto:
    """Loss (scaled) and number of right answers of a batch; all weights and sizes are inputs."""
    composition = Composition(family, manifest, stages)
    graph = composition.graph
    graph.input(names.LOSS_SCALE, np.float32, ())
    hidden = composition.embed()
    for layer in range(family.num_layers):
        hidden = composition.block(layer, hidden)
    found = composition.head(hidden, [names.LOSS, names.NUM_CORRECT])
    return graph.model(
        "forward",
        {
            names.LOSS: (found[names.LOSS], np.float32, ()),
            names.NUM_CORRECT: (found[names.NUM_CORRECT], np.int64, ()),
        },
    )


def with_values(graph: onnx.ModelProto, values: Mapping[str, npt.NDArray[Any]]) -> onnx.ModelProto:
    """A copy of a graph in which some inputs have become initializers, those that no node takes left out."""
    model = type(graph)()
    model.CopyFrom(graph)
    used = {value for node in model.graph.node for value in node.input}
    free = [entry for entry in model.graph.input if entry.name not in values]
    del model.graph.input[:]
    model.graph.input.extend(free)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in values.items() if name in used
    )
    return model
