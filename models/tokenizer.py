"""The tokenizer of a checkpoint, as the ``tokenizer.json`` that devices need; it is converted from other formats."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Final

import tokenizers
import transformers
from tokenizers import processors

from edge_runtime.formats.names import TOKENIZER_FILE
from models.checkpoint_files import file_of, json_of
from models.errors import ModelNotFoundError, ModelPackageError, ModelUnsupportedError

TOKENIZER_CONFIG: Final = "tokenizer_config.json"
_SPECIAL_FILE: Final = "special_tokens_map.json"
_CHAT_FILE: Final = "chat_template.jinja"
_SENTENCEPIECE_FILES: Final = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_SENTENCEPIECE_PACKAGES: Final = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
"""Packages that convert these files, by the names that pip and Python have for them."""
_SPECIAL: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_KEPT: Final = ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces", "chat_template")


def load_tokenizer(model: str | Path) -> Any:
    """A fast tokenizer of transformers.

    Where the installed transformers cannot make it (version 5 names classes that version 4 does not have), it is made
    of ``tokenizer.json`` and the special tokens that ``tokenizer_config.json`` names.

    Args:
        model: local directory, or id on the hub.

    Raises:
        ModelPackageError: there is no ``tokenizer.json``, and a package that makes one is not installed.
        ModelNotFoundError: the directory holds no tokenizer.
        ModelUnsupportedError: it has no fast version.
        Exception: as transformers raises it for malformed files.
    """
    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(model), use_fast=True)
    except Exception:
        if (path := file_of(model, TOKENIZER_FILE)) is not None:
            config = {**(json_of(model, _SPECIAL_FILE) or {}), **(json_of(model, TOKENIZER_CONFIG) or {})}
            if (template := file_of(model, _CHAT_FILE)) is not None:
                config["chat_template"] = template.read_text(encoding="utf-8")
            return _of_file(path, config)
        _explain(model)
        raise
    if not tokenizer.is_fast:
        _explain(model)
        msg = f"the tokenizer of {model} has no fast version ({TOKENIZER_FILE}), which devices need"
        raise ModelUnsupportedError(msg)
    return tokenizer


def _of_file(path: Path, config: dict[str, Any]) -> Any:
    """A tokenizer that is the file, word for word, with special tokens as the configuration names them."""
    options: dict[str, Any] = {key: config[key] for key in _KEPT if config.get(key) is not None}
    options |= {name: text for name in _SPECIAL if (text := _text(config.get(name))) is not None}
    more = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    if isinstance(more, list):
        options["additional_special_tokens"] = [text for token in more if (text := _text(token)) is not None]
    added = config.get("added_tokens_decoder")
    if isinstance(added, dict):
        options["added_tokens_decoder"] = {int(index): tokenizers.AddedToken(**token) for index, token in added.items()}
    backend = tokenizers.Tokenizer.from_file(str(path))
    tokenizer: Any = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **options)
    # transformers 4 sets its own leading blank in the pre-tokenizer; the file has the setting of the training.
    tokenizer.backend_tokenizer.pre_tokenizer = backend.pre_tokenizer
    if "add_bos_token" in config or "add_eos_token" in config:
        _surround(tokenizer, begins=bool(config.get("add_bos_token")), ends=bool(config.get("add_eos_token")))
    return tokenizer


def _surround(tokenizer: Any, *, begins: bool, ends: bool) -> None:
    """Put first and last token where the configuration asks for them, as transformers 5 does."""
    first = tokenizer.bos_token if begins else None
    last = tokenizer.eos_token if ends else None

    def template(part: str, kind: int) -> str:
        return " ".join(f"{piece}:{kind}" for piece in (first, part, last) if piece)

    ids = tokenizer.convert_tokens_to_ids
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template("$A", 0),
        pair=f"{template('$A', 0)} {template('$B', 1)}",
        special_tokens=[(token, ids(token)) for token in dict.fromkeys((first, last)) if token],
    )


def _explain(model: str | Path) -> None:
    """Say why there is no fast tokenizer, where that can be known from the files.

    Raises:
        ModelPackageError: a package is missing.
        ModelNotFoundError: there is no tokenizer at all.
    """
    if file_of(model, TOKENIZER_FILE) is not None:
        return
    source = next((name for name in _SENTENCEPIECE_FILES if file_of(model, name) is not None), None)
    missing = [name for name, module in _SENTENCEPIECE_PACKAGES.items() if not _is_installed(module)]
    if source is not None and missing:
        msg = (
            f"the tokenizer of {model} is {source}, of which {TOKENIZER_FILE} can be made only with the package "
            f"{missing[0]}: pip install {' '.join(missing)}, or put a {TOKENIZER_FILE} into the model's directory"
        )
        raise ModelPackageError(msg)
    if Path(model).is_dir() and source is None and not any(Path(model).glob("vocab.*")):
        msg = f"model directory {model} holds no tokenizer: put {TOKENIZER_FILE} and {TOKENIZER_CONFIG} into it"
        raise ModelNotFoundError(msg)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def _text(token: object) -> str | None:
    """A token as a configuration writes it: a string, or an object that says how it is cut out of text."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
