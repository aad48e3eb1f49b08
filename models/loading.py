"""Pretrained models from a local directory or the Hugging Face hub, through transformers, reduced to what is needed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from transformers.utils import logging as transformers_logging

from edge_runtime.wire.errors import FedSpineError
from models.errors import LabelsError, ModelNotFoundError, ModelUnsupportedError
from models.heads import Head, choose_head, wanted_labels
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
    model: str | Path,
    task: Task,
    *,
    labels: Sequence[str] | None,
    num_labels: int | None,
    seed: int,
    new_head: bool = False,
) -> PretrainedModel:
    """Load a model for a task.

    Args:
        model: local directory, or id on the hub.
        task: what it is tuned for.
        labels: class names, for text-classification; see :func:`models.heads.choose_head`.
        num_labels: their number, where they have no names.
        seed: of the weights that the checkpoint lacks: the classifier, normal with the configuration's deviation.
        new_head: make a new classifier, even where the checkpoint has one.

    Raises:
        ModelNotFoundError: there is no such model, or files are missing or unreadable.
        ModelUnsupportedError: no family handles it.
        LabelsError: class names are needed, or make no sense.
        LabelsDifferError: they are not those of the checkpoint's classifier.
    """
    wanted = wanted_labels(task, labels, num_labels)
    if new_head and task != "text-classification":
        msg = f"--new-head is for text-classification; {task} has no classifier: leave it out"
        raise LabelsError(msg)
    with _quiet():
        config = _config(model, task)
        source, missing = _source_model(model, task, seed)
        tokenizer = _tokenizer(model)
    family = family_for(config, task)
    notes = _check_missing(model, family, missing)
    head = Head(labels=(), is_new=False)
    if task == "text-classification":
        has_classifier = bool(family.dense) and not missing.intersection(family.dense)
        head = _head(config, wanted, has_classifier=has_classifier, is_new=new_head)
        family = family_for(config, task)
        notes += [head.note] if head.note else []
    state = source.state_dict()
    if head.is_new:
        dense = _new_dense(family, config.initializer_range, seed)
    else:
        dense = {name: state[name].to(torch.float32) for name in family.dense}
    config.architectures = [type(source).__name__]
    return PretrainedModel(
        name=Path(model).resolve().name if Path(model).is_dir() else str(model),
        task=task,
        family=family,
        config=config,
        tokenizer=tokenizer,
        labels=head.labels,
        frozen=_frozen(family, state),
        dense=dense,
        notes=tuple(notes),
    )


def _head(config: Any, wanted: tuple[str, ...] | None, *, has_classifier: bool, is_new: bool) -> Head:
    """Choose the classifier, and make the configuration that of a model with it."""
    own = [str(config.id2label[index]) for index in range(config.num_labels)] if has_classifier else None
    head = choose_head(own, wanted, is_new=is_new)
    config.id2label = dict(enumerate(head.labels))
    config.label2id = {name: index for index, name in enumerate(head.labels)}
    if head.is_new:
        config.problem_type = None  # what the checkpoint's was trained for says nothing of a new one
    return head


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
