"""Commands of the exporter: parse, say what happens on stderr, call. Errors go to ``broker_server.cli``."""

from __future__ import annotations

import contextlib
import enum
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from exporter.errors import MissingPackageError

if TYPE_CHECKING:
    from edge_runtime.wire.manifest import Task


class BaseType(enum.Enum):
    """What ``--base`` takes."""

    STORED = "stored"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    NF4 = "nf4"


class Quantization(enum.Enum):
    """What ``--quantize`` takes."""

    INT8 = "int8"


app = typer.Typer(
    name="fedspine", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)


@app.callback()
def root() -> None:
    """Pretrained model to artifact; artifact and adapters to compact model."""


@app.command()
def export(  # noqa: PLR0913, PLR0917 - each is an option
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Local directory, or id on the Hugging Face hub.")],
    task: Annotated[str, typer.Option(help="text-classification or causal-lm.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Directory of the artifact.")],
    labels: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Names of the classes, where the checkpoint has no classifier."),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="One class; repeat it. For names that hold commas.")
    ] = None,
    num_labels: Annotated[int | None, typer.Option(min=2, help="Their number, where they have no names.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights that the checkpoint lacks (a new classifier).")] = 0,
    targets: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Linear layers that get LoRA factors, such as query,value; default: all."),
    ] = None,
    top_blocks: Annotated[
        int | None,
        typer.Option(min=1, metavar="K", help="LoRA factors on the top K blocks alone, where the backward pass stops."),
    ] = None,
    base: Annotated[
        BaseType,
        typer.Option(
            help="Type of frozen weights; stored: the checkpoint's; int8 and nf4 (4 bits) are smaller and lose some."
        ),
    ] = BaseType.STORED,
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact that is there.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Turn a pretrained model into an artifact that devices train."""
    with needed_packages("export"):
        from exporter.export import export_model  # noqa: PLC0415 - torch takes seconds, --help needs none of it
    named = label or (None if labels is None else [name.strip() for name in labels.split(",")])
    manifest, digest = export_model(
        model,
        cast("Task", task),
        out,
        labels=named,
        num_labels=num_labels,
        seed=seed,
        targets=() if targets is None else [name.strip() for name in targets.split(",")],
        top_blocks=top_blocks,
        base_dtype=base.value,
        force=force,
        progress=say,
    )
    size = sum(ref.size_bytes for ref in manifest.files.values())
    print(f"{out}: {manifest.model_name}, {manifest.num_layers} layers, {size / 1e6:.1f} MB, digest {digest}")


@app.command()
def compact(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory: the --out of fedspine run or coordinate.")],
    sparsity: Annotated[float, typer.Option(help="Share of heads and channels to remove, 0 or more and less than 1.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Directory of the compact model.")],
    quantize: Annotated[
        Quantization | None, typer.Option(help="int8: 8-bit weights, a quarter of the size, nearly the same quality.")
    ] = None,
    round_number: Annotated[
        int | None,
        typer.Option("--round", metavar="N", min=0, help="Round whose adapter is merged; default: the last."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a compact model that is there.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Merge a run's adapter into its model, remove what the plan leaves out, write an inference model."""
    with needed_packages("compact"):
        from exporter.compact import compact_run  # noqa: PLC0415 - torch takes seconds, --help needs none of it
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
    """Turn a failing import into one line.

    Raises:
        MissingPackageError: names the package and how to get it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        msg = f"{command} needs the package {error.name!r}: install the server, pip install 'fedspine[server]'"
        raise MissingPackageError(msg) from error
