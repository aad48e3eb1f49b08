"""A program for the environment of onnxruntime-training: all parts that are used load, and there is no torch."""

from __future__ import annotations

import importlib.util
import sys
from typing import get_args, get_type_hints

from edge_runtime.ort_training import api

if __name__ == "__main__":
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is not None:
            sys.exit(f"{name} is installed in the environment of onnxruntime-training")
    for part in get_args(get_type_hints(api.load)["part"]):
        sys.stdout.write(f"{api.load(part).__name__}\n")
