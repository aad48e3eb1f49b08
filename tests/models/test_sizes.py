"""A size in config.json that no model has is refused at once, by its name: before a loop or an allocation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_runtime.formats.manifest import Task
from models.configuration import read_configuration
from models.errors import ModelUnsupportedError


def write(directory: Path, model_type: str, **changes: object) -> Path:
    (directory / "config.json").write_text(json.dumps({"model_type": model_type, **changes}))
    return directory


@pytest.mark.parametrize(
    ("model_type", "key", "value"),
    [
        ("qwen2", "num_hidden_layers", 2**40),
        ("llama", "num_hidden_layers", 10**400),
        ("mistral", "hidden_size", 2**31),
        ("llama", "head_dim", 2**33),
        ("llama", "intermediate_size", 2**62),
        ("llama", "vocab_size", 2**31),
        ("qwen2", "max_position_embeddings", 2**40),
        ("mistral", "sliding_window", -1),
        ("llama", "num_attention_heads", 0),
        ("llama", "num_key_value_heads", 4.0),
        ("bert", "num_labels", 2**40),
        ("bert", "type_vocab_size", "2"),
        ("bert", "num_hidden_layers", True),
    ],
)
def test_size_that_no_model_has(tmp_path: Path, model_type: str, key: str, value: object) -> None:
    task: Task = "text-classification" if model_type == "bert" else "causal-lm"
    with pytest.raises(
        ModelUnsupportedError, match=rf"config\.json says {key} = .*, expected a whole number"
    ) as raised:
        read_configuration(write(tmp_path, model_type, **{key: value}), task)
    assert len(str(raised.value)) < 200
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("unused", [{"use_sliding_window": False}, {"use_sliding_window": None}, {}])
def test_sizes_that_are_left_to_transformers(tmp_path: Path, unused: dict[str, bool | None]) -> None:
    directory = write(tmp_path, "qwen2", num_hidden_layers=2, **unused, sliding_window=0, head_dim=None)
    assert read_configuration(directory, "causal-lm").config.num_hidden_layers == 2
