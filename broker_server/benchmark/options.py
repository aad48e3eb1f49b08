"""Options of ``fedspine bench engine``: names, values and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Option(metavar="DIR", help="Directory or hub id of a pretrained model.")]
Task = Annotated[str, typer.Option(help="text-classification or causal-lm.")]
BatchSize = Annotated[int, typer.Option(help="Number of examples in a step.")]
Length = Annotated[int, typer.Option(help="Number of tokens of an example.")]
OneArm = Annotated[str, typer.Option(metavar="P:R", help="Arm: pruning ratio and LoRA rank.")]
Targets = Annotated[str, typer.Option(metavar="A,B,...", help="Linear layers that get LoRA factors; default: all.")]
BaseType = Annotated[str, typer.Option(help="Type of the frozen weights: stored, float32, float16, int8 or nf4.")]
Against = Annotated[
    str, typer.Option(metavar="A,B,...", help="Peers to measure too: torch, ort-training; empty = none.")
]
Runs = Annotated[int, typer.Option(help="Number of processes of each contender; give 5 or more for a figure to quote.")]
Steps = Annotated[int, typer.Option(help="Number of timed steps of each process.")]
Threads = Annotated[int, typer.Option(help="Number of threads of each contender; 0 = one for each core.")]
NumLabels = Annotated[
    int | None, typer.Option(help="Number of classes, where the checkpoint has no classifier; default: 2.")
]
Seed = Annotated[int, typer.Option(help="Seed of tokens, classes, first adapter and plan.")]
OrtPython = Annotated[
    str,
    typer.Option(
        envvar="FEDSPINE_ORT_TRAINING_PYTHON",
        metavar="FILE",
        help="With ort-training: Python of the environment that scripts/setup-ort-training made.",
    ),
]
JsonFile = Annotated[Path | None, typer.Option(metavar="FILE", help="File to write all figures to.")]
