"""The three stages of a family, each traced once with its backward, ready to be placed any number of times."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from edge_runtime.formats import names
from edge_runtime.formats.names import HIDDEN, HIDDEN_GRAD, INPUT_GRAD, RESIDUAL
from exporter.artifact.loss import cross_entropy
from exporter.artifact.trace import BATCH, LENGTH, RANK, TARGETS, Axis, Traced, Tracer
from exporter.artifact.translate import translate

if TYPE_CHECKING:
    from exporter.artifact.stage_graph import StageGraph
    from models.family import Family, ParamSpec

Tensors = Mapping[str, torch.Tensor]


def grad_of(parameter: str) -> str:
    """Name of a stage's output that is the gradient of a parameter."""
    return f"{parameter}.grad"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """A model's stages."""

    embedding: StageGraph
    block: StageGraph
    plain_block: StageGraph | None
    """A block without LoRA factors, forward only; None if all blocks have some."""
    last_block: StageGraph
    """The block that computes only scored tokens; the same as the others if every token is scored."""
    head: StageGraph


def trace_stages(family: Family) -> Stages:
    """Trace each stage once.

    Raises:
        ExportError: a stage uses an operation that has no translation, or fixes a size.
    """
    block = translate(_trace_block(family, first_only=False))
    return Stages(
        embedding=translate(_trace_embedding(family)),
        block=block,
        plain_block=translate(_trace_plain_block(family)) if family.first_tuned else None,
        last_block=translate(_trace_block(family, first_only=True)) if family.scores_first_only else block,
        head=translate(_trace_head(family)),
    )


def _trace_embedding(family: Family) -> Traced:
    tracer = Tracer([BATCH, LENGTH])
    weights = {p.name: tracer.tensor(p.shape) for p in family.embedding_params}
    inputs = {name: tracer.tensor((BATCH, LENGTH), torch.int64) for name in (names.INPUT_IDS, names.ATTENTION_MASK)}

    def embed(t: Tensors) -> Tensors:
        hidden, context = family.embed(t, t[names.INPUT_IDS], t[names.ATTENTION_MASK])
        return {HIDDEN: hidden, **context}

    return tracer.trace(embed, weights | inputs)


def _trace_block(family: Family, *, first_only: bool) -> Traced:
    tracer = Tracer([BATCH, LENGTH, RANK, *family.groups])
    inputs = {p.name: tracer.tensor(_axes(p)) for p in family.block_params}
    axes = {p.name: _axes(p) for p in family.block_params}
    trainable = []
    for module in family.target_modules:
        rows, columns = axes[f"{module}.weight"]
        for name, shape in ((names.lora_a(module), (RANK, columns)), (names.lora_b(module), (rows, RANK))):
            inputs[name] = tracer.tensor(shape)
            trainable.append(name)
    inputs |= {spec.name: tracer.tensor(spec.shape) for spec in family.context}
    inputs[names.LORA_SCALING] = tracer.tensor(())
    inputs[HIDDEN] = tracer.tensor((BATCH, LENGTH, family.hidden_size))
    inputs[HIDDEN_GRAD] = tracer.tensor((BATCH, 1 if first_only else LENGTH, family.hidden_size))

    def block(t: Tensors) -> Tensors:
        leaves = {name: t[name].detach().requires_grad_() for name in (*trainable, HIDDEN)}
        t = {**t, **leaves}
        context = {spec.name: t[spec.name] for spec in family.context}
        out, residual = family.block(t, t[HIDDEN], context, first_only=first_only)
        gradients = torch.autograd.grad(out, list(leaves.values()), t[HIDDEN_GRAD])
        outputs = {HIDDEN: out, **dict(zip([*map(grad_of, trainable), INPUT_GRAD], gradients, strict=True))}
        return {**outputs, RESIDUAL: residual} if family.post_norm else outputs

    return tracer.trace(block, inputs)


def _trace_plain_block(family: Family) -> Traced:
    tracer = Tracer([BATCH, LENGTH, *family.groups])
    inputs = {p.name: tracer.tensor(_axes(p)) for p in family.block_params}
    inputs |= {spec.name: tracer.tensor(spec.shape) for spec in family.context}
    inputs[HIDDEN] = tracer.tensor((BATCH, LENGTH, family.hidden_size))

    def block(t: Tensors) -> Tensors:
        out, _ = family.block(t, t[HIDDEN], {spec.name: t[spec.name] for spec in family.context})
        return {HIDDEN: out}

    return tracer.trace(block, inputs)


def _trace_head(family: Family) -> Traced:
    tracer = Tracer([TARGETS])
    inputs = {p.name: tracer.tensor(p.shape) for p in family.head_params}
    inputs[HIDDEN] = tracer.tensor((TARGETS, family.hidden_size))
    inputs[names.TARGETS] = tracer.tensor((TARGETS,), torch.int64)
    inputs[names.LOSS_SCALE] = tracer.tensor(())

    def head(t: Tensors) -> Tensors:
        leaves = {name: t[name].detach().requires_grad_() for name in (*family.dense, HIDDEN)}
        logits = family.logits({**t, **leaves}, leaves[HIDDEN])
        outputs = cross_entropy(logits, t[names.TARGETS], t[names.LOSS_SCALE])
        gradients = torch.autograd.grad(outputs[names.LOSS], list(leaves.values()))
        outputs |= dict(zip([*map(grad_of, family.dense), INPUT_GRAD], gradients, strict=True))
        return {names.LOGITS: logits, **outputs}

    return tracer.trace(head, inputs)


def _axes(param: ParamSpec) -> tuple[Axis, ...]:
    axes: list[Axis] = list(param.shape)
    for prune in param.prune:
        axes[prune.axis] = (prune.group, prune.unit_size)
    return tuple(axes)
