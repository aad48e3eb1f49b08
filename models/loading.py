"""Pretrained models from a local directory or the Hugging Face hub, through transformers, reduced to what is needed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from transformers.utils import logging as transformers_logging

from edge_runtime.wire.errors import FedSpineError
from models.errors import LabelsDifferError, LabelsError, ModelNotFoundError, ModelUnsupportedError
from models.hub import is_hub_id
from models.registry import family_class, family_for

if TYPE_CHECKING:
    from edge_runtime.wire.manifest import Task
    from models.family import Family

_CONFIG: Final = "config.json"
_AUTO: Final[dict[Task, Any]] = {
    "text-classification": transformers.AutoModelForSequenceClassification,
    "causal-lm": transformers.AutoModelForCausalLM,
}
_GENERIC_LABEL: Final = re.compile(r"LABEL_\d+")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedModel:
    """A model, ready to be exported."""

    name: str
    """For people; never a path."""
    task: Task
    family: Family
    config: Any
    """Hugging Face configuration, with the labels."""
    tokenizer: Any
    """A fast tokenizer of transformers."""
    labels: tuple[str, ...]
    frozen: Mapping[str, torch.Tensor]
    """Weights by Hugging Face name, float16 or float32 as the source stores them (bfloat16 becomes float16)."""
    dense: Mapping[str, torch.Tensor]
    """First values of the tensors that are trained whole, float32."""
    notes: tuple[str, ...]
    """What a person should know of how it was loaded."""


def load_model(
    model: str | Path, task: Task, *, labels: Sequence[str] | None, num_labels: int | None, seed: int
) -> PretrainedModel:
    """Load a model for a task.

    Args:
        model: local directory, or id on the hub.
        task: what it is tuned for.
        labels: class names, for text-classification with a checkpoint that has no classifier.
        num_labels: their number, where they have no names.
        seed: of the weights that the checkpoint lacks: the classifier, normal with the configuration's deviation.

    Raises:
        ModelNotFoundError: there is no such model, or files are missing or unreadable.
        ModelUnsupportedError: no family handles it.
        LabelsError: class names are needed, or make no sense.
        LabelsDifferError: they are not those of the checkpoint's classifier.
    """
    wanted = _wanted_labels(task, labels, num_labels)
    with _quiet():
        config = _config(model, task)
        source, missing = _source_model(model, task, seed)
        tokenizer = _tokenizer(model)
    family = family_for(config, task)
    notes = _check_missing(model, family, missing)
    has_classifier = bool(family.dense) and not missing.intersection(family.dense)
    if task == "text-classification":
        names = _labels(config, wanted, has_classifier=has_classifier)
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
        family = family_for(config, task)
    else:
        names = ()
    state = source.state_dict()
    dense = {name: state[name].to(torch.float32) for name in family.dense if has_classifier}
    if family.dense and not has_classifier:
        dense = _new_dense(family, config.initializer_range, seed)
        notes.append(f"the checkpoint has no classifier: a new one for {len(names)} classes was made from seed {seed}")
    config.architectures = [type(source).__name__]
    return PretrainedModel(
        name=Path(model).resolve().name if Path(model).is_dir() else str(model),
        task=task,
        family=family,
        config=config,
        tokenizer=tokenizer,
        labels=names,
        frozen=_frozen(family, state),
        dense=dense,
        notes=tuple(notes),
    )


def _wanted_labels(task: Task, labels: Sequence[str] | None, num_labels: int | None) -> tuple[str, ...] | None:
    if labels is None and num_labels is None:
        return None
    if task != "text-classification":
        msg = f"labels are for text-classification; {task} has none: leave the option out"
        raise LabelsError(msg)
    if labels is not None and num_labels is not None:
        msg = "give either the labels or their number, not both"
        raise LabelsError(msg)
    names = tuple(str(i) for i in range(num_labels or 0)) if labels is None else tuple(labels)
    if len(names) < 2 or len(set(names)) != len(names) or not all(name.strip() for name in names):
        msg = f"labels must be two or more different names, got {list(names)}"
        raise LabelsError(msg)
    return names


def _labels(config: Any, wanted: tuple[str, ...] | None, *, has_classifier: bool) -> tuple[str, ...]:
    """Class names in the order of the classifier's outputs: the checkpoint's own, where its classifier has names."""
    own = tuple(str(config.id2label[i]) for i in range(config.num_labels))
    if not has_classifier:
        if wanted is None:
            msg = "the checkpoint has no classifier: say what its classes are, --labels NAME,NAME,... or --num-labels N"
            raise LabelsError(msg)
        return wanted
    if wanted is None:
        return own
    if set(wanted) == set(own):
        return own  # in the order in which the classifier's outputs stand for them
    if len(wanted) != len(own) or not all(_GENERIC_LABEL.fullmatch(name) for name in own):
        msg = (
            f"the checkpoint's classifier has {len(own)} classes ({', '.join(own[:8])}), not {len(wanted)} "
            f"({', '.join(wanted[:8])}): use its names, or a checkpoint without a classifier"
        )
        raise LabelsDifferError(msg)
    return wanted


def _config(model: str | Path, task: Task) -> Any:
    if not Path(model).is_dir() and (Path(model).exists() or not is_hub_id(str(model))):
        msg = (
            f"model directory {model} does not exist: give a directory with {_CONFIG}, or the id of a model on the hub"
        )
        raise ModelNotFoundError(msg)
    if Path(model).is_dir():
        path = Path(model) / _CONFIG
        if not path.is_file():
            msg = f"model directory {model} has no {_CONFIG}: give the directory that holds the model's files"
            raise ModelNotFoundError(msg)
        with _translated(model, _CONFIG):
            # Before transformers reads it: an architecture that is unknown to it too is refused in the same words.
            raw = json.loads(path.read_text(encoding="utf-8"))
            family_class(str(raw.get("model_type") if isinstance(raw, dict) else None), task)
    with _translated(model, _CONFIG):
        config = transformers.AutoConfig.from_pretrained(str(model))
    family_class(config.model_type, task)
    return config


def _source_model(model: str | Path, task: Task, seed: int) -> tuple[Any, set[str]]:
    """The model as transformers builds it, and the names of weights that the checkpoint lacks."""
    with _translated(model, "weights"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        source, info = _AUTO[task].from_pretrained(
            str(model), dtype="auto", attn_implementation="eager", output_loading_info=True
        )
    return source, set(info["missing_keys"])


def _tokenizer(model: str | Path) -> Any:
    with _translated(model, "tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(model), use_fast=True)
    if not tokenizer.is_fast:
        msg = f"the tokenizer of {model} has no fast version (tokenizer.json), which devices need"
        raise ModelUnsupportedError(msg)
    return tokenizer


def _check_missing(model: str | Path, family: Family, missing: set[str]) -> list[str]:
    if lost := sorted(missing - set(family.dense) - set(family.may_lack)):
        msg = f"the checkpoint of {model} lacks {len(lost)} weights, for example {lost[0]!r}: it is not complete"
        raise ModelNotFoundError(msg)
    lacking = sorted(missing & set(family.may_lack))
    return [f"the checkpoint has no {', '.join(lacking)}: random values, which are not trained"] if lacking else []


def _new_dense(family: Family, deviation: float, seed: int) -> dict[str, torch.Tensor]:
    """Weights normal(0, deviation), biases zero, as transformers initialises a classifier."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {param.name: param.shape for param in family.head_params}
    return {
        name: torch.zeros(shapes[name])
        if name.endswith(".bias")
        else torch.normal(0.0, deviation, shapes[name], generator=generator)
        for name in family.dense
    }


def _frozen(family: Family, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {}
    for param in family.frozen_params():
        value = state[param.name].detach()
        if tuple(value.shape) != param.shape:
            msg = f"weight {param.name!r} has shape {tuple(value.shape)}, but its configuration says {param.shape}"
            raise ModelUnsupportedError(msg)
        out[param.name] = _storable(value)
    return out


def _storable(value: torch.Tensor) -> torch.Tensor:
    if value.dtype in {torch.float16, torch.bfloat16}:
        half = value.to(torch.float16)
        if half.isfinite().all():
            return half.contiguous()
    return value.to(torch.float32).contiguous()


@contextlib.contextmanager
def _translated(model: str | Path, what: str) -> Iterator[None]:
    """Turn whatever transformers, the hub or the file system raise into one line."""
    try:
        yield
    except FedSpineError:
        raise
    except Exception as error:
        # tokenizers raises bare Exceptions, transformers about anything for files that are not what they should be.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if Path(model).is_dir():
            msg = f"{what} of the model in {model} cannot be loaded: {reason}"
        else:
            msg = f"there is no directory {model}, and its {what} could not be had from the Hugging Face hub: {reason}"
        raise ModelNotFoundError(msg) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from writing to stderr what the notes say."""
    before = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()
