"""The two sides of the conformance tests: an artifact's graphs on plain onnxruntime, and PyTorch with PEFT.

PyTorch's side knows nothing of stages: it is the model as transformers builds it, with smaller weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import peft
import safetensors.numpy
import torch
import transformers

from edge_runtime.engine.dataset import Batch
from edge_runtime.formats import names, ranking
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Manifest, decode_manifest
from edge_runtime.formats.plan import Plan

Arrays = dict[str, npt.NDArray[Any]]

LABELS = "labels"
"""Key of a batch's labels, see :class:`edge_runtime.engine.dataset.Batch`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """The tensors that one device trains."""

    plan: Plan
    rank: int
    scaling: float


def arms(manifest: Manifest) -> dict[str, Arm]:
    """Four uniform arms from one ranking, and arms where every layer keeps other numbers of heads and channels."""
    rng = np.random.default_rng(11)
    importance = {(g.layer, g.group): rng.random(g.num_units).astype(np.float32) for g in manifest.groups}
    found = {
        f"{ratio}:{rank}": Arm(plan=ranking.plan_at(manifest, importance, ratio), rank=rank, scaling=scaling)
        for ratio, rank, scaling in ((0.0, 8, 2.0), (0.25, 4, 1.0), (0.5, 3, 0.5), (0.75, 1, 1.5))
    }
    uneven = {
        (g.layer, g.group): np.sort(rng.permutation(g.num_units)[: 1 + (2 * g.layer + i) % g.num_units])
        for i, g in enumerate(manifest.groups)
    }
    found["uneven:5"] = Arm(plan=Plan.from_kept(manifest, uneven), rank=5, scaling=1.5)
    single = {(g.layer, g.group): [g.num_units - 1] for g in manifest.groups if g.layer == 0}
    found["first layer of one head and one channel:2"] = Arm(plan=Plan.from_kept(manifest, single), rank=2, scaling=1.0)
    return found


def manifest_of(artifact: Path) -> Manifest:
    return decode_manifest((artifact / names.MANIFEST_FILE).read_bytes())


