"""The interface of a model family to the exporter: stages as functions, parameters, prunable groups and LoRA targets.

A *stage* is the embedding, one block, or the head. All blocks of a model have the same parameters under another prefix,
so one trace of one block serves every depth. Stages are plain functions of tensors; nothing here holds weights.

Shape legend: ``B`` batch, ``S`` length, ``T`` scored positions, ``H`` hidden size, ``C`` classes or vocabulary.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from edge_runtime.formats.manifest import GroupSpec, PruneAxis, TargetSpec, Task
from models.errors import ModelUnsupportedError
from models.settings import Settings

if TYPE_CHECKING:
    import torch

    from models.lora import Weights

CHANNELS = "channels"
"""Group of the feed-forward channels of a block."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ParamSpec:
    """One parameter of a stage."""

    name: str
    """Hugging Face name; for a block, the part after the block's prefix."""
    shape: tuple[int, ...]
    prune: tuple[PruneAxis, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ContextSpec:
    """A tensor that the embedding computes once and every block reads (attention mask, rotary angles)."""

    name: str
    shape: tuple[int | str, ...]
    """Axes: ``"batch"``, ``"length"``, or a fixed size."""


class Family(abc.ABC):
    """A model of one architecture, described from its configuration alone.

    A family is one file: subclass this, and add the class to :data:`models.registry.FAMILIES`, or offer it from a
    package outside (docs/extending.md).
    """

    name: ClassVar[str]
    """Name in the manifest."""
    model_types: ClassVar[tuple[str, ...]]
    """``model_type`` values of Hugging Face configurations that it handles."""
    tasks: ClassVar[tuple[Task, ...]]
    settings: ClassVar[Settings]
    """Keys of a configuration, and their treatment."""
    scores_first_only: ClassVar[bool] = False
    """Whether only the first token of a sequence is scored, so that the last block need not compute any other."""

    config: Any
    num_layers: int
    hidden_size: int
    vocab_size: int
    max_length: int
    """Longest sequence that the positions (and a sliding window) allow, tokens."""
    groups: dict[str, int]
    """Prunable groups of a block and their number of units."""
    embedding_params: tuple[ParamSpec, ...]
    word_embedding: str
    """The one of them whose rows are looked up by token id."""
    block_params: tuple[ParamSpec, ...]
    head_params: tuple[ParamSpec, ...]
    """Includes a parameter of the embedding where the two are tied."""
    dense: tuple[str, ...]
    """Parameters of the head that are trained whole."""
    may_lack: tuple[str, ...]
    """Frozen parameters that a pretrained checkpoint may lack, because another task does not use them."""
    context: tuple[ContextSpec, ...]
    _targets: tuple[str, ...] = ()
    first_tuned: int = 0
    """Index of the lowest block that has LoRA factors; those below stay as they are."""

    @abc.abstractmethod
    def __init__(self, config: Any, task: Task) -> None:
        """Describe the model of a Hugging Face configuration.

        Raises:
            ModelUnsupportedError: a setting of the configuration that the stages do not reproduce.
        """

    @classmethod
    def settings_of(cls, model_type: str) -> Settings:
        """Return the treatment of configuration keys for one of its architectures."""
        del model_type
        return cls.settings

    def check_source(self, model: Any) -> None:
        """Compare values that transformers computes from the configuration and that logits of short texts hardly show.

        Args:
            model: the checkpoint as transformers loads it.

        Raises:
            ParityError: a value differs from the stages' value.
        """
        del model

    @abc.abstractmethod
    def block_prefix(self, layer: int) -> str:
        """Return the prefix of a block's parameter names, with the dot."""

    @abc.abstractmethod
    def embed(
        self, weights: Weights, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Hidden states ``[B, S, H]`` and the context tensors.

        Args:
            weights: the embedding's parameters by name.
            input_ids: int64 ``[B, S]``.
            attention_mask: int64 ``[B, S]``, 1 = token, 0 = padding on the right.
        """

    @abc.abstractmethod
    def residual(
        self, weights: Weights, hidden: torch.Tensor, context: Mapping[str, torch.Tensor], *, first_only: bool = False
    ) -> torch.Tensor:
        """The residual sum ``[B * S, H]`` that a block ends in, before :meth:`after_residual`.

        Args:
            weights: the block's parameters without prefix, of the units kept, with the LoRA factors of its targets.
            hidden: ``[B, S, H]``.
            context: of the embedding.
            first_only: give that of the first tokens alone, ``[B, H]``; for families that score no other.
        """

    def after_residual(self, weights: Weights, residual: torch.Tensor) -> torch.Tensor:
        """Hidden states from a block's residual sum, both ``[B * S, H]``; the same, unless :attr:`post_norm`."""
        del weights
        return residual

    @property
    def post_norm(self) -> bool:
        """Return whether a block ends in a norm of its residual sum, not in that sum alone."""
        return type(self).after_residual is not Family.after_residual

    def block(
        self, weights: Weights, hidden: torch.Tensor, context: Mapping[str, torch.Tensor], *, first_only: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One block; takes the arguments of :meth:`residual`.

        Returns:
            Hidden states ``[B, S, H]``, or ``[B, 1, H]`` of first tokens alone, and the residual sum before them.
        """
        batch, length, size = hidden.shape
        residual = self.residual(weights, hidden, context, first_only=first_only)
        out = self.after_residual(weights, residual)
        return out.view(batch, 1 if first_only else length, size), residual

    @abc.abstractmethod
    def logits(self, weights: Weights, hidden: torch.Tensor) -> torch.Tensor:
        """Scores ``[T, C]`` of the last hidden states ``[T, H]`` of the positions that are scored.

        Those are the first token of each sequence (text-classification), or every token that another follows.
        """

    @abc.abstractmethod
    def resize(self, model: Any, num_kept: Mapping[tuple[int, str], int]) -> None:
        """Tell a Hugging Face model how many units each layer keeps; :mod:`models.surgery` slices the weights.

        Modules and, where it can express the plan, ``model.config`` are changed in place.

        Args:
            model: the model as Hugging Face builds it.
            num_kept: ``(layer, group)`` to the number of units that stay.

        Raises:
            ModelUnsupportedError: a deployed model of this family cannot have such sizes; nothing was changed.
        """

    @property
    def cut_points(self) -> tuple[int, ...]:
        """Return the cuts of the stack in two: the numbers of blocks that the lower part may have, 0 to ``num_layers``.

        The hidden states cross a cut; the upper part needs the context too, which follows from the mask.
        """
        return tuple(range(self.num_layers + 1))

    @property
    def linear_modules(self) -> tuple[str, ...]:
        """Linear layers of a block (weights with two axes), without prefix."""
        return tuple(p.name.removesuffix(".weight") for p in self.block_params if len(p.shape) == 2)

    @property
    def target_modules(self) -> tuple[str, ...]:
        """LoRA targets of a block, without prefix: every linear layer, unless some were chosen."""
        return self._targets or self.linear_modules

    def choose_targets(self, names: Sequence[str], *, top_blocks: int | None = None) -> None:
        """Make only some linear layers LoRA targets.

        Args:
            names: of modules, whole or their last parts, as PEFT takes them: ``query`` is ``attention.self.query``;
                none for all.
            top_blocks: only those of so many blocks, counted from the head, 1 or more; None for all.

        Raises:
            ModelUnsupportedError: a name that is not a linear layer's, or more blocks than there are.
        """
        if top_blocks is not None:
            if not 1 <= top_blocks <= self.num_layers:
                msg = (
                    f"--top-blocks is {top_blocks}, expected 1 to {self.num_layers}, the number of blocks of this model"
                )
                raise ModelUnsupportedError(msg)
            self.first_tuned = self.num_layers - top_blocks
        for name in names:
            if not any(_is_named(module, name) for module in self.linear_modules):
                msg = f"--targets names {name!r}, which is not a linear layer of a {self.name} block; there are: "
                raise ModelUnsupportedError(msg + ", ".join(self.linear_modules))
        self._targets = tuple(m for m in self.linear_modules if any(_is_named(m, name) for name in names))

    def frozen_params(self) -> tuple[ParamSpec, ...]:
        """Frozen parameters of the whole model under their full names, each once."""
        params = {p.name: p for p in self.embedding_params}
        for layer in range(self.num_layers):
            for param in self.block_params:
                name = self.block_prefix(layer) + param.name
                params[name] = dataclasses.replace(param, name=name)
        params |= {p.name: p for p in self.head_params if p.name not in self.dense}
        return tuple(params.values())

    def group_specs(self) -> tuple[GroupSpec, ...]:
        """Prunable groups of the whole model, layer by layer."""
        return tuple(
            GroupSpec(layer=layer, group=group, num_units=num_units)
            for layer in range(self.num_layers)
            for group, num_units in self.groups.items()
        )

    def target_specs(self) -> tuple[TargetSpec, ...]:
        """LoRA targets of the whole model, layer by layer."""
        weights = {p.name: p for p in self.block_params}
        targets = []
        for layer in range(self.first_tuned, self.num_layers):
            for module in self.target_modules:
                weight = weights[f"{module}.weight"]
                axes = {prune.axis: prune for prune in weight.prune}
                targets.append(
                    TargetSpec(
                        module=self.block_prefix(layer) + module,
                        layer=layer,
                        in_features=weight.shape[1],
                        out_features=weight.shape[0],
                        in_prune=axes.get(1),
                        out_prune=axes.get(0),
                    )
                )
        return tuple(targets)


def _is_named(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")
