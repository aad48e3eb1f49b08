"""Tracing: a function of tensors with symbolic sizes becomes a flat list of ATen operations, its backward included.

One pass of :func:`torch.fx.experimental.proxy_tensor.make_fx` over fake tensors records the function, and the
operations of :func:`torch.autograd.grad` inside it. Sizes are a few symbols that all inputs share (one rank, one number
of heads), not one symbol per axis as in ``torch.export``, where reasoning about symbols took nine tenths of the time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import torch
from torch._decomp import core_aten_decompositions
from torch._subclasses.fake_tensor import FakeTensorMode, disable_fake_tensor_cache
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from exporter.errors import ExportError

BATCH: Final = "batch"
LENGTH: Final = "length"
RANK: Final = "rank"
TARGETS: Final = "targets"

# Any sizes do, as long as none equals another or a product of others; no memory is allocated.
_FIRST_HINT: Final = 10_007
_HINT_STEP: Final = 1_006

_WHOLE: Final = {
    torch.ops.aten.gelu_backward.default,
    torch.ops.aten.native_layer_norm_backward.default,
    torch.ops.aten.t.default,
    torch.ops.aten.transpose.int,
    torch.ops.aten.detach.default,
}
"""Core ATen takes these apart. :mod:`exporter.artifact.operators` has ways with fewer passes over memory for the first
two; the others are a third of all operations, and taking them apart was a sixth of the time of a trace."""

Tensors = Mapping[str, torch.Tensor]
Axis = int | str | tuple[str, int]
"""A fixed size, a named size, or a named size times a fixed one."""


class Traced:
    """The result of a trace.

    Attributes:
        module: graph whose placeholders are the inputs in order and whose nodes carry fake values in ``meta["val"]``.
        inputs: names of the placeholders, in order.
        outputs: names of the outputs, in order.
        symbols: text of a size symbol to the size's name.
    """

    def __init__(
        self, module: torch.fx.GraphModule, inputs: Sequence[str], outputs: Sequence[str], symbols: Mapping[str, str]
    ) -> None:
        self.module = module
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.symbols = dict(symbols)


class Tracer:
    """Makes fake inputs over one set of named sizes, and traces functions of them."""

    def __init__(self, sizes: Sequence[str]) -> None:
        self._environment = ShapeEnv()
        self._mode = FakeTensorMode(shape_env=self._environment, allow_non_fake_inputs=True)
        self._sizes: dict[str, torch.SymInt] = {}
        context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
        for index, name in enumerate(sizes):
            hint = torch.empty(_FIRST_HINT + index * _HINT_STEP, device="meta")
            self._sizes[name] = cast("torch.SymInt", self._mode.from_tensor(hint, symbolic_context=context).shape[0])

    def tensor(self, shape: Sequence[Axis], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A fake tensor."""
        with self._mode:
            return torch.empty([self._size(axis) for axis in shape], dtype=dtype)

    def _size(self, axis: Axis) -> int | torch.SymInt:
        if isinstance(axis, int):
            return axis
        if isinstance(axis, str):
            return self._sizes[axis]
        return self._sizes[axis[0]] * axis[1]

    def trace(self, function: Callable[[Tensors], Tensors], inputs: Tensors) -> Traced:
        """Record ``function``, which may call ``torch.autograd.grad``, on named fake tensors.

        Raises:
            ExportError: the function fixed a size that must stay free.
        """
        names = list(inputs)
        outputs: list[str] = []

        def flat(*tensors: torch.Tensor) -> list[torch.Tensor]:
            result = function(dict(zip(names, tensors, strict=True)))
            outputs[:] = list(result)
            return list(result.values())

        # Few operations come twice with the same symbols: the cache of their results costs more than it saves.
        with self._mode, disable_fake_tensor_cache(self._mode):
            module = make_fx(flat, decomposition_table=_decompositions())(*inputs.values())
        symbols = {str(size.node.expr): name for name, size in self._sizes.items()}
        if lost := set(self._sizes) - set(symbols.values()) or any(not s.isidentifier() for s in symbols):
            msg = f"tracing fixed or merged a size that must stay free: {lost} ({sorted(symbols)})"
            raise ExportError(msg)
        module.graph.eliminate_dead_code()
        return Traced(module, names, outputs, symbols)


@functools.cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    return {op: how for op, how in core_aten_decompositions().items() if op not in _WHOLE}
