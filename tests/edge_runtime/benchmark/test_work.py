"""Every contender gets the same work from the same request."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edge_runtime.benchmark.protocol import BenchmarkRequest
from edge_runtime.benchmark.work import NUM_BATCHES, Work, prepare_work
from edge_runtime.engine.artifact import Artifact
from edge_runtime.errors import PlanError
from edge_runtime.formats.adapter import AdapterLayout
from tests.edge_runtime.benchmark.requests import request_for


@pytest.fixture(params=["tiny_bert_artifact", "tiny_llama_artifact"])
def artifact(request: pytest.FixtureRequest) -> Artifact:
    return Artifact.open(request.getfixturevalue(request.param))


def work_of(artifact: Artifact, request: BenchmarkRequest) -> Work:
    return prepare_work(artifact.manifest, artifact.initial(), request)


def test_a_seed_gives_one_work(artifact: Artifact) -> None:
    request = request_for(artifact.directory, pruning_ratio=0.5)
    first, again = work_of(artifact, request), work_of(artifact, request)
    assert first.plan == again.plan
    assert all(np.array_equal(first.adapter[name], again.adapter[name]) for name in first.adapter)
    for one, other in zip(first.batches, again.batches, strict=True):
        assert np.array_equal(one.input_ids, other.input_ids)
        assert np.array_equal(one.labels, other.labels)


def test_another_seed_gives_another(artifact: Artifact) -> None:
    request = request_for(artifact.directory)
    other = msgspec.structs.replace(request.hyper_parameters, seed=1)
    changed = msgspec.structs.replace(request, hyper_parameters=other)
    one, two = work_of(artifact, request), work_of(artifact, changed)
    assert not np.array_equal(one.batches[0].input_ids, two.batches[0].input_ids)


def test_batches_are_as_large_as_asked_for_and_differ(artifact: Artifact) -> None:
    manifest = artifact.manifest
    work = work_of(artifact, request_for(artifact.directory))
    assert len(work.batches) == NUM_BATCHES
    assert len({batch.input_ids.tobytes() for batch in work.batches}) == NUM_BATCHES
    for batch in work.batches:
        assert batch.input_ids.shape == (3, 8)
        assert 0 <= batch.input_ids.min() <= batch.input_ids.max() < manifest.text.vocab_size
        if manifest.labels:
            assert batch.labels.shape == (3,)
            assert 0 <= batch.labels.min() <= batch.labels.max() < len(manifest.labels)
        else:
            assert np.array_equal(batch.labels, batch.input_ids)


def test_the_adapter_fits_the_plan(artifact: Artifact) -> None:
    work = work_of(artifact, request_for(artifact.directory, pruning_ratio=0.5))
    AdapterLayout.of(artifact.manifest, work.plan, 2).check(work.adapter)
    assert work.plan.sparsity(artifact.manifest) == pytest.approx(0.5, abs=0.05)


def test_a_ratio_that_there_is_not_is_refused(artifact: Artifact) -> None:
    request = request_for(artifact.directory)
    arm = msgspec.structs.replace(request.arm, pruning_ratio=1.5)
    with pytest.raises(PlanError, match=r"1\.5"):
        work_of(artifact, msgspec.structs.replace(request, arm=arm))
