"""The model that a user named, before anything is loaded: a checkpoint, or something else that looks like one.

Without torch, so that a name can be checked early.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from edge_runtime.formats.names import MANIFEST_FILE
from edge_runtime.formats.peft_format import CONFIG_FILE as ADAPTER_CONFIG
from models.errors import ModelNotFoundError, ModelUnsupportedError
from models.hub import is_hub_id

CONFIG_FILE: Final = "config.json"

_EXPECTED: Final = "give a directory that save_pretrained wrote, or the id of a model on the hub"
_GGUF_MAGIC: Final = b"GGUF"
_GGUF: Final = (
    "of llama.cpp, whose weights are packed for inference: give the model that it was converted from, a directory with "
    "config.json and *.safetensors, or its id on the hub (--base nf4 stores frozen weights in 4 bits)"
)
_WEIGHT_SUFFIXES: Final = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx"})
_COMPACT: Final = "fedspine.json"
_MARKERS: Final = (
    (_COMPACT, "is a compact model, made for inference: give the model that it was made from"),
    (MANIFEST_FILE, "is an artifact, which is exported already: give the model that it was made from"),
    ("run.toml", "is a run directory: give the model that it tuned"),
    ("params.json", "holds weights in Meta's format: give the same model in Hugging Face's format (config.json)"),
    ("tf_model.h5", "holds TensorFlow weights alone: give the same model in PyTorch's format"),
    ("flax_model.msgpack", "holds Flax weights alone: give the same model in PyTorch's format"),
)
_TORCH_WEIGHTS: Final = ("*.safetensors", "*.bin", "*.safetensors.index.json")


def check_source(model: str | Path) -> None:
    """Refuse an input that is not a checkpoint; the id of a model on the hub is checked when it is loaded.

    Raises:
        ModelNotFoundError: the path does not exist, or holds no model.
        ModelUnsupportedError: the path holds another known format; the message names a usable input.
    """
    path = Path(model)
    if path.is_dir():
        _check_directory(path)
    elif path.exists():
        _refuse_file(path)
    elif not is_hub_id(str(model)):
        msg = f"model directory {model} does not exist: {_EXPECTED}"
        raise ModelNotFoundError(msg)


def check_quantization(raw: Mapping[str, Any], model: str | Path) -> None:
    """Refuse a checkpoint whose weights are packed.

    Args:
        raw: its ``config.json``.
        model: as the user gave it.

    Raises:
        ModelUnsupportedError: names the method.
    """
    found = raw.get("quantization_config")
    if not isinstance(found, dict) or not found:
        return
    is_bitsandbytes = any(found.get(key) for key in ("load_in_4bit", "load_in_8bit"))
    method = found.get("quant_method") or ("bitsandbytes" if is_bitsandbytes else "an unknown method")
    source = raw.get("_name_or_path")
    like = f" (its config.json names {source})" if isinstance(source, str) and source not in {"", str(model)} else ""
    msg = (
        f"weights of model {model} are quantised by {method} (quantization_config in {CONFIG_FILE}), which is not "
        f"supported: give the model that it was made from{like}, in float32, float16 or bfloat16; --base nf4 stores "
        "frozen weights in 4 bits"
    )
    raise ModelUnsupportedError(msg)


def adapter_error(model: str | Path, config: Path) -> ModelUnsupportedError:
    """Return the error for an adapter that was given as a model; ``config`` is its :data:`ADAPTER_CONFIG`."""
    msg = (
        f"{model} is an adapter of PEFT, not a model: give the model that it was trained on{_base_of(config)}; to "
        "start from both, merge them (PEFT's merge_and_unload, then save_pretrained) and give the result"
    )
    return ModelUnsupportedError(msg)


def _check_directory(path: Path) -> None:
    if (path / ADAPTER_CONFIG).is_file():
        raise adapter_error(path, path / ADAPTER_CONFIG)
    has_config = (path / CONFIG_FILE).is_file()
    has_weights = any(any(path.glob(pattern)) for pattern in _TORCH_WEIGHTS)
    if has_config:
        check_quantization(_object(path / CONFIG_FILE), path)
    if has_config and has_weights and not (path / _COMPACT).exists():
        return
    for marker, what in _MARKERS:
        if (path / marker).is_file():
            msg = f"{path} {what}"
            raise ModelUnsupportedError(msg)
    if gguf := sorted(path.glob("*.gguf")):
        msg = f"{path} holds a GGUF file ({gguf[0].name}) {_GGUF}"
        raise ModelUnsupportedError(msg)
    if not has_config:
        inner = next((one.parent.name for one in sorted(path.glob(f"*/{CONFIG_FILE}"))), None)
        hint = f"its folder {inner} has one: give that" if inner else _EXPECTED
        msg = f"model directory {path} has no {CONFIG_FILE}: {hint}"
        raise ModelNotFoundError(msg)


def _base_of(config: Path) -> str:
    base = _object(config).get("base_model_name_or_path")
    return f" ({base})" if isinstance(base, str) and base else ""


def _object(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty if it cannot be read, which is reported when the model is loaded."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _refuse_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
    except OSError as error:
        msg = f"model {path} cannot be read: {error.strerror}"
        raise ModelNotFoundError(msg) from error
    if magic == _GGUF_MAGIC or path.suffix == ".gguf":
        msg = f"model {path} is a GGUF file {_GGUF}"
        raise ModelUnsupportedError(msg)
    if path.suffix in _WEIGHT_SUFFIXES or path.name == CONFIG_FILE:
        msg = f"model {path} is one file of a model: give the directory that holds it, with {CONFIG_FILE}"
        raise ModelNotFoundError(msg)
    msg = f"model {path} is a file, not a directory: {_EXPECTED}"
    raise ModelNotFoundError(msg)
