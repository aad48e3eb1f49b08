"""The memory estimate: grows with what costs memory, and is near what a process really takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.memory import estimate_training_bytes, training_memory
from edge_runtime.engine.model import MODES, Mode
from edge_runtime.errors import TensorError
from edge_runtime.formats import names
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.work import HyperParameters


@pytest.fixture(params=["tiny_bert_artifact", "tiny_llama_artifact"])
def manifest(request: pytest.FixtureRequest) -> Manifest:
    return Artifact.open(request.getfixturevalue(request.param)).manifest


@pytest.mark.parametrize("mode", MODES)
def test_estimate_grows_with_batch_length_and_rank(manifest: Manifest, mode: Mode) -> None:
    plan = Plan.full(manifest)
    base = estimate_training_bytes(manifest, plan, 4, 64, 64, mode)
    assert estimate_training_bytes(manifest, plan, 4, 128, 64, mode) > base
    assert estimate_training_bytes(manifest, plan, 4, 64, 128, mode) > base
    assert estimate_training_bytes(manifest, plan, 8, 64, 64, mode) > base


def test_staged_mode_needs_less(tiny_llama_artifact: Path) -> None:
    """Not so for the encoder: of its two blocks the last computes first tokens alone."""
    manifest = Artifact.open(tiny_llama_artifact).manifest
    fused, staged = (estimate_training_bytes(manifest, Plan.full(manifest), 4, 64, 64, mode) for mode in MODES)
    assert staged < fused


def test_residual_sums_are_counted(tiny_bert_artifact: Path) -> None:
    manifest = Artifact.open(tiny_bert_artifact).manifest
    whole, plan = msgspec.structs.replace(manifest, post_norm=False), Plan.full(manifest)
    with_sums, without = (training_memory(one, plan, 4, 8, 64, "staged").hidden for one in (manifest, whole))
    assert with_sums - without == 4 * 8 * 64 * manifest.hidden_size, "of the first block; the last gives first tokens"


def test_a_last_block_for_first_tokens_alone_needs_less(tiny_bert_artifact: Path) -> None:
    manifest = Artifact.open(tiny_bert_artifact).manifest
    whole = msgspec.structs.replace(
        manifest, files={name: ref for name, ref in manifest.files.items() if name != names.LAST_BLOCK_STAGE}
    )
    short, long = (estimate_training_bytes(one, Plan.full(one), 4, 64, 64, "fused") for one in (manifest, whole))
    assert short < long


def test_blocks_that_are_not_tuned_keep_nothing(manifest: Manifest) -> None:
    top = tuple(target for target in manifest.targets if target.layer == manifest.num_layers - 1)
    tuned = msgspec.structs.replace(manifest, targets=top)
    for mode in MODES:
        few, all_of_them = (estimate_training_bytes(one, Plan.full(one), 4, 64, 64, mode) for one in (tuned, manifest))
        assert few < all_of_them


@pytest.mark.parametrize("group", ["heads", "channels"])
def test_estimate_shrinks_with_the_plan(manifest: Manifest, group: str) -> None:
    pruned = Plan.from_kept(manifest, {(layer, group): [1] for layer in range(manifest.num_layers)})
    for mode in MODES:
        whole = estimate_training_bytes(manifest, Plan.full(manifest), 4, 64, 64, mode)
        assert estimate_training_bytes(manifest, pruned, 4, 64, 64, mode) < whole


def test_estimate_refuses_a_rank_out_of_range(manifest: Manifest) -> None:
    with pytest.raises(TensorError):
        estimate_training_bytes(manifest, Plan.full(manifest), 0, 1, 8)


_MEASURE = """
import sys
from pathlib import Path
import msgspec, numpy as np
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.trainer import Trainer
from edge_runtime.formats import adapter
from edge_runtime.wire.work import HyperParameters
from edge_runtime.formats.plan import Plan
from edge_runtime.system.resident import peak_rss_bytes
artifact = Artifact.open(Path(sys.argv[1]))
given = msgspec.json.decode(sys.argv[2], type=HyperParameters)
start = adapter.initial(artifact.manifest, artifact.initial(), 8, np.random.default_rng(0))
run = Trainer(artifact, num_threads=1, mode=sys.argv[3]).start(Plan.full(artifact.manifest), 8, start, given)
ids = np.random.default_rng(0).integers(0, artifact.manifest.text.vocab_size, (given.batch_size, given.max_length))
labels = ids if artifact.manifest.task == "causal-lm" else ids[:, 0] % 3
batch = Batch(input_ids=ids, attention_mask=np.ones_like(ids), labels=labels)
for _ in range(2):
    run.step([batch])
print(peak_rss_bytes())
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_estimate_is_near_the_measured_peak(manifest: Manifest, request: pytest.FixtureRequest, mode: Mode) -> None:
    """Large batches of a tiny model, so that activations are most of it."""
    directory = request.getfixturevalue(request.node.callspec.params["manifest"])
    given = HyperParameters(
        learning_rate=1e-3,
        weight_decay=0.0,
        lora_scaling=2.0,
        max_grad_norm=None,
        num_warmup_steps=0,
        num_local_steps=2,
        batch_size=256,
        num_accumulation_steps=1,
        max_length=64,
        seed=0,
    )
    command = [sys.executable, "-c", _MEASURE, str(directory), msgspec.json.encode(given).decode(), mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    measured = int(done.stdout)
    estimate = estimate_training_bytes(manifest, Plan.full(manifest), 8, given.batch_size, given.max_length, mode)
    assert 0.75 * measured <= estimate <= 1.25 * measured
