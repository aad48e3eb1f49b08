"""The door to onnxruntime: sessions with options for training on a small board, and inputs that are bound once."""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edge_runtime.engine.errors import GraphError, InsufficientMemoryError

_PROVIDERS: Final = ["CPUExecutionProvider"]
ERRORS_ONLY: Final = 3
_NO_MEMORY: Final = ("bad_alloc", "bad allocation", "Failed to allocate", "out of memory", "BFCArena")


class Interrupt:
    """Ends the run of a graph from another thread, between two operators, even inside an endless loop.

    A context manager: runs of its thread inside the block can be ended, and every run after :meth:`set` ends at once.
    """

    def __init__(self) -> None:
        self.options: Any = ort.RunOptions()

    def set(self) -> None:
        """End the current run with a :class:`GraphError` in its thread; may be called twice, from any thread."""
        self.options.terminate = True

    def __enter__(self) -> None:
        self._token = _interrupt.set(self)

    def __exit__(self, *_: object) -> None:
        _interrupt.reset(self._token)


_interrupt: contextvars.ContextVar[Interrupt | None] = contextvars.ContextVar("interrupt", default=None)


class Graph:
    """A loaded graph. It holds no weights, so all arms share it; make a :class:`Binding` for each use.

    Args:
        path: ONNX file.
        num_threads: threads for one operator, 1 or more.
        profile_prefix: prefix of the file to which onnxruntime's profiler writes the time of each operator, when the
            session's ``end_profiling()`` is called; None = the profiler is off.

    Raises:
        GraphError: onnxruntime refuses the file.
        InsufficientMemoryError: the graph cannot be loaded for lack of memory.
    """

    def __init__(self, path: Path, *, num_threads: int, profile_prefix: Path | None = None) -> None:
        options = _options(num_threads)
        if profile_prefix is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile_prefix)
        try:
            self.session: Any = ort.InferenceSession(str(path), options, providers=_PROVIDERS)
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise translate(error, f"cannot load {path}") from error
        self.inputs: frozenset[str] = frozenset(value.name for value in self.session.get_inputs())
        self.outputs: frozenset[str] = frozenset(value.name for value in self.session.get_outputs())
        self.path = path


class Binding:
    """Arrays bound to the inputs and outputs of a graph.

    onnxruntime reads and writes the memory of the arrays: nothing is copied, and the next run reads an array that was
    changed in place. The binding keeps the arrays alive.

    Attributes:
        graph: the graph of these inputs and outputs.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._io: Any = graph.session.io_binding()
        self._alive: dict[str, npt.NDArray[np.generic]] = {}
        self._values: dict[str, Any] = {}

    def bind(self, name: str, value: npt.NDArray[Any]) -> None:
        """Bind an input, replacing an earlier array; the array must be C-contiguous."""
        self._io.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
        self._alive[name] = value

    def bind_output(self, name: str, value: npt.NDArray[Any]) -> None:
        """Bind an output to an array that will be overwritten; it must have the output's shape and type."""
        self._io.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(value))
        self._alive[name] = value

    def bind_value(self, name: str, value: Any) -> None:  # noqa: ANN401 - onnxruntime has no types
        """Bind an input to an output of another binding's :meth:`run_for`; nothing is copied."""
        self._io.bind_ortvalue_input(name, value)
        self._values[name] = value

    def run_for(self, outputs: Sequence[str]) -> dict[str, Any]:
        """Run the graph once on the bound arrays; return outputs without a bound array, as values of onnxruntime.

        Raises:
            GraphError: onnxruntime failed.
            InsufficientMemoryError: it could not allocate.
        """
        for name in outputs:
            self._io.bind_output(name, "cpu")
        self.run()
        return dict(zip(outputs, self._io.get_outputs()[-len(outputs) :], strict=True)) if outputs else {}

    def run(self) -> None:
        """Run the graph once on the bound arrays.

        Raises:
            GraphError: onnxruntime failed.
            InsufficientMemoryError: it could not allocate.
        """
        try:
            interrupt = _interrupt.get()
            self.graph.session.run_with_iobinding(self._io, None if interrupt is None else interrupt.options)
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise translate(error, f"{self.graph.path.name} failed") from error


def _options(num_threads: int) -> Any:  # noqa: ANN401 - onnxruntime has no types
    _share_one_arena()
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Planning one block of memory per input shape costs a third more memory and saves no time (measured).
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Several processes share the cores of a board, or of an emulated fleet, so waiting threads must not spin.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


@functools.cache
def _share_one_arena() -> None:
    """Let all sessions of the process allocate from one arena, so that evaluation reuses the memory of training.

    The arena grows by powers of two; growth by the requested size (``kSameAsRequested``) needs a quarter more memory
    when the lengths of batches vary (measured).
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    arena = ort.OrtArenaCfg({"arena_extend_strategy": 0, "max_mem": 0})
    ort.create_and_register_allocator(memory, arena)


def translate(error: Exception, what: str) -> GraphError | InsufficientMemoryError:
    """Translate an error of onnxruntime to an error of this package, in one line."""
    detail = " ".join(str(error).split())
    if isinstance(error, MemoryError) or any(mark in detail for mark in _NO_MEMORY):
        return InsufficientMemoryError(f"{what}: out of memory; use a cheaper arm, a smaller batch or shorter texts")
    return GraphError(f"{what}: {detail[:500]}")
