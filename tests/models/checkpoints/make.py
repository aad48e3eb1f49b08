"""Writes the files beside it: checkpoints' descriptions as one version of transformers writes them, and its logits.

Run it from the root of the checkout in an environment that has torch, safetensors, tokenizers and that version:

    PYTHONPATH=. python tests/models/checkpoints/make.py

Under transformers 4 it writes ``by-4/``; under version 5 ``by-5/``, and ``logits.safetensors`` with what version 5
computes of both. ``tests/models/test_versions.py`` compares with these.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import tokenizers
import torch
import transformers

from tests.models.checkpoints.seeded import IDS, WORDS, seeded_weights

HERE = Path(__file__).parent
VERSION = int(transformers.__version__.split(".", maxsplit=1)[0])
DECODER = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 8.0}
DECODERS: dict[str, tuple[str, float, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", 10_000.0, {"rope_type": "default"}, {"tie_word_embeddings": True}),
    "llama3": ("llama", 500_000.0, {"rope_type": "llama3", **LLAMA3}, {"attention_bias": True, "mlp_bias": True}),
    "linear": ("llama", 30_000.0, {"rope_type": "linear", "factor": 4.0}, {"head_dim": 16}),
    "yarn": ("llama", 20_000.0, {"rope_type": "yarn", **YARN}, {}),
    "qwen2": ("qwen2", 1_000_000.0, {"rope_type": "default"}, {"tie_word_embeddings": True}),
    "mistral": ("mistral", 1_000_000.0, {"rope_type": "yarn", **YARN}, {"sliding_window": 32, "head_dim": 8}),
}
BERT = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-5,
    "id2label": {0: "no", 1: "maybe", 2: "yes"},
    "label2id": {"no": 0, "maybe": 1, "yes": 2},
}


def decoder(name: str) -> Any:
    """One of the decoders, its rotary settings said in the version's own words."""
    kind, theta, scaling, more = DECODERS[name]
    if VERSION >= 5:
        rotary: dict[str, Any] = {"rope_parameters": {"rope_theta": theta, **scaling}}
    else:
        rotary = {"rope_theta": theta, "rope_scaling": None if scaling["rope_type"] == "default" else scaling}
    config = transformers.AutoConfig.for_model(kind, **{**DECODER, **rotary, **more})
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = [3, 9]
    return model


def save(model: Any, out: Path, name: str) -> None:
    """Its configuration as ``NAME.json``; what it says of generation beside the tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        shutil.copyfile(Path(folder, "config.json"), out / f"{name}.json")
        if Path(folder, "generation_config.json").exists():
            shutil.copyfile(Path(folder, "generation_config.json"), out / "decoder" / "generation_config.json")


def save_tokenizer(directory: Path, special: dict[str, str], template: str) -> None:
    """A tokenizer of words."""
    vocabulary = {token: index for index, token in enumerate([*special.values(), *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    used = [(token, vocabulary[token]) for token in special.values() if token in template]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single=template, special_tokens=used)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, model_max_length=64)
    fast.save_pretrained(directory)


def logits_of(path: Path) -> npt.NDArray[np.float32]:
    """Return the outputs of transformers for a configuration, with the weights drawn."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(path, Path(folder, "config.json"))
        config = transformers.AutoConfig.from_pretrained(folder)
    is_bert = config.model_type == "bert"
    kind: Any = transformers.AutoModelForSequenceClassification if is_bert else transformers.AutoModelForCausalLM
    model = kind.from_config(config, attn_implementation="eager").eval()
    parameters = dict(model.named_parameters())
    drawn = seeded_weights((name, tuple(value.shape)) for name, value in parameters.items())
    with torch.no_grad():
        for name, value in drawn.items():
            parameters[name].copy_(torch.from_numpy(value))
        logits: npt.NDArray[np.float32] = model(input_ids=torch.from_numpy(IDS)).logits.numpy()
    return logits


def main() -> None:
    """Write everything that this version can write."""
    out = HERE / f"by-{VERSION}"
    shutil.rmtree(out, ignore_errors=True)
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    save_tokenizer(out / "decoder", special, "<s> $A")
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    save_tokenizer(out / "encoder", special, "[CLS] $A [SEP]")
    for name in DECODERS:
        save(decoder(name), out, name)
    save(transformers.BertForSequenceClassification(transformers.BertConfig(**BERT)), out, "bert")
    if VERSION < 5:
        return
    found = {f"{path.parent.name}/{path.stem}": logits_of(path) for path in sorted(HERE.glob("by-*/*.json"))}
    metadata = {"transformers": transformers.__version__, "torch": torch.__version__}
    safetensors.numpy.save_file(found, HERE / "logits.safetensors", metadata=metadata)


if __name__ == "__main__":
    main()
