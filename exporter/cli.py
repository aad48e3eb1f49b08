"""Commands of the exporter: parse arguments, print progress to stderr, call. ``broker_server.cli`` prints errors."""

from __future__ import annotations

import contextlib
import enum
import gc
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from edge_runtime.formats.ranking import PlanPolicy
from edge_runtime.ort_training.description import OptimizerSettings
from edge_runtime.system.interpreter import missing
from edge_runtime.wire.arms import LORA_AXES, ArmError
from exporter import options
from exporter.errors import MissingPackageError


class Quantization(enum.Enum):
    """Values of ``--quantize``."""

    INT8 = "int8"


app = typer.Typer(
    name="fedspine", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)


@app.callback()
def root() -> None:
    """Pretrained model to artifact; artifact and adapters to compact model."""


@app.command()
def export(  # noqa: PLR0913, PLR0917 - each is an option
    context: typer.Context,
    model: options.Model,
    out: options.Out,
    task: options.Task = None,
    labels: options.Labels = None,
    label: options.Label = None,
    num_labels: options.NumLabels = None,
    new_head: options.NewHead = False,  # noqa: FBT002 - a flag
    seed: options.Seed = 0,
    targets: options.Targets = None,
    top_blocks: options.TopBlocks = None,
    base: options.Base = options.BaseType.STORED,
    force: options.Force = False,  # noqa: FBT002 - a flag
    form: options.Form = options.Format.ARTIFACT,
    arm: options.Arms = None,
    weight_decay: options.WeightDecay = 0.0,
    max_grad_norm: options.MaxGradNorm = 1.0,
    protect_first: options.ProtectFirst = 0,
    protect_last: options.ProtectLast = 0,
    ort_python: options.OrtPython = options.ORT_PYTHON,
) -> None:
    """Turn a pretrained model into an artifact that devices can train, or an artifact into ort-training models."""
    if form is options.Format.ORT_TRAINING:
        _refuse(context, options.OF_ARTIFACT, form)
        baked = OptimizerSettings(weight_decay=weight_decay, max_grad_norm=max_grad_norm or None)
        policy = PlanPolicy(protect_first=protect_first, protect_last=protect_last)
        _export_ort_training(Path(model), out, arm or [], baked, policy, seed=seed, python=ort_python, force=force)
        return
    _refuse(context, options.OF_ORT_TRAINING, form)
    if task is None:
        msg = "--task is needed: text-classification or causal-lm"
        raise typer.BadParameter(msg)
    with needed_packages("export"):
        from exporter.artifact.export import export_model  # noqa: PLC0415 - torch takes seconds, --help needs none of it
    named = label or (None if labels is None else [name.strip() for name in labels.split(",")])
    manifest, digest = export_model(
        model,
        task.value,
        out,
        labels=named,
        num_labels=num_labels,
        new_head=new_head,
        seed=seed,
        targets=() if targets is None else [name.strip() for name in targets.split(",")],
        top_blocks=top_blocks,
        base_dtype=base.value,
        force=force,
        progress=say,
    )
    size = sum(ref.size_bytes for ref in manifest.files.values())
    print(f"{out}: {manifest.model_name}, {manifest.num_layers} layers, {size / 1e6:.1f} MB, digest {digest}")


def _export_ort_training(
    artifact: Path,
    out: Path,
    arms: list[str],
    baked: OptimizerSettings,
    policy: PlanPolicy,
    *,
    seed: int,
    python: Path,
    force: bool,
) -> None:
    try:
        parsed = tuple(one for text in arms for one in LORA_AXES.parse(text))
    except ArmError as error:
        msg = f"--arm: {error}"
        raise ArmError(msg) from error
    if not all(math.isfinite(value) for value in (baked.weight_decay, baked.max_grad_norm or 0.0)):
        msg = f"weight decay and clipping norm must be finite, got {baked.weight_decay} and {baked.max_grad_norm}"
        raise typer.BadParameter(msg)
    if not parsed:
        msg = "--format ort-training needs the arms to make models of: --arm 0.0:8 --arm 0.5:8"
        raise typer.BadParameter(msg)
    with needed_packages("export"):
        from exporter.ort_training.export import export_ort_training  # noqa: PLC0415 - as above
    models = export_ort_training(
        artifact, out, parsed, optimizer=baked, policy=policy, seed=seed, python=python, force=force, progress=say
    )
    size = sum(ref.size_bytes for one in models.arms for ref in one.files.values())
    print(f"{out}: ort-training models of {models.model_name}, arms {models.names}, {size / 1e6:.1f} MB")


def _refuse(context: typer.Context, parameters: Sequence[str], form: options.Format) -> None:
    """Refuse parameters that were given and have no meaning in a format.

    Raises:
        BadParameter: one was.
    """
    for name in parameters:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            msg = f"--{name.replace('_', '-')} is not for --format {form.value}: leave it out"
            raise typer.BadParameter(msg)


@app.command()
def compact(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run directory of `fedspine run` or `fedspine coordinate`.")
    ],
    sparsity: Annotated[float, typer.Option(help="Share of heads and channels to remove, from 0 to below 1.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Directory to write.")],
    quantize: Annotated[
        Quantization | None,
        typer.Option(help="int8 stores weights in 8 bits: a quarter of the size, nearly the same quality."),
    ] = None,
    round_number: Annotated[
        int | None,
        typer.Option("--round", metavar="N", min=0, help="Round whose adapter is merged; default: the last."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a compact model that is there.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Make a compact inference model: merge a run's adapter into its model, and remove what is pruned."""
    with needed_packages("compact"):
        from exporter.compact.export import compact_run  # noqa: PLC0415 - torch takes seconds, --help needs none of it
    info = compact_run(
        run,
        sparsity,
        out,
        quantize=None if quantize is None else quantize.value,
        round_number=round_number,
        force=force,
        progress=say,
    )
    size = f"{info.num_parameters / 1e6:.1f} M parameters, {info.num_bytes / 1e6:.1f} MB"
    print(f"{out}: {info.model_name} after round {info.round_number}, sparsity {info.sparsity:.3f}, {size}")


def say(line: str) -> None:
    """Print a line about a step that takes a while."""
    print(f"fedspine: {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def needed_packages(command: str) -> Iterator[None]:
    """Turn a failing import into one line, and exclude the imported objects from garbage collection.

    PyTorch brings half a million objects that stay to the end: collecting over them took a sixth of the processor time
    of a small export.

    Raises:
        MissingPackageError: names the package and how to get it.
    """
    was_enabled, num_modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingPackageError(missing(error, command)) from error
    finally:
        if len(sys.modules) > num_modules:
            gc.freeze()
        if was_enabled:
            gc.enable()
