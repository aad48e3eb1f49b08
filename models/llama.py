"""Llama-like decoders (Touvron et al. 2023, arXiv 2302.13971): RMS norm before each part, rotary positions, SwiGLU.

Grouped-query attention without repeating keys: the query heads of one key/value head are laid one after the other along
the length, so that one batched product serves the group and its backward needs no sum over copies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch.nn import functional
from transformers.activations import ACT2FN

from edge_runtime.formats.manifest import PruneAxis, Task
from edge_runtime.formats.ranking import HEADS
from models import rotary
from models.attention import attend
from models.errors import ModelUnsupportedError, ParityError
from models.family import CHANNELS, ContextSpec, Family, ParamSpec
from models.lora import Weights, linear
from models.settings import Settings

_EMBEDDINGS = "model.embed_tokens.weight"
_BIASES = frozenset({"attention_bias", "mlp_bias"})
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
_ANGLE_TOLERANCE = 1e-3
"""Error of a cosine or sine a hundred thousand positions on, from the rounding of frequencies."""


class Llama(Family):
    """``LlamaForCausalLM``, and Mistral and Qwen2, which differ from it in biases and a sliding window only."""

    name: ClassVar[str] = "llama"
    model_types: ClassVar[tuple[str, ...]] = ("llama", "mistral", "qwen2")
    tasks: ClassVar[tuple[Task, ...]] = ("causal-lm",)
    settings: ClassVar[Settings] = Settings(
        used=frozenset({"num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", *rotary.KEYS})
        | {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"},
        fixed={"rope_interleaved": (False, None)},
        harmless=frozenset({"is_llama_config"}),
    )

    def __init__(self, config: Any, task: Task) -> None:
        """See :meth:`models.family.Family.__init__`."""
        del task
        if unknown := set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES:
            msg = f"config.json says layer_types with {min(unknown)!r}; supported are {', '.join(sorted(_LAYER_TYPES))}"
            raise ModelUnsupportedError(msg)
        self.config = config
        self.num_layers = config.num_hidden_layers
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_length = min(config.max_position_embeddings, _window(config) or config.max_position_embeddings)
        self.groups = {HEADS: config.num_key_value_heads, CHANNELS: config.intermediate_size}
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.inverse_frequencies, self.rope_scaling = rotary.frequencies(rotary.read(config.to_dict()), self.head_dim)
        self.queries_per_unit = config.num_attention_heads // config.num_key_value_heads
        self.eps = config.rms_norm_eps
        self.activation = ACT2FN[config.hidden_act]
        self.word_embedding = _EMBEDDINGS
        self.embedding_params = (ParamSpec(name=_EMBEDDINGS, shape=(config.vocab_size, config.hidden_size)),)
        self.block_params = self._block_params()
        self.output_name = _EMBEDDINGS if config.tie_word_embeddings else "lm_head.weight"
        self.head_params = (
            ParamSpec(name="model.norm.weight", shape=(config.hidden_size,)),
            ParamSpec(name=self.output_name, shape=(config.vocab_size, config.hidden_size)),
        )
        self.dense = ()
        self.may_lack = ()
        self.context = (
            ContextSpec(name="mask", shape=("batch", 1, "length", "length")),
            ContextSpec(name="cos", shape=("length", self.head_dim)),
            ContextSpec(name="sin", shape=("length", self.head_dim)),
        )

    @classmethod
    def settings_of(cls, model_type: str) -> Settings:
        """See :meth:`models.family.Family.settings_of`: of the three, Llama alone has biases to choose."""
        if model_type != "llama":
            return cls.settings
        return dataclasses.replace(cls.settings, used=cls.settings.used | _BIASES)

    def check_source(self, model: Any) -> None:
        """See :meth:`models.family.Family.check_source`: the angles of far positions."""
        theirs = model.model.rotary_emb
        positions = torch.tensor([[*range(0, self.max_length, max(1, self.max_length // 64)), self.max_length - 1]])
        cos, sin = theirs(torch.zeros(1, dtype=torch.float32), positions)
        ours = self._angles(positions[0])
        difference = max(float((mine - other[0]).abs().max()) for mine, other in zip(ours, (cos, sin), strict=True))
        if not difference <= _ANGLE_TOLERANCE:
            msg = (
                f"rotary positions differ by up to {difference:.1e} from those of transformers, at most "
                f"{_ANGLE_TOLERANCE:.0e} is accepted: config.json says something that is not reproduced"
            )
            raise ParityError(msg)

    def _angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = positions[:, None].to(torch.float32) * self.inverse_frequencies[None, :]
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * self.rope_scaling, angles.sin() * self.rope_scaling

    def _block_params(self) -> tuple[ParamSpec, ...]:
        hidden, units, channels = self.hidden_size, self.groups[HEADS], self.groups[CHANNELS]
        query, key = self.queries_per_unit * self.head_dim, self.head_dim  # width of one unit
        params = [ParamSpec(name="input_layernorm.weight", shape=(hidden,))]
        for module, width in (("q_proj", query), ("k_proj", key), ("v_proj", key)):
            rows = (PruneAxis(axis=0, group=HEADS, unit_size=width),)
            shape = (units * width, hidden)
            params.append(ParamSpec(name=f"self_attn.{module}.weight", shape=shape, prune=rows))
            if self.config.model_type == "qwen2" or getattr(self.config, "attention_bias", False):
                params.append(ParamSpec(name=f"self_attn.{module}.bias", shape=shape[:1], prune=rows))
        columns = (PruneAxis(axis=1, group=HEADS, unit_size=query),)
        params.append(ParamSpec(name="self_attn.o_proj.weight", shape=(hidden, units * query), prune=columns))
        if getattr(self.config, "attention_bias", False):
            params.append(ParamSpec(name="self_attn.o_proj.bias", shape=(hidden,)))
        params.append(ParamSpec(name="post_attention_layernorm.weight", shape=(hidden,)))
        has_bias = getattr(self.config, "mlp_bias", False)
        rows = (PruneAxis(axis=0, group=CHANNELS, unit_size=1),)
        for module in ("gate_proj", "up_proj"):
            params.append(ParamSpec(name=f"mlp.{module}.weight", shape=(channels, hidden), prune=rows))
            if has_bias:
                params.append(ParamSpec(name=f"mlp.{module}.bias", shape=(channels,), prune=rows))
        columns = (PruneAxis(axis=1, group=CHANNELS, unit_size=1),)
        params.append(ParamSpec(name="mlp.down_proj.weight", shape=(hidden, channels), prune=columns))
        if has_bias:
            params.append(ParamSpec(name="mlp.down_proj.bias", shape=(hidden,)))
        return tuple(params)

    def block_prefix(self, layer: int) -> str:
        """See :meth:`models.family.Family.block_prefix`."""
        return f"model.layers.{layer}."

    def embed(
        self, weights: Weights, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See :meth:`models.family.Family.embed`: causal mask, and angles of positions 0 to ``S - 1``."""
        length = input_ids.shape[1]
        positions = torch.arange(length, device=input_ids.device)
        visible = (positions[None, :] <= positions[:, None])[None, None] & (attention_mask != 0)[:, None, None, :]
        mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)
        cos, sin = self._angles(positions)
        return functional.embedding(input_ids, weights[_EMBEDDINGS]), {"mask": mask, "cos": cos, "sin": sin}

    def residual(
        self, weights: Weights, hidden: torch.Tensor, context: Mapping[str, torch.Tensor], *, first_only: bool = False
    ) -> torch.Tensor:
        """See :meth:`models.family.Family.residual`; every token is scored."""
        del first_only
        tokens = hidden.flatten(0, 1)
        normed = self._norm(weights["input_layernorm.weight"], tokens)
        tokens = tokens + linear(weights, "self_attn.o_proj", self._attention(weights, normed, context))
        normed = self._norm(weights["post_attention_layernorm.weight"], tokens)
        gate = self.activation(linear(weights, "mlp.gate_proj", normed))
        return tokens + linear(weights, "mlp.down_proj", gate * linear(weights, "mlp.up_proj", normed))

    def _attention(self, weights: Weights, tokens: torch.Tensor, context: Mapping[str, torch.Tensor]) -> torch.Tensor:
        mask, group, width = context["mask"], self.queries_per_unit, self.head_dim
        batch, length = mask.shape[0], mask.shape[2]

        def heads(module: str) -> torch.Tensor:
            x = linear(weights, f"self_attn.{module}", tokens)
            return x.view(batch, length, x.shape[1] // width, width).transpose(1, 2)

        query = _rotate(heads("q_proj"), context["cos"], context["sin"])
        key = _rotate(heads("k_proj"), context["cos"], context["sin"])
        units = key.shape[1]
        query = query.reshape(batch * units, group * length, width)
        key = key.reshape(batch * units, length, width)
        value = heads("v_proj").reshape(batch * units, length, width)
        mixed = attend(query, key, value, mask)
        mixed = mixed.view(batch, units * group, length, width).transpose(1, 2)
        return mixed.reshape(batch * length, units * group * width)

    def logits(self, weights: Weights, hidden: torch.Tensor) -> torch.Tensor:
        """See :meth:`models.family.Family.logits`."""
        return functional.linear(self._norm(weights["model.norm.weight"], hidden), weights[self.output_name])

    def resize(self, model: Any, num_kept: Mapping[tuple[int, str], int]) -> None:
        """See :meth:`models.family.Family.resize`: one number of heads for all layers, as one cache serves all."""
        heads = {num_kept[layer, HEADS] for layer in range(self.num_layers)}
        if len(heads) > 1:
            msg = (
                f"layers keep {min(heads)} to {max(heads)} key/value heads, but a deployed decoder's cache has one "
                "width: use a plan that keeps the same number in every layer"
            )
            raise ModelUnsupportedError(msg)
        (units,) = heads
        model.config.num_key_value_heads = units
        model.config.num_attention_heads = units * self.queries_per_unit
        model.config.head_dim = self.head_dim
        channels = {num_kept[layer, CHANNELS] for layer in range(self.num_layers)}
        if len(channels) == 1:
            (model.config.intermediate_size,) = channels

    def _norm(self, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864): halves of each head turned, ``[..., S, head_dim]``."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _window(config: Any) -> int | None:
    """Sliding attention window, tokens, or None; sequences are kept within it, where it changes nothing."""
    window: int | None = getattr(config, "sliding_window", None)
    return window if getattr(config, "use_sliding_window", True) else None
