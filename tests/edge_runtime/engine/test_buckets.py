from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.buckets import MIN_SAVING, MIN_TOKENS, buckets
from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.model import MODES, Mode
from edge_runtime.engine.trainer import Trainer
from edge_runtime.formats import adapter as adapters
from edge_runtime.formats import names
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.work import HyperParameters

SOME_LENGTHS = st.lists(st.integers(1, 160), min_size=1, max_size=24)


def make_batch(lengths: list[int], *, of_tokens: bool = False, vocab_size: int = 20) -> Batch:
    rng = np.random.default_rng(0)
    mask = (np.arange(max(lengths))[None, :] < np.array(lengths)[:, None]).astype(np.int64)
    input_ids = rng.integers(1, vocab_size, mask.shape) * mask
    labels = np.where(mask == 1, input_ids, names.IGNORE_LABEL) if of_tokens else rng.integers(0, 3, len(lengths))
    return Batch(input_ids=input_ids, attention_mask=mask, labels=labels)


def rows_of(batch: Batch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every example without its padding, with what is to be predicted."""
    counts = batch.attention_mask.sum(axis=1)
    labels = batch.labels if batch.labels.ndim == 2 else batch.labels[:, None]
    return [
        (tuple(ids[:count].tolist()), tuple(label[:count].tolist()))
        for ids, label, count in zip(batch.input_ids, labels, counts, strict=True)
    ]


@given(lengths=SOME_LENGTHS, of_tokens=st.booleans())
def test_every_example_is_in_one_part_as_it_was(lengths: list[int], *, of_tokens: bool) -> None:
    batch = make_batch(lengths, of_tokens=of_tokens)
    parts = buckets(batch)
    assert sorted(row for part in parts for row in rows_of(part)) == sorted(rows_of(batch))
    assert sum(part.num_targets for part in parts) == batch.num_targets


@given(lengths=SOME_LENGTHS)
def test_parts_hold_less_padding_and_are_no_smaller_than_is_fast(lengths: list[int]) -> None:
    batch = make_batch(lengths)
    parts = buckets(batch)
    if len(parts) == 1:
        assert parts[0] is batch
        return
    assert sum(part.input_ids.size for part in parts) <= (1 - MIN_SAVING) * batch.input_ids.size
    assert all(part.input_ids.size >= MIN_TOKENS for part in parts)
    widths = [part.input_ids.shape[1] for part in parts]
    assert widths == sorted(widths)
    assert all(part.attention_mask.sum(axis=1).max() == part.input_ids.shape[1] for part in parts)


@pytest.mark.parametrize(
    ("lengths", "widths"),
    [
        ([128] * 8, [128]),
        ([64] * 4 + [128] * 4, [64, 128]),
        ([128, 64, 128, 64, 128, 64, 128, 64], [64, 128]),
        ([30] * 10 + [60] * 10 + [120] * 10, [30, 60, 120]),
        ([8] * 4 + [128] * 4, [128]),  # 32 tokens are too few for a part
        ([110] * 4 + [128] * 4, [128]),  # a fourteenth is too little to save
    ],
    ids=str,
)
def test_where_a_batch_is_cut(lengths: list[int], widths: list[int]) -> None:
    assert [part.input_ids.shape[1] for part in buckets(make_batch(lengths))] == widths


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_parts_add_up_to_the_step_of_the_whole_batch(
    family: str, mode: Mode, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = Artifact.open(request.getfixturevalue(f"tiny_{family}_artifact"))
    manifest = artifact.manifest
    batch = make_batch([12] * 24 + [40] * 8, of_tokens=family == "llama")
    assert len(buckets(batch)) == 2
    initial = artifact.initial() if manifest.dense else {}
    start = adapters.initial(manifest, initial, 2, np.random.default_rng(1))
    trainer = Trainer(artifact, num_threads=1, mode=mode)
    hyper = HyperParameters(
        learning_rate=1e-3,
        weight_decay=0.0,
        lora_scaling=2.0,
        max_grad_norm=None,
        num_warmup_steps=0,
        num_local_steps=1,
        batch_size=32,
        num_accumulation_steps=1,
        max_length=40,
        seed=0,
    )
    cut = trainer.start(Plan.full(manifest), 2, start, hyper)
    loss = cut.step([batch])
    monkeypatch.setattr("edge_runtime.engine.trainer.buckets", lambda batch: [batch])
    whole = trainer.start(Plan.full(manifest), 2, start, hyper)
    assert loss == pytest.approx(whole.step([batch]), rel=1e-6)
    for name, expected in whole.gradient().items():
        np.testing.assert_allclose(cut.gradient()[name], expected, rtol=1e-4, atol=1e-7, err_msg=name)
