"""Seed-OSS: a Llama whose projections of queries, keys and values have biases, and whose output may have none."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from edge_runtime.formats.manifest import Task
from models.llama import Llama
from models.settings import Settings


class SeedOss(Llama):
    """``SeedOssForCausalLM``."""

    name: ClassVar[str] = "seed_oss"
    model_types: ClassVar[tuple[str, ...]] = ("seed_oss",)
    settings: ClassVar[Settings] = dataclasses.replace(
        Llama.settings,
        used=Llama.settings.used | {"attention_bias", "attention_out_bias", "mlp_bias"},
        harmless=Llama.settings.harmless | {"residual_dropout"},
    )

    def __init__(self, config: Any, task: Task) -> None:
        """As Llama, which has the bias of the output wherever it has the others."""
        super().__init__(config, task)
        if not config.attention_out_bias:
            self.block_params = tuple(param for param in self.block_params if param.name != "self_attn.o_proj.bias")
