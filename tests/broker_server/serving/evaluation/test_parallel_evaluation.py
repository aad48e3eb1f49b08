"""Evaluation in parts: every example once, whatever the number of parts."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.serving.evaluation.parallel import evaluate_in_parts
from edge_runtime.engine.dataset import Dataset
from edge_runtime.engine.errors import GraphError
from edge_runtime.engine.evaluator import EvaluationResult


def _dataset(lengths: list[int]) -> Dataset:
    return Dataset(
        tokens=np.concatenate([np.full(length, n, np.int32) for n, length in enumerate(lengths)]),
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        labels=np.arange(len(lengths), dtype=np.int64),
        pad_token_id=0,
    )


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30), num_parts=st.integers(1, 5))
def test_every_example_is_evaluated_once(lengths: list[int], num_parts: int) -> None:
    lock, seen = threading.Lock(), []

    def evaluate(part: Dataset) -> EvaluationResult:
        assert part.labels is not None
        with lock:
            seen.extend(part.labels.tolist())
        return EvaluationResult(loss_sum=float(part.tokens.size), num_targets=len(part), num_correct=1)

    result = evaluate_in_parts(_dataset(lengths), [evaluate] * num_parts)

    assert sorted(seen) == list(range(len(lengths)))
    assert (result.loss_sum, result.num_targets) == (float(sum(lengths)), len(lengths))


def test_an_error_in_one_part_is_the_whole_s() -> None:
    def fail(_: Dataset) -> EvaluationResult:
        msg = "no"
        raise GraphError(msg)

    with pytest.raises(GraphError):
        evaluate_in_parts(_dataset([1, 2, 3]), [fail, fail])
