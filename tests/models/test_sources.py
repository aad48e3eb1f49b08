"""Inputs given as a model that are not one: the message says what each is, and what to give instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_runtime.errors import ExitCode
from models.errors import ModelError, ModelNotFoundError, ModelPackageError
from models.loading import load_model
from models.sources import check_source
from tests.conftest import save_llama


def refusal(model: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_model(model, "causal-lm", labels=None, num_labels=None, seed=0)
    assert "\n" not in str(caught.value)
    return caught.value


def test_an_adapter_is_told_with_its_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base-1b", "r": 8}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    error = refusal(tmp_path)
    assert "is an adapter of PEFT, not a model: give the model that it was trained on (org/base-1b)" in str(error)
    assert error.exit_code is ExitCode.MODEL_UNSUPPORTED


def test_an_adapter_beside_a_configuration_is_one_too(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model")
    (source / "adapter_config.json").write_text("{not json")
    assert "is an adapter of PEFT" in str(refusal(source))


def test_an_adapter_on_the_hub_is_told_with_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path))
    stored = tmp_path / "models--org--adapter"
    (stored / "snapshots" / "0" / "x").mkdir(parents=True)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("0")
    config = stored / "snapshots" / "0" / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": "org/base-1b"}))
    error = refusal(Path("org/adapter"))
    assert "org/adapter is an adapter of PEFT, not a model: give the model that it was trained on (org/base" in str(
        error
    )


@pytest.mark.parametrize("name", ["model-Q4_K_M.gguf", "weights"])
def test_a_gguf_file_is_told_by_what_it_holds(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"GGUF\x03\x00\x00\x00")
    assert "is a GGUF file of llama.cpp" in str(refusal(tmp_path / name))


def test_a_folder_of_gguf_files_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "holds a GGUF file (model.gguf) of llama.cpp" in str(refusal(tmp_path))


@pytest.mark.parametrize(
    ("quantization", "method"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "fp8"}, "fp8"),
    ],
    ids=["bitsandbytes", "older bitsandbytes", "gptq", "awq", "fp8"],
)
def test_quantised_weights_are_told_by_their_method(quantization: object, method: str, tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model")
    config = json.loads((source / "config.json").read_text())
    config |= {"quantization_config": quantization, "_name_or_path": "org/base-1b"}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"quantised by {method}"):
        check_source(source)  # before anything is loaded
    error = refusal(source)
    assert "org/base-1b" in str(error)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["model.onnx", "config.json", "fedspine.json"], "is a compact model, made for inference"),
        (["manifest.json", "config.json"], "is an artifact, which is exported already"),
        (["run.toml"], "is a run directory"),
        (["params.json", "consolidated.00.pth"], "holds weights in Meta's format"),
        (["config.json", "tf_model.h5"], "holds TensorFlow weights alone"),
        (["notes.txt"], "has no config.json: give a directory that save_pretrained wrote"),
    ],
    ids=["compact", "artifact", "run", "Meta", "TensorFlow", "anything"],
)
def test_other_folders_are_told_by_what_they_hold(files: list[str], message: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text('{"model_type": "llama"}')
    assert message in str(refusal(tmp_path))


def test_a_model_in_a_folder_within_is_named(tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "config.json").write_text("{}")
    assert "its folder final has one: give that" in str(refusal(tmp_path))


def test_one_file_of_a_model_is_told(tiny_llama_model: Path) -> None:
    assert "is one file of a model: give the directory that holds it" in str(refusal(tiny_llama_model / "config.json"))


def test_what_is_nowhere_is_refused_and_a_name_on_the_hub_is_not() -> None:
    check_source("org/model")
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        check_source("./nowhere")


# ---- tokenizers ----


def test_a_package_that_a_tokenizer_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_llama(tmp_path / "model")
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.model").write_bytes(b"\x0a\x0b")
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    monkeypatch.setattr("models.tokenizer._is_installed", lambda module: module != "sentencepiece")
    error = refusal(source)
    assert isinstance(error, ModelPackageError)
    assert "tokenizer.model" in str(error)
    assert "pip install sentencepiece," in str(error)
    assert error.exit_code is ExitCode.MISSING_DEPENDENCY


def test_a_folder_without_any_tokenizer_is_told(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (source / name).unlink()
    assert "holds no tokenizer: put tokenizer.json" in str(refusal(source))


def test_special_tokens_listed_as_version_5_does_are_read(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model")
    path = source / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {
        "extra_special_tokens": ["old", "new"],
        "tokenizer_class": "LlamaTokenizer",
    }
    path.write_text(json.dumps(config))
    tokenizer = load_model(source, "causal-lm", labels=None, num_labels=None, seed=0).tokenizer
    assert tokenizer.additional_special_tokens == ["old", "new"]
    assert tokenizer("the old cat")["input_ids"] == [2, 4, 20, 6]


def test_tokens_that_only_older_files_name_are_read(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model", vocab_size=25)
    path = source / "tokenizer_config.json"
    end = {"content": "<end>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {"tokenizer_class": "TokenizersBackend", "added_tokens_decoder": {"24": {**end, "special": True}}}
    path.write_text(json.dumps(config))
    (source / "special_tokens_map.json").write_text(json.dumps({"eos_token": end, "pad_token": "<pad>"}))
    tokenizer = load_model(source, "causal-lm", labels=None, num_labels=None, seed=0).tokenizer
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (24, 0)
    assert tokenizer("the cat <end>")["input_ids"] == [2, 4, 6, 24]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [({"add_bos_token": True, "add_eos_token": True}, [2, 4, 6, 3]), ({"add_eos_token": True}, [4, 6, 3])],
    ids=["both", "the last"],
)
def test_first_and_last_token_are_added_as_the_configuration_says(
    asked: dict[str, bool], expected: list[int], tmp_path: Path
) -> None:
    source = save_llama(tmp_path / "model")
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": "TokenizersBackend", **asked}))
    tokenizer = load_model(source, "causal-lm", labels=None, num_labels=None, seed=0).tokenizer
    assert tokenizer("the cat")["input_ids"] == expected
