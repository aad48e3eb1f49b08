"""The head of a classifier: its last linear layer, which an artifact trains whole."""

from __future__ import annotations

import dataclasses

import numpy as np

from edge_runtime.errors import TensorError
from edge_runtime.formats.adapter import Tensors
from edge_runtime.formats.manifest import Manifest


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The last linear layer of a classifier: names of its tensors, and its size."""

    weight: str
    """Float32 ``[C, H]``."""
    bias: str
    """Float32 ``[C]``."""
    num_classes: int
    num_features: int

    @classmethod
    def of(cls, manifest: Manifest) -> Head:
        """The head of an artifact.

        Raises:
            TensorError: the model has no such head.
        """
        matrices = [dense for dense in manifest.dense if len(dense.shape) == 2]
        vectors = [dense for dense in manifest.dense if len(dense.shape) == 1]
        if len(matrices) != 1 or len(vectors) != 1 or vectors[0].shape[0] != matrices[0].shape[0]:
            msg = (
                f"a classifier with one weight and one bias is needed, {manifest.model_name} ({manifest.task}) has "
                "none: choose a method that trains LoRA factors, or export a model for text-classification"
            )
            raise TensorError(msg)
        num_classes, num_features = matrices[0].shape
        return cls(weight=matrices[0].name, bias=vectors[0].name, num_classes=num_classes, num_features=num_features)

    def check(self, tensors: Tensors) -> None:
        """Refuse tensors that are not exactly this head.

        Raises:
            TensorError: names the first that differs.
        """
        expected = {self.weight: (self.num_classes, self.num_features), self.bias: (self.num_classes,)}
        if set(tensors) != set(expected):
            differing = sorted(set(tensors) ^ set(expected))
            msg = f"a head has other tensors than expected, for example {differing[0]!r} ({len(differing)} differ)"
            raise TensorError(msg)
        for name, shape in expected.items():
            if tensors[name].shape != shape:
                msg = f"head tensor {name!r} has shape {tensors[name].shape}, expected {shape}"
                raise TensorError(msg)
            if not np.isfinite(tensors[name]).all():
                msg = f"head tensor {name!r} holds values that are not finite"
                raise TensorError(msg)
