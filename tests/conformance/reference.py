"""PyTorch's results: the Hugging Face model, pruned, tuned, shrunk and scored by hand.

Shares no code with the engine but the reading of examples and the drawing of batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Batch, Dataset, eval_batches
from edge_runtime.formats import adapter as adapters
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import Merged
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.work import HyperParameters
from exporter.compact.merge import base_model

Array = npt.NDArray[np.float32]
Tensors = dict[str, Array]

NOTHING_MERGED: Final[Merged] = MappingProxyType({})
MAX_LENGTH: Final = 16
HYPER_PARAMETERS: Final = HyperParameters(
    learning_rate=2e-3,
    weight_decay=0.01,
    lora_scaling=2.0,
    max_grad_norm=0.5,
    num_warmup_steps=3,
    num_local_steps=6,
    batch_size=4,
    num_accumulation_steps=2,
    max_length=MAX_LENGTH,
    seed=11,
)


class _LoraLinear(torch.nn.Module):
    """A frozen linear layer with LoRA factors beside it (Hu et al. 2021, arXiv 2106.09685)."""

    def __init__(self, linear: torch.nn.Linear, a: torch.nn.Parameter, b: torch.nn.Parameter, scaling: float) -> None:
        super().__init__()
        self.linear, self.a, self.b, self.scaling = linear, a, b, scaling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(x) + self.scaling * (x @ self.a.T @ self.b.T)
        return out


class Reference:
    """The Hugging Face model, pruned by hand, with trainable factors and classifier."""

    def __init__(
        self, artifact: Artifact, plan: Plan, rank: int, start: Tensors, merged: Merged = NOTHING_MERGED
    ) -> None:
        manifest = artifact.manifest
        self.task, self.rank, self.artifact, self.merged = manifest.task, rank, artifact, merged
        self.model = base_model(artifact.directory, manifest).requires_grad_(requires_grad=False)
        for module, factors in merged.items():
            down, up = (torch.from_numpy(factor) for factor in factors)
            update = HYPER_PARAMETERS.lora_scaling * up @ down
            self.model.get_submodule(module).weight.data += update
        _prune(self.model, plan, manifest)
        self.start = adapters.restrict(manifest, start, plan, rank)
        layout = AdapterLayout.of(manifest, plan, rank)
        self.parameters = {name: torch.nn.Parameter(torch.tensor(self.start[name])) for name in layout.shapes}
        for target in manifest.targets:
            a, b = self.parameters[names.lora_a(target.module)], self.parameters[names.lora_b(target.module)]
            linear = self.model.get_submodule(target.module)
            self.model.set_submodule(target.module, _LoraLinear(linear, a, b, HYPER_PARAMETERS.lora_scaling))
        for dense in manifest.dense:
            module, _, attribute = dense.name.rpartition(".")
            setattr(self.model.get_submodule(module), attribute, self.parameters[dense.name])

    def scores(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores ``[T, C]`` and targets ``[T]``."""
        ids, mask, labels = (torch.from_numpy(x) for x in (batch.input_ids, batch.attention_mask, batch.labels))
        logits = self.model(input_ids=ids, attention_mask=mask).logits
        if self.task == "causal-lm":
            return logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return logits, labels

    def train(self, drawn: Iterator[Batch]) -> tuple[list[float], Tensors]:
        """Loss of each optimizer step, and the first step's gradients; PyTorch's own AdamW and clipping."""
        losses, gradients, optimizer = [], {}, self.optimizer()
        for step in range(1, HYPER_PARAMETERS.num_local_steps + 1):
            losses.append(self.accumulate(optimizer, drawn))
            if step == 1:
                gradients = self.gradients()
            self.apply(optimizer, step)
        return losses, gradients

    def optimizer(self) -> torch.optim.AdamW:
        """PyTorch's AdamW over all parameters, in layout order."""
        given = HYPER_PARAMETERS
        return torch.optim.AdamW(
            self.parameters.values(),
            lr=given.learning_rate,
            betas=(given.beta1, given.beta2),
            eps=given.epsilon,
            weight_decay=given.weight_decay,
        )

    def accumulate(self, optimizer: torch.optim.AdamW, drawn: Iterator[Batch]) -> float:
        """Mean loss and gradient over the micro-batches of one step."""
        optimizer.zero_grad()
        total = 0.0
        for batch in islice(drawn, HYPER_PARAMETERS.num_accumulation_steps):
            loss = functional.cross_entropy(*self.scores(batch)) / HYPER_PARAMETERS.num_accumulation_steps
            loss.backward()
            total += loss.item()
        return total

    def gradients(self) -> Tensors:
        """Return a copy of the gradients that :meth:`accumulate` summed."""
        return {name: p.grad.numpy().copy() for name, p in self.parameters.items() if p.grad is not None}

    def apply(self, optimizer: torch.optim.AdamW, step: int) -> None:
        """Clip and update; ``step`` is 1-based."""
        given = HYPER_PARAMETERS
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), given.max_grad_norm or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = given.learning_rate * min(1.0, step / given.num_warmup_steps)
        optimizer.step()

    def values(self) -> Tensors:
        """The parameters as they are now, copied."""
        return {name: p.detach().numpy().copy() for name, p in self.parameters.items()}

    def linear(self, module: str) -> torch.nn.Linear:
        """The frozen layer inside a LoRA target."""
        linear = self.model.get_submodule(module).linear
        assert isinstance(linear, torch.nn.Linear)
        return linear

    def evaluate(self, dataset: Dataset) -> dict[str, float]:
        """Sums over the dataset, one example at a time."""
        loss_sum, num_targets, num_correct = 0.0, 0, 0
        with torch.inference_mode():
            for batch in eval_batches(dataset, 1):
                scores, targets = self.scores(batch)
                loss_sum += float(functional.cross_entropy(scores, targets, reduction="sum"))
                num_targets += int((targets != names.IGNORE_LABEL).sum())
                num_correct += int((scores.argmax(dim=-1) == targets).sum())
        return {"loss_sum": loss_sum, "num_targets": num_targets, "num_correct": num_correct}


