"""Sums over logits: the evaluation graph's loss, targets and correct predictions."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.dataset import Batch
from edge_runtime.inference.scoring import score_batch, softmax


def batch_of(labels: npt.NDArray[np.int64]) -> Batch:
    ids = np.zeros((len(labels), 4), np.int64)
    return Batch(input_ids=ids, attention_mask=np.ones_like(ids), labels=labels)


def test_classes_by_hand() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]], np.float32))

    result = score_batch(logits, batch_of(np.array([0, 1])))

    assert (result.num_targets, result.num_correct) == (2, 1)
    assert math.isclose(result.loss_sum, -math.log(0.7) - math.log(0.4), rel_tol=1e-6)


def test_tokens_predict_the_next_one_and_padding_is_no_target() -> None:
    probabilities = np.full((1, 4, 2), 0.5, np.float32)
    probabilities[0, 0] = [0.1, 0.9]  # predicts token 1 of the second position

    result = score_batch(np.log(probabilities), batch_of(np.array([[0, 1, -100, -100]])))

    assert (result.num_targets, result.num_correct) == (1, 1)
    assert math.isclose(result.loss_sum, -math.log(0.9), rel_tol=1e-6)


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1000.0, 0.0]], np.float32)

    assert score_batch(logits, batch_of(np.array([1]))).loss_sum == 1000.0
    np.testing.assert_array_equal(softmax(logits), [[1.0, 0.0]])
