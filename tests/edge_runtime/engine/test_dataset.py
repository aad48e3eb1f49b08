"""Batches: every example once an epoch, padded as little as may be."""

from __future__ import annotations

import dataclasses
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.engine.dataset import Dataset, batches, eval_batches
from edge_runtime.engine.errors import DataEmptyError, DataInvalidError


def make_dataset(lengths: list[int], *, classify: bool = True) -> Dataset:
    """Example ``e`` is ``e + 1`` repeated; its label is ``e``."""
    return Dataset(
        tokens=np.repeat(np.arange(1, len(lengths) + 1), lengths).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=np.arange(len(lengths), dtype=np.int64) if classify else None,
        pad_token_id=0,
    )


_lengths = st.lists(st.integers(1, 20), min_size=1, max_size=30)


@given(lengths=_lengths, batch_size=st.integers(1, 40), seed=st.integers(0, 9))
def test_every_epoch_holds_every_example_once(lengths: list[int], batch_size: int, seed: int) -> None:
    dataset = make_dataset(lengths)
    size = min(batch_size, len(lengths))
    drawn = [b.labels for b in islice(batches(dataset, batch_size, np.random.default_rng(seed)), 2 * len(lengths))]
    assert {labels.size for labels in drawn} == {size}
    stream = np.concatenate(drawn)
    for epoch in range(stream.size // len(lengths)):
        part = stream[epoch * len(lengths) : (epoch + 1) * len(lengths)]
        assert sorted(part) == list(range(len(lengths)))


@pytest.mark.parametrize("class_balance", [0.0, 0.5, 1.0])
def test_same_seed_same_order(class_balance: float) -> None:
    dataset = make_dataset([3] * 10)

    def drawn(seed: int) -> list[list[int]]:
        rng = np.random.default_rng(seed)
        return [b.labels.tolist() for b in islice(batches(dataset, 4, rng, class_balance=class_balance), 6)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 9),
)
def test_classes_take_turns_and_each_has_epochs_of_its_own(counts: list[int], batch_size: int, seed: int) -> None:
    """Classes 1, 3, 5, ...: some that the artifact knows do not occur."""
    labels = np.repeat(1 + 2 * np.arange(len(counts)), counts)
    dataset = dataclasses.replace(make_dataset([1] * labels.size), labels=labels)
    num_turns = 2 * max(counts)
    num_batches = -(-num_turns * len(counts) // min(batch_size, labels.size))

    drawn = list(islice(batches(dataset, batch_size, np.random.default_rng(seed), class_balance=1.0), num_batches))

    assert {b.labels.size for b in drawn} == {min(batch_size, labels.size)}
    examples = np.concatenate([b.input_ids[:, 0] for b in drawn])[: num_turns * len(counts)] - 1
    turns = labels[examples].reshape(num_turns, len(counts))
    assert np.array_equal(np.sort(turns, axis=1), np.broadcast_to(np.unique(labels), turns.shape))
    for label, count in zip(np.unique(labels), counts, strict=True):
        own = examples[labels[examples] == label]
        for epoch in range(own.size // count):
            part = own[epoch * count : (epoch + 1) * count]
            assert sorted(part) == np.flatnonzero(labels == label).tolist()


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    class_balance=st.floats(0.01, 1.0),
    num_drawn=st.integers(1, 300),
    seed=st.integers(0, 9),
)
def test_each_class_gets_its_share_of_any_number_of_draws(
    counts: list[int], class_balance: float, num_drawn: int, seed: int
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    dataset = dataclasses.replace(make_dataset([1] * labels.size), labels=labels)
    weights = np.array(counts) ** (1.0 - class_balance)

    drawn = islice(batches(dataset, 1, np.random.default_rng(seed), class_balance=class_balance), num_drawn)

    got = np.bincount(np.concatenate([batch.labels for batch in drawn]), minlength=len(counts))
    assert np.abs(got - num_drawn * weights / weights.sum()).max() <= len(counts)


def test_without_classes_there_is_nothing_to_balance() -> None:
    with pytest.raises(DataInvalidError, match="no classes"):
        next(batches(make_dataset([2, 3], classify=False), 1, np.random.default_rng(0), class_balance=1.0))


@given(lengths=_lengths, batch_size=st.integers(1, 40))
def test_evaluation_sees_every_example_once(lengths: list[int], batch_size: int) -> None:
    seen = [b.labels for b in eval_batches(make_dataset(lengths), batch_size)]
    assert sorted(np.concatenate(seen)) == list(range(len(lengths)))


def test_evaluation_starts_with_the_longest() -> None:
    sizes = [b.input_ids.shape[1] for b in eval_batches(make_dataset([1, 20, 3, 9, 17]), 2)]
    assert sizes == [20, 9, 1]


@given(lengths=_lengths)
def test_batch_is_as_long_as_its_longest_example(lengths: list[int]) -> None:
    batch = make_dataset(lengths).batch(np.arange(len(lengths)))
    assert batch.input_ids.shape == (len(lengths), max(lengths))
    assert batch.attention_mask.sum(axis=1).tolist() == lengths


def test_padding_is_masked_and_no_target() -> None:
    batch = make_dataset([2, 3], classify=False).batch(np.array([1, 0]))
    assert batch.input_ids[0].tolist() == [2, 2, 2]
    assert batch.attention_mask[1].tolist() == [1, 1, 0]
    assert batch.labels[1].tolist() == [1, 1, -100]


def test_the_first_token_of_an_example_is_scored() -> None:
    rows, targets = make_dataset([3, 1, 2]).batch(np.arange(3)).scored()
    assert rows.tolist() == [0, 3, 6]
    assert targets.tolist() == [0, 1, 2]


def test_every_token_that_a_token_follows_is_scored_and_no_padding() -> None:
    batch = make_dataset([3, 1, 2], classify=False).batch(np.array([2, 0, 1]))
    batch.input_ids[:2] = [[5, 6, 0], [7, 8, 9]]
    rows, targets = dataclasses.replace(
        batch, labels=np.where(batch.attention_mask == 1, batch.input_ids, -100)
    ).scored()
    assert rows.tolist() == [0, 3, 4]
    assert targets.tolist() == [6, 8, 9]


@given(lengths=_lengths)
def test_as_many_tokens_are_scored_as_follow_another(lengths: list[int]) -> None:
    rows, targets = make_dataset(lengths, classify=False).batch(np.arange(len(lengths))).scored()
    assert rows.size == targets.size == sum(length - 1 for length in lengths)
    assert (np.diff(rows) > 0).all()


@given(lengths=_lengths, data=st.data())
def test_holdout_parts_are_disjoint_and_complete(lengths: list[int], data: st.DataObject) -> None:
    dataset = make_dataset(lengths)
    num_holdout = data.draw(st.integers(0, len(lengths) - 1))
    train, held = dataset.split_holdout(num_holdout, seed=3)
    assert len(held) == num_holdout
    assert train.labels is not None
    assert held.labels is not None
    assert sorted([*train.labels, *held.labels]) == list(range(len(lengths)))
    for part in (train, held):
        assert part.labels is not None
        for row, label in enumerate(part.labels):
            assert part.tokens[part.offsets[row] : part.offsets[row + 1]].tolist() == [label + 1] * lengths[label]


def test_holdout_leaves_something_to_train_on() -> None:
    with pytest.raises(DataEmptyError, match="too few"):
        make_dataset([1, 1]).split_holdout(2, seed=0)
    with pytest.raises(DataInvalidError, match="expected 0 or more"):
        make_dataset([1, 1]).split_holdout(-1, seed=0)


def test_no_example_to_train_on() -> None:
    empty = make_dataset([1]).subset(np.array([], np.int64))
    with pytest.raises(DataEmptyError):
        next(batches(empty, 1, np.random.default_rng(0)))
    assert list(eval_batches(empty, 1)) == []
