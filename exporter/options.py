"""Options of ``fedspine export``: what each is called, takes and says."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Final

import typer


class Format(enum.Enum):
    """What ``--format`` takes."""

    ARTIFACT = "artifact"
    ORT_TRAINING = "ort-training"


class TaskName(enum.Enum):
    """What ``--task`` takes."""

    TEXT_CLASSIFICATION = "text-classification"
    CAUSAL_LM = "causal-lm"


class BaseType(enum.Enum):
    """What ``--base`` takes."""

    STORED = "stored"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    NF4 = "nf4"


ORT_PYTHON: Final = Path(".venv-ort-training/bin/python")
"""Interpreter of the environment that scripts/setup-ort-training makes."""

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Local directory, or id on the Hugging Face hub; with --format ort-training, an artifact's directory.",
    ),
]
Out = Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Directory to write.")]
Form = Annotated[
    Format,
    typer.Option(
        "--format", help="artifact, or models of some arms of an artifact for onnxruntime-training, which x86-64 has."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there of this format.")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**63 - 1, help="Of weights that the checkpoint lacks (a new classifier, an adapter).")
]

# Of an artifact.
Task = Annotated[TaskName | None, typer.Option(help="text-classification or causal-lm.")]
Labels = Annotated[
    str | None,
    typer.Option(metavar="A,B,...", help="Names of the classes, where the checkpoint's classifier has others or none."),
]
Label = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="One class; repeat it. For names that hold commas.")
]
NumLabels = Annotated[int | None, typer.Option(min=2, help="Their number, where they have no names.")]
NewHead = Annotated[
    bool, typer.Option("--new-head", help="Make a new classifier for these classes, even where the checkpoint has one.")
]
Targets = Annotated[
    str | None,
    typer.Option(metavar="A,B,...", help="Linear layers that get LoRA factors, such as query,value; default: all."),
]
TopBlocks = Annotated[
    int | None,
    typer.Option(min=1, metavar="K", help="LoRA factors on the top K blocks alone, where the backward pass stops."),
]
Base = Annotated[
    BaseType,
    typer.Option(
        help="Type of frozen weights; stored: the checkpoint's; int8 and nf4 (4 bits) are smaller and lose some."
    ),
]
OF_ARTIFACT: Final = ("task", "labels", "label", "num_labels", "new_head", "targets", "top_blocks", "base")
"""Parameters that only ``--format artifact`` has."""

# Of models for onnxruntime-training.
Arms = Annotated[
    list[str] | None, typer.Option("--arm", metavar="P:R", help="ort-training: an arm, such as 0.5:8; repeat it.")
]
WeightDecay = Annotated[float, typer.Option(min=0, help="ort-training: decoupled weight decay, baked in.")]
MaxGradNorm = Annotated[float, typer.Option(min=0, help="ort-training: clipping by global norm, baked in; 0 = off.")]
ProtectFirst = Annotated[
    int, typer.Option(min=-1, help="ort-training: first layers that stay whole, as the run has them; -1 = its default.")
]
ProtectLast = Annotated[
    int, typer.Option(min=-1, help="ort-training: last layers that stay whole, as the run has them; -1 = its default.")
]
OrtPython = Annotated[
    Path,
    typer.Option(
        envvar="FEDSPINE_ORT_TRAINING_PYTHON",
        metavar="FILE",
        help="ort-training: interpreter of the environment that scripts/setup-ort-training made.",
    ),
]
OF_ORT_TRAINING: Final = ("arm", "weight_decay", "max_grad_norm", "protect_first", "protect_last", "ort_python")
"""Parameters that only ``--format ort-training`` has."""
