"""Options of ``fedspine export``: names, values and help."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Final

import typer


class Format(enum.Enum):
    """Values of ``--format``."""

    ARTIFACT = "artifact"
    ORT_TRAINING = "ort-training"


class TaskName(enum.Enum):
    """Values of ``--task``."""

    TEXT_CLASSIFICATION = "text-classification"
    CAUSAL_LM = "causal-lm"


class BaseType(enum.Enum):
    """Values of ``--base``."""

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
        help="Directory or hub id of a pretrained model; with --format ort-training, directory of an artifact.",
    ),
]
Out = Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Directory to write.")]
Form = Annotated[
    Format,
    typer.Option(
        "--format", help="Write an artifact, or models for onnxruntime-training (x86-64 only) from an artifact."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there, if it is of this format.")]
Seed = Annotated[
    int,
    typer.Option(min=0, max=2**63 - 1, help="Seed of weights that the checkpoint lacks: a new classifier, an adapter."),
]

# Of an artifact.
Task = Annotated[TaskName | None, typer.Option(help="What the model is trained for; required for an artifact.")]
Labels = Annotated[
    str | None,
    typer.Option(metavar="A,B,...", help="Names of the classes, if the checkpoint's classifier has others or none."),
]
Label = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Name of one class, if names hold commas. May be repeated.")
]
NumLabels = Annotated[int | None, typer.Option(min=2, help="Number of classes, if they have no names.")]
NewHead = Annotated[
    bool, typer.Option("--new-head", help="Make a new classifier for these classes, even if the checkpoint has one.")
]
Targets = Annotated[
    str | None,
    typer.Option(metavar="A,B,...", help="Linear layers that get LoRA factors, such as query,value; default: all."),
]
TopBlocks = Annotated[
    int | None,
    typer.Option(min=1, metavar="K", help="Put LoRA factors on the top K blocks only; the backward pass stops there."),
]
Base = Annotated[
    BaseType,
    typer.Option(
        help="Type of the frozen weights. stored = as in the checkpoint. int8 and nf4 (4 bits): smaller, less exact."
    ),
]
OF_ARTIFACT: Final = ("task", "labels", "label", "num_labels", "new_head", "targets", "top_blocks", "base")
"""Parameters that only ``--format artifact`` has."""

# Of models for onnxruntime-training.
Arms = Annotated[
    list[str] | None,
    typer.Option(
        "--arm", metavar="P:R", help="With ort-training: arm to make a model of, such as 0.5:8. May be repeated."
    ),
]
WeightDecay = Annotated[
    float, typer.Option(min=0, help="With ort-training: decoupled weight decay, fixed in the models.")
]
MaxGradNorm = Annotated[
    float, typer.Option(min=0, help="With ort-training: global norm for clipping, fixed in the models; 0 = none.")
]
ProtectFirst = Annotated[
    int, typer.Option(min=-1, help="With ort-training: the run's --protect-first; -1 = its default.")
]
ProtectLast = Annotated[
    int, typer.Option(min=-1, help="With ort-training: the run's --protect-last; -1 = its default.")
]
OrtPython = Annotated[
    Path,
    typer.Option(
        envvar="FEDSPINE_ORT_TRAINING_PYTHON",
        metavar="FILE",
        help="With ort-training: Python of the environment that scripts/setup-ort-training made.",
    ),
]
OF_ORT_TRAINING: Final = ("arm", "weight_decay", "max_grad_norm", "protect_first", "protect_last", "ort_python")
"""Parameters that only ``--format ort-training`` has."""
