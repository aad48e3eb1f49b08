"""Make the folder that the device conformance tests read: ``python tests/conformance/prepare.py FOLDER``.

Runs where torch is. For each family, and once more with its base in eight bits: a tiny artifact, examples, an adapter
to start from, and for several arms what PyTorch says of losses, gradients, the trained adapter and the evaluation
(reference.py); a run that shrinks on its way and scores its units (shrinking.py); rounds of zero-order tuning, and
where they lead; and, with the base as it is, a compact model with PyTorch's logits and greedy tokens.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import transformers
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.dataset import Dataset, batches
from edge_runtime.formats import adapter as adapters
from edge_runtime.formats.manifest import BaseDtype, Manifest, Task
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.logged_rounds import LoggedRound, PreconditionerStart
from edge_runtime.zero_order.preconditioner import apply_log
from exporter.artifact.export import export_model
from exporter.compact.export import compact_source
from exporter.compact.merge import merged_model
from exporter.compact.source import CompactSource
from models.registry import family_for
from models.surgery import prune_model
from tests.conformance.reference import HYPER_PARAMETERS, MAX_LENGTH, Reference
from tests.conformance.shrinking import prepare_shrinking

Array = npt.NDArray[np.float32]

TASKS: Final[dict[str, Task]] = {"bert": "text-classification", "llama": "causal-lm"}
LABELS: Final = ("bad", "fair", "good")
VOCAB_SIZE: Final = 36
FULL_RANK: Final = 4
NUM_GENERATED: Final = 12
# Rank, and for each layer the heads (bert: 4, llama: 2 key/value heads of two query heads) and channels (40) that stay.
_ALL: Final = range(40)
ARMS: Final[dict[str, dict[str, tuple[int, list[tuple[Sequence[int], Sequence[int]]]]]]] = {
    "bert": {
        "full": (4, [(range(4), _ALL), (range(4), _ALL)]),
        "low-rank": (1, [(range(4), _ALL), (range(4), _ALL)]),
        "quarter": (3, [((0, 2, 3), range(10, 40)), ((1, 2, 3), range(30))]),
        "uneven": (2, [((1,), range(0, 40, 3)), ((0, 1, 3), (5, 6, 39))]),
    },
    "llama": {
        "full": (4, [(range(2), _ALL), (range(2), _ALL)]),
        "low-rank": (1, [(range(2), _ALL), (range(2), _ALL)]),
        "half": (2, [((1,), range(20)), ((0,), range(1, 40, 2))]),
        "uneven": (3, [((0, 1), range(0, 40, 3)), ((1,), (5, 6, 39))]),
    },
}
PARTS: Final[dict[str, tuple[str, BaseDtype, tuple[str, ...]]]] = {
    **{family: (family, "stored", tuple(arms)) for family, arms in ARMS.items()},
    **{f"{family}-int8": (family, "int8", ("full", "uneven")) for family in ARMS},
}
"""Folders: the family, how its frozen weights are stored, and the arms."""
COMPACT_ARM: Final = {"bert": "uneven", "llama": "half"}
REPLAY_SEED: Final = 23
REPLAYED: Final = ((0, 0.0, 1, 4), (1, 0.02, 2, 3), (1, 0.0, 1, 7), (0, 0.03, 5, 1), (1, 0.013, 1, 2))
"""Rounds of zero-order tuning: cut, learning rate of the lower part, outer and inner perturbations."""
OPTIONS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"is_normalised": True},
    {"noise": "gaussian"},
    {"cut": 1, "preconditioner": PreconditionerStart(round_number=12, lower=0.7, upper=0.3)},
)
"""The rounds are done with each of them, one after the other."""


def main(folder: Path) -> None:
    """Write the folder; it appears when it is complete.

    Args:
        folder: must not exist.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        for name, part in PARTS.items():
            _prepare_part(Path(aside) / "made" / name, *part)
        (Path(aside) / "made").rename(folder)


def _prepare_part(directory: Path, family: str, base: BaseDtype, chosen: Sequence[str]) -> None:
    directory.mkdir(parents=True)
    task = TASKS[family]
    with tempfile.TemporaryDirectory() as source:
        _save_model(Path(source), family)
        _write_examples(directory, family)
        labels = LABELS if family == "bert" else None
        export_model(Path(source), task, directory / "artifact", labels=labels, base_dtype=base)
    artifact = Artifact.open(directory / "artifact")
    start = _random_adapter(artifact)
    data = {name: load_examples(directory / f"{name}.jsonl", artifact, MAX_LENGTH) for name in ("train", "test")}
    arms = {}
    for name in chosen:
        rank, kept = ARMS[family][name]
        plan = _plan(artifact.manifest, kept)
        reference = Reference(artifact, plan, rank, start)
        arms[name] = _expectations(reference, data["train"], data["test"], directory / name)
        (directory / name / "plan.msgpack").write_bytes(msgspec.msgpack.encode(plan.packed))
    shared = {"hyper_parameters": msgspec.to_builtins(HYPER_PARAMETERS), "arms": arms}
    (directory / "expected.json").write_text(json.dumps(shared, indent=1))
    plan = _plan(artifact.manifest, ARMS[family][COMPACT_ARM[family]][1])
    if base == "stored":
        _prepare_compact(directory, artifact, plan, start)
    prepare_shrinking(directory / "shrinking", artifact, plan, start, data["train"])
    _prepare_replay(directory / "replay", artifact.manifest, start)


