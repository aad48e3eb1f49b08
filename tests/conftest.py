"""Tiny models and their artifacts, made once for all rooms. Treat them as read-only: copy before changing a file."""

# Room tests that need no model must not pay for torch: it is imported where it is used.

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.models.checkpoints.seeded import WORDS

SHARED = Path(os.environ.get("FEDSPINE_SHARED", Path(__file__).parents[2] / "shared"))
NEEDED_IN_CI = ("mosquitto", "openssl", "systemd-analyze")
"""Programs that ``.ci/run`` provides: a test that skips for want of one fails where ``CI`` is set."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get("CI"):
        reason = str(report.longrepr)
        if any(program in reason for program in NEEDED_IN_CI):
            report.outcome, report.longrepr = "failed", f"a test may not skip where CI is set: {reason}"
    return report


@pytest.fixture(autouse=True)
def same_nice_level() -> Iterator[None]:
    """Fail a test that makes its process give way to others: all tests after it would be slow."""
    level = os.getpriority(os.PRIO_PROCESS, 0)
    yield
    assert os.getpriority(os.PRIO_PROCESS, 0) == level, "the test changed the nice level: give --nice 0"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real models and data, beside the checkout."""
    if not (SHARED / "models").is_dir():
        pytest.skip(f"needs real models and data in {SHARED}; set FEDSPINE_SHARED")
    return SHARED


def save_tokenizer(directory: Path, special: dict[str, str], template: str) -> None:
    """A word-level tokenizer over WORDS, stored as Hugging Face stores it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([*special.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    used = [(token, vocabulary[token]) for token in special.values() if token in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)


def save_bert(directory: Path, **changes: Any) -> Path:
    """A random BERT without classifier: 2 layers, 4 heads of 8, 24 channels."""
    import torch
    from transformers import BertConfig, BertModel

    settings = {
        "vocab_size": len(WORDS) + 4,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = BertModel(BertConfig(**settings | changes))
        scatter(model)
    model.save_pretrained(directory)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    save_tokenizer(directory, special, "[CLS] $A [SEP]")
    return directory


def save_bert_classifier(directory: Path, labels: tuple[str, ...]) -> Path:
    """The random BERT with a classifier whose classes have names."""
    from transformers import BertConfig, BertForSequenceClassification

    save_bert(directory)
    config = BertConfig.from_pretrained(directory, id2label=dict(enumerate(labels)))
    model = BertForSequenceClassification.from_pretrained(directory, config=config)
    scatter(model.classifier)
    model.save_pretrained(directory)
    return directory


def save_llama(directory: Path, model_type: str = "llama", **changes: Any) -> Path:
    """A random decoder with grouped-query attention: 2 layers, 8 query heads of 8 on 4 key/value heads, 24 channels."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        "vocab_size": len(WORDS) + 4,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    config = AutoConfig.for_model(model_type, **settings | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = AutoModelForCausalLM.from_config(config)
        scatter(model)
    model.save_pretrained(directory)
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    save_tokenizer(directory, special, "<s> $A")
    return directory


def scatter(model: Any) -> None:
    """Give every weight a value of its own; norms of one and biases of zero would hide mistakes."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)


@pytest.fixture(scope="session")
def tiny_bert_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hugging Face directory of a tiny BERT without classifier."""
    return save_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def tiny_llama_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hugging Face directory of a tiny Llama with tied embeddings."""
    return save_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_bert_artifact(tiny_bert_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifact of the tiny BERT, for the classes red, green and blue."""
    from exporter.artifact.export import export_model

    out = tmp_path_factory.mktemp("artifacts") / "tiny-bert"
    export_model(tiny_bert_model, "text-classification", out, labels=["red", "green", "blue"])
    return out


@pytest.fixture(scope="session")
def tiny_llama_artifact(tiny_llama_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifact of the tiny Llama."""
    from exporter.artifact.export import export_model

    out = tmp_path_factory.mktemp("artifacts") / "tiny-llama"
    export_model(tiny_llama_model, "causal-lm", out)
    return out


Disk = Callable[[int], Path]
"""Type of the fixture that makes small disks."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    """Makes file systems of so many bytes; skips where none can be mounted."""
    with contextlib.ExitStack() as mounted:

        def make(num_bytes: int) -> Path:
            disk = tmp_path / f"disk-{num_bytes}"
            disk.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(disk)]
            if subprocess.run(command, capture_output=True, check=False).returncode != 0:
                pytest.skip("a small tmpfs cannot be mounted here (not root?)")
            mounted.callback(subprocess.run, ["umount", str(disk)], check=True)
            return disk

        yield make
