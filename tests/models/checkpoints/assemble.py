"""Checkpoints as transformers 4.57 and 5 write them: the descriptions stored beside this file, with weights drawn."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import safetensors.numpy

from tests.models.checkpoints.seeded import seeded_weights

HERE: Final = Path(__file__).parent
NAMES: Final = sorted(path.stem for path in (HERE / "by-5").glob("*.json"))
LOGITS: Final = safetensors.numpy.load_file(HERE / "logits.safetensors")
"""Of :data:`tests.models.checkpoints.seeded.IDS`, as transformers 5 computes them, by ``by-VERSION/NAME``."""


def assemble(directory: Path, version: int, name: str) -> Path:
    """A checkpoint, whole."""
    import transformers

    source = HERE / f"by-{version}"
    kind = "encoder" if name == "bert" else "decoder"
    shutil.copytree(source / kind, directory)
    shutil.copyfile(source / f"{name}.json", directory / "config.json")
    config = transformers.AutoConfig.from_pretrained(directory)
    auto: Any = transformers.AutoModelForSequenceClassification
    if kind == "decoder":
        auto = transformers.AutoModelForCausalLM
    parameters = auto.from_config(config).named_parameters()
    weights = seeded_weights((parameter, tuple(value.shape)) for parameter, value in parameters)
    safetensors.numpy.save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
