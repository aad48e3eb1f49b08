"""``adapters/peft``: the last adapter as the peft library opens it by its folder alone, with all that belongs to it.

Beside PEFT's two files lie the tokenizer, the configuration with the labels, and a page that says how to load it.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from broker_server.errors import ConfigError
from broker_server.methods.aggregation import Aggregated
from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats import names
from edge_runtime.formats.manifest import Manifest, TensorSpec
from edge_runtime.formats.peft_format import unknown_base, write_peft
from edge_runtime.formats.seed_pool import SeedPool
from edge_runtime.system.files import make_directories, write_atomically, write_stream_atomically
from edge_runtime.zero_order.pool import Direction, moved, moved_dense, tensor_indices
from models.hub import is_hub_id

PAGE: Final = "README.md"
WHOLE_FOLDER: Final = "whole"
"""Beside that folder: the last model, where all weights are tuned."""
_HERE: Final = "adapters/peft"
_LABELS: Final = """,
    num_labels=labels.num_labels,
    id2label=labels.id2label,
    label2id=labels.label2id,
    ignore_mismatched_sizes=True,  # the base model may have another classifier: the adapter brings its own
"""


class PeftFolder:
    """The folder of one run's adapter.

    Args:
        directory: where it is, or will be.
        manifest: the artifact's manifest.
        artifact: where tokenizer, configuration and frozen weights come from; None = nothing goes beside the adapter.
        base_model: directory or hub id that the model came from; None = nobody said.
    """

    def __init__(
        self, directory: Path, manifest: Manifest, artifact: Artifact | None = None, base_model: str | None = None
    ) -> None:
        self._directory = directory
        self._manifest = manifest
        self._artifact = artifact
        self._base = unknown_base(manifest) if base_model is None else base_model
        self._frozen = {} if artifact is None else {spec.name: artifact.weight(spec) for spec in _head(manifest)}

    def write(self, state: Aggregated, rank: int, lora_scaling: float) -> None:
        """Write the sum of adapter and merged factors, and the other files that are missing.

        Raises:
            DiskFullError: there is no space.
        """
        write_peft(
            self._directory,
            self._manifest,
            state.adapter,
            rank,
            lora_scaling,
            merged=state.merged,
            base_model=self._base,
            frozen=self._frozen,
        )
        if self._artifact is not None:
            self._write_beside(self._directory, self._artifact, page(self._manifest, self._base))

    def write_whole(self, state: Aggregated, pool: SeedPool) -> None:
        """Write a checkpoint with all weights in ``whole`` beside this folder, which goes: there is no adapter.

        Raises:
            DiskFullError: there is no space.
        """
        if self._artifact is None:
            return
        directory = self._directory.with_name(WHOLE_FOLDER)
        make_directories(directory)
        _write_whole(directory / names.CHECKPOINT_FILE, self._artifact, state, pool)
        self._write_beside(directory, self._artifact, whole_page(self._manifest))
        shutil.rmtree(self._directory, ignore_errors=True)

    def _write_beside(self, directory: Path, artifact: Artifact, text: str) -> None:
        for name, ref in self._manifest.files.items():
            is_wanted = name == names.TOKENIZER_FILE or not ref.on_device  # all files but graphs and weights
            if is_wanted and not (directory / name).exists():
                write_atomically(directory / name, artifact.path(name).read_bytes())
        if not (directory / PAGE).exists():
            write_atomically(directory / PAGE, text.encode())


def _write_whole(path: Path, artifact: Artifact, state: Aggregated, pool: SeedPool) -> None:
    """``model.safetensors`` as transformers reads it, tensor by tensor: none but the one that is written is in memory.

    Raises:
        DiskFullError: there is no space.
    """
    manifest, direction = artifact.manifest, Direction.of(pool)
    dense = moved_dense(manifest, state.adapter, pool)
    indices = tensor_indices(manifest)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    shapes = {spec.name: spec.shape for spec in manifest.tensors} | {spec.name: spec.shape for spec in manifest.dense}
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)

    def parts() -> Iterator[bytes]:
        yield len(encoded).to_bytes(8, "little") + encoded
        for spec in manifest.tensors:
            value = moved(artifact.weight(spec), indices[spec.name], direction)
            yield value.astype("<f4", copy=False).tobytes()
        for value in dense.values():
            yield value.astype("<f4", copy=False).tobytes()

    write_stream_atomically(path, parts())
    artifact.release()


def base_model(run_dir: Path, given: str | None) -> str | None:
    """The base model as PEFT finds it from any folder: an absolute path, or a hub id; None if none was given.

    Raises:
        ConfigError: it is neither a directory nor a hub id.
    """
    if given is None:
        return None
    path = run_dir / given
    if path.is_dir():
        return str(path.resolve())
    if Path(given).is_absolute() or is_hub_id(given):
        return given  # the directory may have been removed since the export; the run does not need it
    msg = f"base_model is {given!r}: expected a directory (relative to {run_dir}) or a hub id, or leave it out"
    raise ConfigError(msg)


def page(manifest: Manifest, base: str) -> str:
    """Return the page that says how to load the adapter, as Markdown."""
    kind = "CausalLM" if manifest.task == "causal-lm" else "SequenceClassification"
    head = f"base_model: {base}\n" if is_hub_id(base) else ""
    is_classifier = manifest.task == "text-classification"
    labels = _LABELS if is_classifier else ""
    read_labels = f'labels = AutoConfig.from_pretrained("{_HERE}")\n' if is_classifier else ""
    break_ = "\n    " if is_classifier else ""
    imports = "AutoConfig, AutoTokenizer" if is_classifier else "AutoTokenizer"
    return f"""---
library_name: peft
{head}---

# A LoRA adapter of {manifest.model_name}, trained by FedSpine

```python
from peft import AutoPeftModelFor{kind}
from transformers import {imports}

{read_labels}model = AutoPeftModelFor{kind}.from_pretrained({break_}"{_HERE}"{labels})
tokenizer = AutoTokenizer.from_pretrained("{_HERE}")
```

`adapter_config.json` names the base model, `{base}`: change it there where it lies elsewhere.
"""


def whole_page(manifest: Manifest) -> str:
    """Page that says how to load the checkpoint, as Markdown."""
    kind = "CausalLM" if manifest.task == "causal-lm" else "SequenceClassification"
    here = f"adapters/{WHOLE_FOLDER}"
    return f"""---
library_name: transformers
---

# {manifest.model_name}, all weights tuned by FedSpine

```python
from transformers import AutoModelFor{kind}, AutoTokenizer

model = AutoModelFor{kind}.from_pretrained("{here}")
tokenizer = AutoTokenizer.from_pretrained("{here}")
```

All weights were tuned, so this is a whole checkpoint, not an adapter.
"""


def _head(manifest: Manifest) -> Sequence[TensorSpec]:
    """Frozen tensors behind the blocks of a classifier: a checkpoint may lack them, and they were made from a seed."""
    if manifest.task != "text-classification":
        return ()
    embeddings = manifest.word_embedding.removesuffix(".weight").rpartition(".")[0] + "."
    return [spec for spec in manifest.tensors if spec.layer is None and not spec.name.startswith(embeddings)]