def _save_model(directory: Path, family: str) -> None:
    """A random Hugging Face model with a tokenizer of words."""
    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 48,
        "initializer_range": 0.2,
    }
    model: Any
    if family == "bert":
        bert = transformers.BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        model = transformers.BertModel(bert)
    else:
        llama = transformers.LlamaConfig(**sizes, num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=2)
        model = transformers.LlamaForCausalLM(llama)
    model.save_pretrained(directory)
    words = {"[PAD]": 0, "[UNK]": 1, "[EOS]": 2} | {f"w{i}": i for i in range(3, VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106 - a token of text
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def _write_examples(directory: Path, family: str) -> None:
    """Pre-tokenised examples of different lengths that a model can learn something from."""
    rng = np.random.default_rng(1)
    for name, count in (("train", 40), ("test", 13)):
        lines = []
        for _ in range(count):
            label = int(rng.integers(len(LABELS)))
            length = int(rng.integers(3, MAX_LENGTH))
            ids = rng.integers(3 + 11 * label, 3 + 11 * (label + 1), length)
            lines.append({"input_ids": ids.tolist()} | ({"label": LABELS[label]} if family == "bert" else {}))
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _random_adapter(artifact: Artifact) -> dict[str, Array]:
    """A full adapter whose B is not zero, so that every gradient says something."""
    rng = np.random.default_rng(2)
    full = adapters.initial(artifact.manifest, artifact.initial(), FULL_RANK, rng)
    noise = {name: rng.normal(0.0, 0.1, value.shape).astype(np.float32) for name, value in full.items()}
    return {name: value + noise[name] for name, value in full.items()}


def _plan(manifest: Manifest, kept: list[tuple[Sequence[int], Sequence[int]]]) -> Plan:
    units: dict[tuple[int, str], npt.ArrayLike] = {}
    for layer, (heads, channels) in enumerate(kept):
        units[layer, "heads"], units[layer, "channels"] = list(heads), list(channels)
    return Plan.from_kept(manifest, units)


def _expectations(reference: Reference, train: Dataset, test: Dataset, directory: Path) -> dict[str, Any]:
    """Train the reference; write tensors, return the figures."""
    directory.mkdir()
    before = reference.evaluate(test)
    drawn = batches(train, HYPER_PARAMETERS.batch_size, np.random.default_rng(HYPER_PARAMETERS.seed))
    losses, gradients = reference.train(drawn)
    trained = {name: parameter.detach().numpy() for name, parameter in reference.parameters.items()}
    for name, tensors in (("start", reference.start), ("gradients", gradients), ("trained", trained)):
        save_file(
            {key: np.ascontiguousarray(value) for key, value in tensors.items()}, directory / f"{name}.safetensors"
        )
    after = reference.evaluate(test)
    return {"rank": reference.rank, "losses": losses, "before": before, "after": after}


def _prepare_replay(directory: Path, manifest: Manifest, start: dict[str, Array]) -> None:
    """Rounds of zero-order tuning, and where this machine's numpy gets to from them."""
    directory.mkdir()
    rng = np.random.default_rng(4)
    rounds = [
        LoggedRound(
            round_number=number,
            lower_learning_rate=lower_learning_rate,
            learning_rate=0.017,
            num_outer=num_outer,
            num_inner=num_inner,
            scalars=rng.normal(0.0, 0.6, (6, num_outer, num_inner)).astype("<f4").tobytes(),
            **{"cut": cut, **options},
        )
        for number, (options, (cut, lower_learning_rate, num_outer, num_inner)) in enumerate(
            itertools.product(OPTIONS, REPLAYED), start=2
        )
    ]
    flat = adapters.AdapterLayout.of(manifest, Plan.full(manifest), FULL_RANK).flatten(start)
    expected = {"start": flat.copy()}
    apply_log(flat, manifest, FULL_RANK, REPLAY_SEED, rounds)
    save_file(expected | {"end": flat}, directory / "theta.safetensors")
    (directory / "rounds.msgpack").write_bytes(msgspec.msgpack.encode((REPLAY_SEED, FULL_RANK, rounds)))


def _prepare_compact(directory: Path, artifact: Artifact, plan: Plan, start: dict[str, Array]) -> None:
    """A compact model, and what PyTorch's merged and pruned one says."""
    source = CompactSource(
        artifact_dir=artifact.directory,
        manifest=artifact.manifest,
        digest=artifact.digest,
        adapter=start,
        rank=FULL_RANK,
        lora_scaling=HYPER_PARAMETERS.lora_scaling,
        round_number=1,
    )
    compact_source(source, plan, 0.5, directory / "compact")
    model = merged_model(source)
    prune_model(model, family_for(model.config, source.manifest.task), source.manifest, plan)
    rng = np.random.default_rng(3)
    ids, mask = rng.integers(3, VOCAB_SIZE, (3, 10)), np.ones((3, 10), np.int64)
    ids[1, 7:], mask[1, 7:] = 0, 0
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits
        expected = {"input_ids": ids, "attention_mask": mask, "logits": logits.numpy()}
        if artifact.manifest.task == "causal-lm":
            tokens = model.generate(
                torch.from_numpy(ids[:1]),
                attention_mask=torch.ones(1, ids.shape[1], dtype=torch.int64),
                do_sample=False,
                max_new_tokens=NUM_GENERATED,
                pad_token_id=0,
            )
            expected["generated"] = tokens.numpy()[0, ids.shape[1] :]
    save_file(expected, directory / "infer.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
