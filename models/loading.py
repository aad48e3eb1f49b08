"""Pretrained models from a local directory or the Hugging Face hub, through transformers, without unneeded parts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from transformers.utils import logging as transformers_logging

from edge_runtime.errors import FedSpineError
from models.configuration import read_configuration
from models.errors import LabelsError, ModelNotFoundError, ModelUnsupportedError
from models.heads import Head, choose_head, wanted_labels
from models.parity import check_parity
from models.registry import family_for
from models.sources import CONFIG_FILE, check_source
from models.special_tokens import SpecialTokens, choose_tokens, read_generation, written_generation
from models.tokenizer import load_tokenizer
from models.weights import check_missing, check_tied, check_unused

if TYPE_CHECKING:
    from edge_runtime.formats.manifest import Task
    from models.family import Family

AUTO_CLASSES: Final[dict[Task, Any]] = {
    "text-classification": transformers.AutoModelForSequenceClassification,
    "causal-lm": transformers.AutoModelForCausalLM,
}
_OTHER_PROBLEMS: Final = ("regression", "multi_label_classification")


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
    tokens: SpecialTokens
    generation: Mapping[str, Any]
    """``generation_config.json``; empty for text-classification."""
    labels: tuple[str, ...]
    frozen: Mapping[str, torch.Tensor]
    """Weights by Hugging Face name, float16 or float32 as the source stores them (bfloat16 becomes float16)."""
    dense: Mapping[str, torch.Tensor]
    """First values of the tensors that are trained whole, float32."""
    notes: tuple[str, ...]
    """Remarks for the user about how it was loaded."""


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
        task: of the tuning.
        labels: class names, for text-classification; see :func:`models.heads.choose_head`.
        num_labels: their number, where they have no names.
        seed: of the weights that the checkpoint lacks: the classifier, normal with the configuration's deviation.
        new_head: make a new classifier, even where the checkpoint has one.

    Raises:
        ModelNotFoundError: there is no such model, or files are missing or unreadable.
        ModelUnsupportedError: no family handles it, or one of its settings.
        ParityError: the stages compute something else than transformers.
        ModelPackageError: a package that reads its tokenizer is not installed.
        LabelsError: class names are needed, or make no sense.
        LabelsDifferError: they are not those of the checkpoint's classifier.
    """
    wanted = wanted_labels(task, labels, num_labels)
    if new_head and task != "text-classification":
        msg = f"--new-head is for text-classification; {task} has no classifier: leave it out"
        raise LabelsError(msg)
    with _quiet():
        found = _checkpoint(model, task, seed)
    config, family, notes = found.config, found.family, list(found.notes)
    head = Head(labels=(), is_new=False)
    if task == "text-classification":
        head = _head(config, wanted, has_classifier=found.has_classifier, is_new=new_head)
        family = family_for(config, task)
        notes += [head.note] if head.note else []
    if head.is_new:
        dense = _new_dense(family, config.initializer_range, seed)
    else:
        dense = {name: value.to(torch.float32) for name, value in found.dense.items()}
    return PretrainedModel(
        name=Path(model).resolve().name if Path(model).is_dir() else str(model),
        task=task,
        family=family,
        config=config,
        tokenizer=found.tokenizer,
        tokens=found.tokens,
        generation=found.generation,
        labels=head.labels,
        frozen=found.frozen,
        dense=dense,
        notes=tuple(notes),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Checkpoint:
    """The contents of a checkpoint's files, before anything is chosen."""

    config: Any
    family: Family
    tokenizer: Any
    tokens: SpecialTokens
    generation: Mapping[str, Any]
    frozen: Mapping[str, torch.Tensor]
    dense: Mapping[str, torch.Tensor]
    """The classifier, as it is stored, or as transformers makes it up where there is none."""
    has_classifier: bool
    notes: tuple[str, ...]


def _checkpoint(model: str | Path, task: Task, seed: int) -> _Checkpoint:
    """Read a checkpoint, and hold it against transformers' own reading."""
    check_source(model)
    with _translated(model, CONFIG_FILE):
        configuration = read_configuration(model, task)
    config = configuration.config
    generation = read_generation(model, configuration.raw) if task == "causal-lm" else {}
    source, info = _source_model(model, task, seed, configuration.reference)
    missing = set(info["missing_keys"])
    with _translated(model, "tokenizer"):
        tokenizer = load_tokenizer(model)
    family = family_for(config, task)
    tokens = choose_tokens(tokenizer, config, generation, family.vocab_size)
    config.pad_token_id = tokens.pad
    tokenizer.model_max_length = family.max_length  # the default is 10**30, so pipelines would not cut texts
    notes = [*configuration.notes, *check_missing(model, family, missing), *tokens.notes]
    state = source.state_dict()
    with _translated(model, "weights"):
        check_unused(model, info["unexpected_keys"])
        check_tied(model, family, state)
    frozen, dense = _frozen(family, state), {name: state[name] for name in family.dense}
    config.architectures = [type(source).__name__]
    with _translated(model, "weights"):
        check_parity(family, frozen | dense, source, config)
    return _Checkpoint(
        config=config,
        family=family,
        tokenizer=tokenizer,
        tokens=tokens,
        generation=written_generation(generation, tokens, family.vocab_size) if task == "causal-lm" else {},
        frozen=frozen,
        dense=dense,
        has_classifier=bool(dense) and not missing.intersection(dense),
        notes=tuple(notes),
    )


def _head(config: Any, wanted: tuple[str, ...] | None, *, has_classifier: bool, is_new: bool) -> Head:
    """Choose the classifier, and make the configuration that of a model with it."""
    own = _own_labels(config, are_needed=not is_new) if has_classifier else None
    head = choose_head(own, wanted, is_new=is_new)
    config.id2label = dict(enumerate(head.labels))
    config.label2id = {name: index for index, name in enumerate(head.labels)}
    if head.is_new:
        config.problem_type = None  # the checkpoint's problem type does not apply to a new head
    elif config.problem_type in _OTHER_PROBLEMS or len(head.labels) == 1:
        msg = (
            f"the checkpoint's classifier was trained for {config.problem_type or 'regression'}, and one class of "
            "several is trained here: make a new one with --new-head and --labels NAME,NAME,..."
        )
        raise ModelUnsupportedError(msg)
    return head


def _own_labels(config: Any, *, are_needed: bool) -> list[str]:
    """The classes of the checkpoint's classifier, in the order of its outputs."""
    own = [str(config.id2label.get(index, "")) for index in range(config.num_labels)]
    if are_needed and (not all(own) or len(set(own)) != len(own)):
        msg = (
            f"config.json says id2label = {config.id2label}, expected a name of its own for each class from 0 on: "
            "correct it, or make a new classifier with --new-head and --labels NAME,NAME,..."
        )
        raise LabelsError(msg)
    return own


def _source_model(model: str | Path, task: Task, seed: int, reference: Any | None) -> tuple[Any, dict[str, Any]]:
    """The model as transformers builds it, and its report on missing and unused weights."""
    options = {} if reference is None else {"config": reference}
    with _translated(model, "weights"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        source, info = AUTO_CLASSES[task].from_pretrained(
            str(model), dtype="auto", attn_implementation="eager", output_loading_info=True, **options
        )
    return source, info


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
        # tokenizers raises bare Exceptions, and transformers raises many types for malformed files.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if Path(model).is_dir():
            msg = f"{what} of the model in {model} cannot be loaded: {reason}"
        else:
            source = "the Hugging Face hub"
            msg = f"there is no directory {model}, and its {what} could not be fetched from {source}: {reason}"
        raise ModelNotFoundError(msg) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from writing to stderr; the notes have the same content."""
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
