"""PyTorch and PEFT, eager, in a benchmark: ``python -m exporter.benchmark.torch_contender REQUEST``.

The code of a careful user: the model as transformers builds it with its default attention (``sdpa``), in float32,
dropout off, PEFT's LoRA on the same modules, ``AdamW`` over the trained parameters, clipping by global norm, and
nothing in a step that training does not need. It trains the whole model, because PEFT does not slice.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import peft
import safetensors
import torch
import transformers

from edge_runtime.benchmark.process import Contender, contend
from edge_runtime.benchmark.protocol import BenchmarkRequest
from edge_runtime.benchmark.work import prepare_work
from edge_runtime.formats import names
from edge_runtime.formats.manifest import Manifest, decode_manifest
from edge_runtime.formats.peft_format import peft_config
from edge_runtime.formats.tensors import decode_tensors
from exporter.errors import ExportError
from models.configuration import read_configuration
from models.loading import AUTO_CLASSES

_DROPOUTS: Final = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "classifier_dropout")


def prepare(request: BenchmarkRequest) -> Contender:
    """Load the checkpoint, wrap it, and give the adapter the benchmark's first values.

    Raises:
        ExportError: a pruned arm is asked for.
        WireError: the artifact's manifest, or the rank, cannot be used.
    """
    if request.arm.pruning_ratio:
        msg = f"PEFT trains whole models, got pruning ratio {request.arm.pruning_ratio:g}: ask for 0"
        raise ExportError(msg)
    torch.set_num_threads(request.num_threads)
    artifact, hyper = Path(request.artifact), request.hyper_parameters
    manifest = decode_manifest((artifact / names.MANIFEST_FILE).read_bytes())
    work = prepare_work(manifest, decode_tensors((artifact / names.INITIAL_FILE).read_bytes()), request)
    model = _with_lora(_load(request.model, artifact, manifest), manifest, request)
    parameters = _take(model, work.adapter)
    optimizer = torch.optim.AdamW(
        parameters,
        lr=hyper.learning_rate,
        betas=(hyper.beta1, hyper.beta2),
        eps=hyper.epsilon,
        weight_decay=hyper.weight_decay,
    )
    batches = itertools.cycle(
        [
            {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.from_numpy(examples.labels)}
            for examples in work.batches
            for ids in [torch.from_numpy(examples.input_ids)]
        ]
    )

    def step() -> float:
        loss = model(**next(batches)).loss
        optimizer.zero_grad()
        loss.backward()
        if hyper.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, hyper.max_grad_norm)
        optimizer.step()
        return float(loss.item())

    return Contender(step=step, num_trainable=sum(parameter.numel() for parameter in parameters))


def _load(source: str, artifact: Path, manifest: Manifest) -> Any:
    """The model in float32, without dropout; weights that the checkpoint lacks are those of the artifact."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = read_configuration(source, manifest.task).config
    for name in _DROPOUTS:
        if getattr(config, name, None) is not None:
            setattr(config, name, 0.0)
    if manifest.labels:
        config.num_labels = len(manifest.labels)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # training does not use cached keys and values
    model, info = AUTO_CLASSES[manifest.task].from_pretrained(
        source, config=config, dtype=torch.float32, output_loading_info=True
    )
    lacking = sorted(set(info["missing_keys"]) - {spec.name for spec in manifest.dense})
    if lacking:
        found = dict(model.named_parameters())
        with safetensors.safe_open(artifact / names.BASE_FILE, framework="pt") as base, torch.no_grad():
            for name in lacking:
                found[name].copy_(base.get_tensor(name))
    return model


def _with_lora(model: Any, manifest: Manifest, request: BenchmarkRequest) -> Any:
    config: dict[str, Any] = dict(peft_config(manifest, request.arm.rank, request.hyper_parameters.lora_scaling))
    del config["base_model_name_or_path"]  # PEFT sets it from the model
    config["inference_mode"] = False
    return peft.get_peft_model(model, peft.LoraConfig(**config)).train()


def _take(model: Any, adapter: Mapping[str, Any]) -> list[torch.nn.Parameter]:
    """Set the trainable parameters to the benchmark's first adapter.

    Raises:
        ExportError: PEFT trains others than the adapter has.
    """
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    first = {peft_parameter(name): value for name, value in adapter.items()}
    if trained.keys() != first.keys():
        differing = sorted(trained.keys() ^ first.keys())
        msg = f"PEFT trains other tensors than the artifact has: {differing[0]!r} ({len(differing)} differ)"
        raise ExportError(msg)
    with torch.no_grad():
        for name, value in first.items():
            trained[name].copy_(torch.from_numpy(value))
    return list(trained.values())


def peft_parameter(name: str) -> str:
    """Return the name of an adapter's trainable tensor in a PEFT model.

    >>> peft_parameter("bert.encoder.layer.0.output.dense.lora_A.weight")
    'base_model.model.bert.encoder.layer.0.output.dense.lora_A.default.weight'
    >>> peft_parameter("classifier.bias")
    'base_model.model.classifier.modules_to_save.default.bias'
    """
    module, _, leaf = name.rpartition(".")
    kind = "" if module.endswith((".lora_A", ".lora_B")) else ".modules_to_save"
    return f"base_model.model.{module}{kind}.default.{leaf}"


if __name__ == "__main__":
    packages = ("torch", "transformers", "peft", "numpy")
    sys.exit(contend(prepare, packages, sys.argv[1:]))
