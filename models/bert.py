"""BERT-like encoders (Devlin et al. 2018, arXiv 1810.04805) for text classification: post-norm, learned positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch.nn import functional
from transformers.activations import ACT2FN

from edge_runtime.formats.manifest import PruneAxis, Task
from edge_runtime.formats.ranking import HEADS
from models.attention import attend
from models.family import CHANNELS, ContextSpec, Family, ParamSpec
from models.lora import Weights, linear
from models.settings import Settings

_EMBEDDINGS = "bert.embeddings"
_POOLER = "bert.pooler.dense"
_CLASSIFIER = "classifier"


class Bert(Family):
    """``BertForSequenceClassification``. Dropout is off; token types are all zero."""

    name: ClassVar[str] = "bert"
    model_types: ClassVar[tuple[str, ...]] = ("bert",)
    tasks: ClassVar[tuple[Task, ...]] = ("text-classification",)
    settings: ClassVar[Settings] = Settings(
        used=frozenset({"layer_norm_eps", "type_vocab_size"}),
        fixed={"position_embedding_type": ("absolute", None), "pooler_type": ("first_token_transform", None)},
        # The classifier is never tied. The pooler keys belong to a pooler that no version of transformers has.
        harmless=frozenset({"tie_word_embeddings", "directionality"})
        | {"pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head"},
    )
    scores_first_only: ClassVar[bool] = True

    def __init__(self, config: Any, task: Task) -> None:
        """See :meth:`models.family.Family.__init__`."""
        del task
        self.config = config
        self.num_layers = config.num_hidden_layers
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_length = config.max_position_embeddings
        self.groups = {HEADS: config.num_attention_heads, CHANNELS: config.intermediate_size}
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.eps = config.layer_norm_eps
        self.activation = ACT2FN[config.hidden_act]
        hidden = config.hidden_size
        self.word_embedding = f"{_EMBEDDINGS}.word_embeddings.weight"
        self.embedding_params = (
            ParamSpec(name=self.word_embedding, shape=(config.vocab_size, hidden)),
            ParamSpec(name=f"{_EMBEDDINGS}.position_embeddings.weight", shape=(self.max_length, hidden)),
            ParamSpec(name=f"{_EMBEDDINGS}.token_type_embeddings.weight", shape=(config.type_vocab_size, hidden)),
            ParamSpec(name=f"{_EMBEDDINGS}.LayerNorm.weight", shape=(hidden,)),
            ParamSpec(name=f"{_EMBEDDINGS}.LayerNorm.bias", shape=(hidden,)),
        )
        self.block_params = self._block_params(hidden, config.intermediate_size)
        self.head_params = (
            ParamSpec(name=f"{_POOLER}.weight", shape=(hidden, hidden)),
            ParamSpec(name=f"{_POOLER}.bias", shape=(hidden,)),
            ParamSpec(name=f"{_CLASSIFIER}.weight", shape=(config.num_labels, hidden)),
            ParamSpec(name=f"{_CLASSIFIER}.bias", shape=(config.num_labels,)),
        )
        self.dense = (f"{_CLASSIFIER}.weight", f"{_CLASSIFIER}.bias")
        self.may_lack = (f"{_POOLER}.weight", f"{_POOLER}.bias")
        self.context = (ContextSpec(name="mask", shape=("batch", 1, 1, "length")),)

    def _block_params(self, hidden: int, channels: int) -> tuple[ParamSpec, ...]:
        def heads(axis: int) -> tuple[PruneAxis, ...]:
            return (PruneAxis(axis=axis, group=HEADS, unit_size=self.head_dim),)

        def channel(axis: int) -> tuple[PruneAxis, ...]:
            return (PruneAxis(axis=axis, group=CHANNELS, unit_size=1),)

        params = []
        for module in ("query", "key", "value"):
            module = f"attention.self.{module}"  # noqa: PLW2901
            params.append(ParamSpec(name=f"{module}.weight", shape=(hidden, hidden), prune=heads(0)))
            params.append(ParamSpec(name=f"{module}.bias", shape=(hidden,), prune=heads(0)))
        params += [
            ParamSpec(name="attention.output.dense.weight", shape=(hidden, hidden), prune=heads(1)),
            ParamSpec(name="attention.output.dense.bias", shape=(hidden,)),
            ParamSpec(name="attention.output.LayerNorm.weight", shape=(hidden,)),
            ParamSpec(name="attention.output.LayerNorm.bias", shape=(hidden,)),
            ParamSpec(name="intermediate.dense.weight", shape=(channels, hidden), prune=channel(0)),
            ParamSpec(name="intermediate.dense.bias", shape=(channels,), prune=channel(0)),
            ParamSpec(name="output.dense.weight", shape=(hidden, channels), prune=channel(1)),
            ParamSpec(name="output.dense.bias", shape=(hidden,)),
            ParamSpec(name="output.LayerNorm.weight", shape=(hidden,)),
            ParamSpec(name="output.LayerNorm.bias", shape=(hidden,)),
        ]
        return tuple(params)

    def block_prefix(self, layer: int) -> str:
        """See :meth:`models.family.Family.block_prefix`."""
        return f"bert.encoder.layer.{layer}."

    def embed(
        self, weights: Weights, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See :meth:`models.family.Family.embed`."""
        words = functional.embedding(input_ids, weights[self.word_embedding])
        index = torch.arange(input_ids.shape[1], device=input_ids.device)
        positions = functional.embedding(index, weights[f"{_EMBEDDINGS}.position_embeddings.weight"])
        types = weights[f"{_EMBEDDINGS}.token_type_embeddings.weight"][0]
        hidden = self._norm(weights, f"{_EMBEDDINGS}.LayerNorm", words + types + positions)
        padding = 1.0 - attention_mask[:, None, None, :].to(torch.float32)
        return hidden, {"mask": padding * torch.finfo(torch.float32).min}

    def residual(
        self, weights: Weights, hidden: torch.Tensor, context: Mapping[str, torch.Tensor], *, first_only: bool = False
    ) -> torch.Tensor:
        """See :meth:`models.family.Family.residual`."""
        asking = hidden[:, :1] if first_only else hidden
        tokens = asking.flatten(0, 1)
        attended = linear(weights, "attention.output.dense", self._attention(weights, asking, hidden, context["mask"]))
        tokens = self._norm(weights, "attention.output.LayerNorm", attended + tokens)
        wide = self.activation(linear(weights, "intermediate.dense", tokens))
        return linear(weights, "output.dense", wide) + tokens

    def after_residual(self, weights: Weights, residual: torch.Tensor) -> torch.Tensor:
        """See :meth:`models.family.Family.after_residual`."""
        return self._norm(weights, "output.LayerNorm", residual)

    def _attention(
        self, weights: Weights, asking: torch.Tensor, hidden: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Return the attention of tokens ``asking [B, Q, H]`` to ``hidden [B, S, H]``: ``[B * Q, heads * D]``."""

        def heads(module: str, x: torch.Tensor) -> torch.Tensor:
            batch, length = x.shape[:2]
            x = linear(weights, f"attention.self.{module}", x.flatten(0, 1))
            units = x.shape[1] // self.head_dim
            x = x.view(batch, length, units, self.head_dim).transpose(1, 2)
            return x.reshape(batch * units, length, self.head_dim)

        mixed = attend(heads("query", asking), heads("key", hidden), heads("value", hidden), mask)
        batch, num_asking = asking.shape[:2]
        units = mixed.shape[0] // batch
        mixed = mixed.view(batch, units, num_asking, self.head_dim).transpose(1, 2)
        return mixed.reshape(batch * num_asking, units * self.head_dim)

    def logits(self, weights: Weights, hidden: torch.Tensor) -> torch.Tensor:
        """See :meth:`models.family.Family.logits`: pooler and classifier."""
        pooled = torch.tanh(linear(weights, _POOLER, hidden))
        return linear(weights, _CLASSIFIER, pooled)

    def resize(self, model: Any, num_kept: Mapping[tuple[int, str], int]) -> None:
        """See :meth:`models.family.Family.resize`: every layer its own sizes; the configuration cannot express them."""
        for layer, block in enumerate(model.bert.encoder.layer):
            attention = block.attention.self
            attention.num_attention_heads = num_kept[layer, HEADS]
            attention.all_head_size = num_kept[layer, HEADS] * self.head_dim

    def _norm(self, weights: Weights, module: str, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(
            x, (self.hidden_size,), weights[f"{module}.weight"], weights[f"{module}.bias"], self.eps
        )
