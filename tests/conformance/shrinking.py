"""PyTorch's results of a run that shrinks on its way: losses, scores of the units, trained tensors; by hand.

The model, its parameters and the state of ``torch.optim.AdamW`` are cut and put into a smaller model, which goes on.
Scores follow LoRAPrune (arXiv 2305.18403), dense and unit by unit, from PyTorch's gradients.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Dataset, batches
from edge_runtime.formats import adapter as adapters
from edge_runtime.formats import names
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import Payload, encode_payload
from edge_runtime.formats.plan import Plan
from tests.conformance.reference import HYPER_PARAMETERS, Array, Reference, Tensors

RANK: Final = 3
SHRINKS_AT: Final = 4
"""Before this step; AdamW has a history by then, and three steps to show that it kept it."""
SCORED_EVERY: Final = 2
SMOOTHING: Final = 0.9

Scores = dict[tuple[int, str], Array]


def prepare_shrinking(directory: Path, artifact: Artifact, smaller: Plan, start: Tensors, train: Dataset) -> None:
    """Write start (with merged factors), plans, and what PyTorch says."""
    directory.mkdir()
    manifest, plan = artifact.manifest, Plan.full(artifact.manifest)
    merged = _merged(manifest)
    reference = Reference(artifact, plan, RANK, start, merged)
    optimizer, scores, losses = reference.optimizer(), Scores(), list[float]()
    (directory / "start.safetensors").write_bytes(encode_payload(Payload(adapter=reference.start, merged=merged)))
    drawn = batches(train, HYPER_PARAMETERS.batch_size, np.random.default_rng(HYPER_PARAMETERS.seed))
    for step in range(1, HYPER_PARAMETERS.num_local_steps + 1):
        if step == SHRINKS_AT:
            reference, optimizer = _shrunk(reference, optimizer, smaller)
            scores = {key: value[smaller.kept(*key)] for key, value in scores.items()}
        losses.append(reference.accumulate(optimizer, drawn))
        if step % SCORED_EVERY == 0:
            new = _scores(reference, manifest)
            scores = {k: SMOOTHING * scores[k] + (1 - SMOOTHING) * v if scores else v for k, v in new.items()}
        reference.apply(optimizer, step)
    update = Payload(adapter=reference.values(), importance={k: v.astype(np.float32) for k, v in scores.items()})
    (directory / "update.safetensors").write_bytes(encode_payload(update))
    (directory / "plan.msgpack").write_bytes(msgspec.msgpack.encode(smaller.packed))
    expected = {"rank": RANK, "shrinks_at": SHRINKS_AT, "scored_every": SCORED_EVERY, "losses": losses}
    (directory / "expected.json").write_text(json.dumps(expected, indent=1))


def _merged(manifest: Manifest) -> dict[str, tuple[Array, Array]]:
    """Factors for every other target, with different inner sizes."""
    rng = np.random.default_rng(6)
    out = {}
    for index, target in enumerate(manifest.targets[::2]):
        shapes = (1 + index % 3, target.in_features), (target.out_features, 1 + index % 3)
        a, b = (rng.normal(0, 0.2, shape).astype(np.float32) for shape in shapes)
        out[target.module] = a, b
    return out


def _shrunk(reference: Reference, optimizer: torch.optim.AdamW, plan: Plan) -> tuple[Reference, torch.optim.AdamW]:
    """The same training state in a smaller model."""
    manifest = reference.artifact.manifest
    smaller = Reference(reference.artifact, plan, RANK, reference.values(), reference.merged)
    state: dict[int, dict[str, Any]] = {index: {} for index in range(len(smaller.parameters))}
    for entry in ("exp_avg", "exp_avg_sq"):
        whole = {name: optimizer.state[p][entry].numpy() for name, p in reference.parameters.items()}
        part = adapters.restrict(manifest, whole, plan, RANK)
        for index, name in enumerate(smaller.parameters):
            state[index][entry] = torch.from_numpy(part[name])
    for index, parameter in enumerate(reference.parameters.values()):
        state[index]["step"] = optimizer.state[parameter]["step"]
    new = smaller.optimizer()
    new.load_state_dict({"state": state, "param_groups": new.state_dict()["param_groups"]})
    return smaller, new


def _scores(reference: Reference, manifest: Manifest) -> Scores:
    """One score per unit: sum of |G o (W + s B A)| over its rows or columns, normed by matrix, summed over them."""
    out: Scores = {}
    for layer in range(manifest.num_layers):
        for group, matrices in _coupled(reference, layer).items():
            total: Any = 0.0
            for module, axis, width in matrices:
                s = _sensitivity(reference, module)
                s = s.sum(dim=1 - axis).reshape(-1, width).sum(dim=1)
                total = total + (s / s.norm()).numpy()
            out[layer, group] = total
    return out


def _sensitivity(reference: Reference, module: str) -> torch.Tensor:
    factors = [reference.parameters[name(module)] for name in (names.lora_a, names.lora_b)]
    (a, b), (grad_a, grad_b) = (f.detach().double() for f in factors), (f.grad for f in factors)
    assert grad_a is not None
    assert grad_b is not None
    grad_a, grad_b = grad_a.double(), grad_b.double()
    weight = reference.linear(module).weight.double() + HYPER_PARAMETERS.lora_scaling * b @ a
    return ((grad_b @ a + b @ grad_a - grad_b @ grad_a) * weight).abs()


def _coupled(reference: Reference, layer: int) -> dict[str, list[tuple[str, int, int]]]:
    """Module, axis, and rows or columns of a unit, from the model's configuration."""
    config = reference.model.config
    head = config.hidden_size // config.num_attention_heads
    if config.model_type == "bert":
        block = f"bert.encoder.layer.{layer}"
        rows, column = ("query", "key", "value"), f"{block}.attention.output.dense"
        return {
            "heads": [*((f"{block}.attention.self.{part}", 0, head) for part in rows), (column, 1, head)],
            "channels": [(f"{block}.intermediate.dense", 0, 1), (f"{block}.output.dense", 1, 1)],
        }
    block = f"model.layers.{layer}"
    group = head * config.num_attention_heads // config.num_key_value_heads
    attention = {"q_proj": (0, group), "k_proj": (0, head), "v_proj": (0, head), "o_proj": (1, group)}
    mlp = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}
    return {
        "heads": [(f"{block}.self_attn.{part}", axis, width) for part, (axis, width) in attention.items()],
        "channels": [(f"{block}.mlp.{part}", axis, 1) for part, axis in mlp.items()],
    }
