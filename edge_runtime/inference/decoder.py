"""The generation loop of a decoder on plain onnxruntime, with its key/value cache."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from edge_runtime.engine.session import Graph
from edge_runtime.inference.errors import CompactModelError
from edge_runtime.inference.forward import ATTENTION_MASK, INPUT_IDS, LOGITS, POSITION_IDS, check_interface, run
from edge_runtime.inference.sampling import Sampling, choose
from edge_runtime.inference.scoring import Float32, Int64

PREFILL_TOKENS: Final = 128
"""A prompt is read in pieces of this many tokens, which bounds the logits held at once (tokens x vocabulary)."""

_PAST: Final = "past_key_values."
_PRESENT: Final = "present."
_CACHE_AXES: Final = 4


class Decoder:
    """A graph exported as text-generation-with-past.

    The cache stays in onnxruntime's values from step to step, so that nothing is converted or copied in Python.

    Raises:
        CompactModelError: the graph is not one.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._caches: dict[str, list[Any]] = {
            node.name: node.shape for node in graph.session.get_inputs() if node.name.startswith(_PAST)
        }
        self._outputs = [LOGITS, *(_PRESENT + name.removeprefix(_PAST) for name in self._caches)]
        check_interface(graph, [INPUT_IDS, ATTENTION_MASK, *self._caches], self._outputs)
        for name, shape in self._caches.items():
            if len(shape) != _CACHE_AXES or not isinstance(shape[1], int) or not isinstance(shape[3], int):
                msg = f"{graph.path}: {name} has shape {shape}, expected [batch, heads, length, size]: make it again"
                raise CompactModelError(msg)

    def forward(self, input_ids: Int64, attention_mask: Int64) -> Float32:
        """Logits float32 ``[batch, length, vocab]`` of whole sequences; both arguments int64 ``[batch, length]``.

        Raises:
            InferenceError: onnxruntime failed.
        """
        logits, _ = self._step(input_ids, attention_mask, 0, self._empty_cache(input_ids.shape[0]))
        return logits

    def forward_in_steps(self, input_ids: Int64, num_first: int) -> Float32:
        """As :meth:`forward`, with the cache: the first ``num_first`` tokens at once, the others one by one.

        Raises:
            InferenceError: onnxruntime failed.
        """
        cache = self._empty_cache(input_ids.shape[0])
        parts = []
        for start, end in itertools.pairwise([0, *range(num_first, input_ids.shape[1] + 1)]):
            mask = np.ones((input_ids.shape[0], end), np.int64)
            logits, cache = self._step(np.ascontiguousarray(input_ids[:, start:end]), mask, start, cache)
            parts.append(logits)
        return np.concatenate(parts, axis=1)

    def tokens(self, prompt_ids: Sequence[int], sampling: Sampling, rng: np.random.Generator) -> Iterator[int]:
        """Token ids that continue a prompt of one token or more, without end: the caller stops.

        Raises:
            InferenceError: onnxruntime failed, for example beyond the model's positions.
        """
        cache = self._empty_cache(1)
        pending = list(prompt_ids)
        num_past = 0
        while True:
            for start in range(0, len(pending), PREFILL_TOKENS):
                piece = np.array([pending[start : start + PREFILL_TOKENS]], np.int64)
                mask = np.ones((1, num_past + piece.size), np.int64)
                logits, cache = self._step(piece, mask, num_past, cache)
                num_past += piece.size
            pending = [choose(logits[0, -1], sampling, rng)]
            yield pending[0]

    def _empty_cache(self, batch: int) -> list[Any]:
        return [np.zeros((batch, shape[1], 0, shape[3]), np.float32) for shape in self._caches.values()]

    def _step(
        self, input_ids: Int64, attention_mask: Int64, num_past: int, cache: list[Any]
    ) -> tuple[Float32, list[Any]]:
        feeds: dict[str, Any] = {INPUT_IDS: input_ids, ATTENTION_MASK: attention_mask}
        if POSITION_IDS in self._graph.inputs:
            positions = np.arange(num_past, num_past + input_ids.shape[1], dtype=np.int64)
            feeds[POSITION_IDS] = np.ascontiguousarray(np.broadcast_to(positions, input_ids.shape))
        feeds.update(zip(self._caches, cache, strict=True))
        logits, *presents = run(self._graph, self._outputs, feeds)
        return logits.numpy(), presents
