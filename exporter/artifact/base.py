"""The base blob: frozen weights as an artifact stores them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from edge_runtime.formats.manifest import NF4_BLOCK_SIZE, block_axis
from edge_runtime.formats.quantization import SCALES_SUFFIX, Kind, quantize

if TYPE_CHECKING:
    from edge_runtime.formats.manifest import BaseDtype, Dtype
    from models.family import ParamSpec
    from models.loading import PretrainedModel

_DTYPES: Final[dict[torch.dtype, Dtype]] = {torch.float32: "float32", torch.float16: "float16"}


class Base:
    """Frozen weights, ready to be written.

    Attributes:
        dtypes: type of each weight by name.
        tensors: of the blob: weights, or their codes, by name, and scales.
    """

    def __init__(self, model: PretrainedModel, wanted: BaseDtype) -> None:
        """Convert a model's frozen weights.

        Matrices of blocks become ``wanted``; in ``nf4`` those that it does not divide, and all other matrices, become
        int8. Vectors stay as they are under both. A weight that float16 cannot hold stays float32.

        Raises:
            TensorError: a matrix to be quantised is not finite.
        """
        self.dtypes: dict[str, Dtype] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        of_blocks = {model.family.block_prefix(layer) for layer in range(model.family.num_layers)}
        for param in model.family.frozen_params():
            value = model.frozen[param.name]
            if wanted in {"int8", "nf4"} and value.dim() == 2:
                is_of_block = any(param.name.startswith(prefix) for prefix in of_blocks)
                self._quantize(param, value, _kind(param, value) if wanted == "nf4" and is_of_block else "int8")
            else:
                self._keep(param.name, _converted(value, wanted))

    def _keep(self, name: str, value: torch.Tensor) -> None:
        self.dtypes[name], self.tensors[name] = _DTYPES[value.dtype], value

    def _quantize(self, param: ParamSpec, value: torch.Tensor, kind: Kind) -> None:
        found = quantize(value.to(torch.float32).numpy(), kind, block_axis(param.prune))
        self.dtypes[param.name] = kind
        self.tensors[param.name] = torch.from_numpy(found.codes)
        self.tensors[param.name + SCALES_SUFFIX] = torch.from_numpy(found.scales)


def _kind(param: ParamSpec, value: torch.Tensor) -> Kind:
    return "int8" if value.shape[block_axis(param.prune)] % NF4_BLOCK_SIZE else "nf4"


def _converted(value: torch.Tensor, wanted: BaseDtype) -> torch.Tensor:
    if wanted == "float32":
        return value.to(torch.float32)
    if wanted == "float16" and value.to(torch.float16).isfinite().all():
        return value.to(torch.float16)
    return value
