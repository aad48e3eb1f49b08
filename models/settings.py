"""Checks every key of a ``config.json``: one that matters, but that the stages do not use, is refused by its name.

A key is *used* (the stages compute with its value), *harmless* (it changes nothing that they compute), or *fixed* (they
reproduce some values of it alone). Of a key that the family does not know, transformers' own class computes nothing
either; but whoever wrote it may have had a model that does, so one that sounds like part of a computation is refused,
and any other is told.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Final

from models.errors import ModelUnsupportedError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The treatment of configuration keys by a family."""

    used: frozenset[str]
    fixed: Mapping[str, tuple[object, ...]] = dataclasses.field(default_factory=dict)
    """The values that are reproduced, by key."""
    harmless: frozenset[str] = frozenset()


_USED: Final = frozenset({"model_type", "architectures", "vocab_size", "hidden_size", "num_hidden_layers"}) | {
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "hidden_act",
    "initializer_range",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "torch_dtype",
    "dtype",
}
"""Of every family. How weights are stored is for the loader, classes are for :mod:`models.loading`."""
_TOKENS: Final = frozenset(
    f"{name}_token_id" for name in ("bos", "eos", "pad", "sep", "cls", "mask", "unk", "decoder_start")
)
"""Checked against the vocabulary by :mod:`models.special_tokens`."""
_HARMLESS: Final = frozenset(
    {
        # Where it comes from and how it was made.
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
        "_num_labels",
        "attn_implementation",
        "experts_implementation",
        "finetuning_task",
        "name_or_path",
        "quantization_config",  # refused by models.sources
        "sentence_transformers",
        "task_specific_params",
        "transformers.js_config",
        "transformers_version",
        # How it is run.
        "_flash_attn_2_enabled",
        "chunk_size_feed_forward",
        "flash_attn",
        "gradient_checkpointing",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "pretraining_tp",  # only splits the same products
        "return_dict",
        "tie_last_hidden_states",  # only changes what is returned beside the logits
        "torchscript",
        "use_bfloat16",
        "use_cache",
        "use_flash_attention",
        # Of tokenizers, and of models with two parts.
        "cross_attention_hidden_size",
        "model_max_length",
        "prefix",
        "tie_encoder_decoder",
        "tokenizer_class",
        # How text is generated, which older files say here.
        "bad_words_ids",
        "begin_suppress_tokens",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "length_penalty",
        "max_length",
        "min_length",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_scores",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict_in_generate",
        "suppress_tokens",
        "temperature",
        "tf_legacy_loss",
        "top_k",
        "top_p",
        "typical_p",
    }
)
_FIXED: Final[dict[str, tuple[object, ...]]] = {
    "is_decoder": (False, None),
    "is_encoder_decoder": (False, None),
    "is_causal": (True, None),
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, None),
    "auto_map": ({}, None),
    "per_layer_config": ({}, None),
    "partial_rotary_factor": (1, None),
}
_DROPOUT: Final = re.compile(r"drop(out)?(_|$)|pdrop")
_COMPUTES: Final = re.compile(
    r"act(ivation)?_f|activation|alibi|attention|attn|bias|bidirectional|causal|chunk|clip|(^|_)conv(_|$)|cross|depth"
    r"|embed|expert|fact_?or|ffn|gate|heads?_|interleave|layer|logit|lora|mask|moe|mrope|multiplier|mup|norm"
    r"|parallel|per_|pool|position|quant|residual|rope|rotary|router|scal|sink|skip|softcap|sparse|ssm|temperature|(^|_)tied?_"
    r"|window"
)
"""Names of settings that change the computation in other families of transformers."""
_OFF: Final[tuple[object, ...]] = (None, False, "", [], {})
_ONE_IS_OFF: Final = re.compile(r"multiplier|scal|fact_?or|temperature")
_ZERO_IS_OFF: Final = re.compile(r"bias|chunk|clip|expert|mask|num_|sink|skip|softcap|window")
_SHOWN: Final = 60


def check_settings(raw: Mapping[str, Any], settings: Settings) -> list[str]:
    """Compare a configuration, as it is written, with the computation of the stages.

    Args:
        raw: ``config.json``.
        settings: the family's treatment of the keys.

    Returns:
        A line for the user, if there are keys that are not used and that seem to change nothing.

    Raises:
        ModelUnsupportedError: a key changes the model and is not used; names it and its value.
    """
    fixed = {**_FIXED, **settings.fixed}
    ignored = []
    for key, value in raw.items():
        if key in settings.used or (key in _USED | _TOKENS | _HARMLESS | settings.harmless and key not in fixed):
            continue
        if key in fixed:
            if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in fixed[key]):
                _refuse(key, value, f"{_shown(fixed[key][0])} is the only value that is reproduced")
        elif not _is_off(key, value) and not _DROPOUT.search(key):
            if _COMPUTES.search(key):
                model_type = raw.get("model_type")
                _refuse(key, value, f"transformers' {model_type} has no such setting, so it may be another model")
            ignored.append(key)
    if not ignored:
        return []
    return [f"config.json says {', '.join(sorted(ignored)[:8])}, which nothing here or in transformers uses"]


def _is_off(key: str, value: object) -> bool:
    if value == 1 and not isinstance(value, bool):
        return bool(_ONE_IS_OFF.search(key))
    if value == 0 and not isinstance(value, bool):
        return bool(_ZERO_IS_OFF.search(key))
    return any(value is one or (value == one and not isinstance(value, bool | int | float)) for one in _OFF)


def _refuse(key: str, value: object, why: str) -> None:
    msg = (
        f"config.json says {key} = {_shown(value)}, which is not supported: {why}; "
        "use another model, or remove the key if the model was trained without it"
    )
    raise ModelUnsupportedError(msg)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
