"""Options of ``fedspine bench engine``: what each is called, takes and says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Option(metavar="DIR", help="Directory or hub id of a pretrained model.")]
Task = Annotated[str, typer.Option(help="text-classification or causal-lm.")]
BatchSize = Annotated[int, typer.Option(help="Examples in a step.")]
Length = Annotated[int, typer.Option(help="Tokens of an example.")]
OneArm = Annotated[str, typer.Option(metavar="P:R", help="Pruning ratio and LoRA rank.")]
Targets = Annotated[str, typer.Option(metavar="A,B,...", help="Linear layers with LoRA; default: all.")]
BaseType = Annotated[str, typer.Option(help="Frozen weights: stored, float32, float16, int8 or nf4.")]
Against = Annotated[str, typer.Option(metavar="A,B,...", help="Peers: torch, ort-training; empty = none.")]
Runs = Annotated[int, typer.Option(help="Processes of each contender; 5 or more for a figure.")]
Steps = Annotated[int, typer.Option(help="Timed steps of each process.")]
Threads = Annotated[int, typer.Option(help="Threads of each contender; 0 = one a core.")]
NumLabels = Annotated[int | None, typer.Option(help="Classes, where the checkpoint has no classifier; default: 2.")]
Seed = Annotated[int, typer.Option(help="Of tokens, classes, first adapter and plan.")]
OrtPython = Annotated[
    str,
    typer.Option(
        envvar="FEDSPINE_ORT_TRAINING_PYTHON",
        metavar="FILE",
        help="ort-training: interpreter of the environment that scripts/setup-ort-training made.",
    ),
]
JsonFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Where all figures are written.")]