def _prune(model: Any, plan: Plan, manifest: Manifest) -> None:
    """Cut heads and channels out of the model's own linear layers, from its configuration alone."""
    config = model.config
    head_dim = config.hidden_size // config.num_attention_heads
    for layer in range(manifest.num_layers):
        heads, channels = plan.kept(layer, "heads"), plan.kept(layer, "channels")
        if manifest.family == "bert":
            block = model.bert.encoder.layer[layer]
            attention = block.attention.self
            attention.num_attention_heads, attention.all_head_size = len(heads), len(heads) * head_dim
            width = _indices(heads, head_dim)
            rows = [(attention.query, width), (attention.key, width), (attention.value, width)]
            rows.append((block.intermediate.dense, channels))
            columns = [(block.attention.output.dense, width), (block.output.dense, channels)]
        else:
            block = model.model.layers[layer]
            queries = _indices(heads, head_dim * config.num_attention_heads // config.num_key_value_heads)
            keys = _indices(heads, head_dim)
            attention, mlp = block.self_attn, block.mlp
            rows = [(attention.q_proj, queries), (attention.k_proj, keys), (attention.v_proj, keys)]
            rows += [(mlp.gate_proj, channels), (mlp.up_proj, channels)]
            columns = [(attention.o_proj, queries), (mlp.down_proj, channels)]
        for linear, kept in rows:
            linear.weight.data = linear.weight.data[kept]
            if linear.bias is not None:
                linear.bias.data = linear.bias.data[kept]
        for linear, kept in columns:
            linear.weight.data = linear.weight.data[:, kept]


def _indices(units: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
    return np.concatenate([np.arange(unit * width, (unit + 1) * width) for unit in units])