def random_adapter(manifest: Manifest, arm: Arm, seed: int = 3) -> Arrays:
    """An adapter in the middle of training: no factor is zero."""
    rng = np.random.default_rng(seed)
    shapes = AdapterLayout.of(manifest, arm.plan, arm.rank).shapes
    return {name: rng.normal(0.0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


def random_batch(manifest: Manifest, batch: int, length: int, seed: int = 4) -> Arrays:
    """Sequences of different lengths, padded on the right; for causal-lm some real tokens are not targets either."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, manifest.text.vocab_size, (batch, length))
    mask = np.ones((batch, length), np.int64)
    for row in range(1, batch):
        mask[row, rng.integers(1, length + 1) :] = 0
    if manifest.task == "text-classification":
        labels = rng.integers(0, len(manifest.labels), batch)
    else:
        labels = np.where((mask == 1) & (rng.random((batch, length)) < 0.8), ids, names.IGNORE_LABEL)
        labels[0] = ids[0]  # without any target, PyTorch's mean is not a number
    return {names.INPUT_IDS: ids, names.ATTENTION_MASK: mask, LABELS: labels}


def session(path: Path, **options: Any) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    for name, value in options.items():
        setattr(settings, name, value)
    return ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def graph_inputs(artifact: Path, arm: Arm, adapter: Mapping[str, Any], batch: Arrays) -> Arrays:
    """Everything that the evaluation graph takes."""
    manifest = manifest_of(artifact)
    layout = AdapterLayout.of(manifest, arm.plan, arm.rank)
    base = safetensors.numpy.load_file(artifact / names.BASE_FILE)
    weights = {}
    for spec in manifest.tensors:
        value = base[spec.name].astype(np.float32)
        for prune in spec.prune:
            assert spec.layer is not None
            value = np.take(value, arm.plan.indices(spec.layer, prune), axis=prune.axis)
        weights[spec.name] = np.ascontiguousarray(value)
    return {
        **weights,
        **batch_inputs(batch),
        names.PARAMS: layout.flatten(adapter),
        names.SPLIT_SIZES: layout.sizes,
        names.RANK: np.array([arm.rank]),
        names.LORA_SCALING: np.array(arm.scaling, np.float32),
    }


def batch_inputs(batch: Arrays) -> Arrays:
    """A batch as graphs take it."""
    given = Batch(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
    rows, targets = given.scored()
    scored = {names.ROWS: rows} if given.labels.ndim == 2 else {}  # of a sequence the first token alone is scored
    return {
        names.INPUT_IDS: given.input_ids,
        names.ATTENTION_MASK: given.attention_mask,
        **scored,
        names.TARGETS: targets,
    }


def loss_scale(feeds: Arrays) -> Arrays:
    """Return the factor that makes the loss a mean over the targets."""
    return {names.LOSS_SCALE: np.array(1 / feeds[names.TARGETS].size, np.float32)}


def training_inputs(
    artifact: Path, arm: Arm, adapter: Mapping[str, Any], batch: Arrays, grad_accum: npt.NDArray[np.float32]
) -> Arrays:
    """Everything that the training graph takes; the loss is the mean over the targets."""
    feeds = graph_inputs(artifact, arm, adapter, batch)
    return {**feeds, **loss_scale(feeds), names.GRAD_ACCUM: grad_accum}


def graph_gradients(artifact: Path, arm: Arm, adapter: Arrays, batch: Arrays) -> tuple[float, Arrays]:
    """Loss and gradients by name, from the training graph."""
    layout = AdapterLayout.of(manifest_of(artifact), arm.plan, arm.rank)
    feeds = training_inputs(artifact, arm, adapter, batch, np.zeros(layout.num_elements, np.float32))
    loss, flat = session(artifact / names.TRAINING_GRAPH).run([names.LOSS, names.GRAD_ACCUM_OUT], feeds)
    return float(loss), layout.unflatten(flat)


class TorchReference:
    """The pruned model in PyTorch, with PEFT's LoRA; in double precision, so that only our rounding counts.

    Attributes:
        model: PEFT model in evaluation mode (no dropout), its adapter and classifier trainable.
        parameters: trainable tensors under their wire names, in layout order.
    """

    def __init__(
        self, source: Path, manifest: Manifest, arm: Arm, adapter: Arrays, dtype: torch.dtype = torch.float64
    ) -> None:
        self.manifest = manifest
        inner = load(source, manifest)
        prune(inner, manifest, arm.plan)
        alpha: Any = arm.scaling * arm.rank  # not always whole; PEFT divides it by the rank
        config = peft.LoraConfig(
            r=arm.rank,
            lora_alpha=alpha,
            target_modules=[target.module for target in manifest.targets],
            modules_to_save=["classifier"] if manifest.dense else None,
        )
        self.model: Any = peft.get_peft_model(inner, config).eval().to(dtype)
        found = dict(self.model.named_parameters())
        self.parameters = {name: found[peft_name(name)] for name in adapter}
        trainable = {name for name, parameter in found.items() if parameter.requires_grad}
        assert trainable == {peft_name(name) for name in adapter}
        with torch.no_grad():
            for name, value in adapter.items():
                self.parameters[name].copy_(torch.from_numpy(value))

    def logits(self, batch: Arrays) -> torch.Tensor:
        ids, mask = (torch.from_numpy(batch[name]) for name in (names.INPUT_IDS, names.ATTENTION_MASK))
        out: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return out

    def loss(self, batch: Arrays) -> torch.Tensor:
        logits, labels = self.logits(batch), torch.from_numpy(batch[LABELS])
        if self.manifest.task == "causal-lm":
            logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return torch.nn.functional.cross_entropy(logits, labels, ignore_index=names.IGNORE_LABEL)

    def gradients(self, batch: Arrays) -> tuple[float, Arrays]:
        self.model.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        return loss.item(), {name: p.grad.numpy() for name, p in self.parameters.items() if p.grad is not None}


def peft_name(name: str) -> str:
    """Return PEFT's name of a trainable tensor."""
    for factor in ("lora_A", "lora_B"):
        if name.endswith(f".{factor}.weight"):
            return f"base_model.model.{name.removesuffix('.weight')}.default.weight"
    module, _, leaf = name.rpartition(".")
    return f"base_model.model.{module}.modules_to_save.default.{leaf}"


def load(source: Path, manifest: Manifest) -> Any:
    """The model of a Hugging Face directory, in float32."""
    kind: Callable[..., Any] = transformers.AutoModelForCausalLM.from_pretrained
    options: dict[str, Any] = {}
    if manifest.task == "text-classification":
        kind = transformers.AutoModelForSequenceClassification.from_pretrained
        options = {"num_labels": len(manifest.labels)}
    return kind(source, dtype=torch.float32, attn_implementation="eager", **options)


def prune(model: Any, manifest: Manifest, plan: Plan) -> None:
    """Slice the weights; transformers' BERT must also be told its number of heads."""
    for spec in manifest.tensors:
        module, _, leaf = spec.name.rpartition(".")
        owner = model.get_submodule(module)
        value = getattr(owner, leaf).detach()
        for axis in spec.prune:
            assert spec.layer is not None
            value = value.index_select(axis.axis, torch.from_numpy(plan.indices(spec.layer, axis)))
        if spec.prune:
            setattr(owner, leaf, torch.nn.Parameter(value))
            if leaf == "weight":
                owner.out_features, owner.in_features = value.shape
    if manifest.family == "bert":
        for layer, block in enumerate(model.bert.encoder.layer):
            attention = block.attention.self
            attention.num_attention_heads = plan.kept(layer, "heads").size
            attention.all_head_size = attention.num_attention_heads * attention.attention_head_size


def relative_error(got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Norm of the difference over the norm of what is expected; where zeros are, the norm of what is there instead."""
    difference = float(np.linalg.norm(got.astype(np.float64) - expected))
    return difference / (float(np.linalg.norm(expected.astype(np.float64))) or 1.0)
