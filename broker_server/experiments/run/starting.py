"""An adapter that was trained before, as the one that a run starts from: PEFT's folder, or a file of another run.

Ranks, layers and scaling are those of the run: a smaller rank is filled up with components that change nothing yet, and
another scaling goes into B, so that the model is the same to the last digits of a float.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt
import safetensors

from broker_server.errors import ConfigError
from broker_server.methods.aggregation import Aggregated
from broker_server.serving.report.quality import plural
from broker_server.serving.storage.adapters import PEFT_FOLDER, GlobalAdapters, peft_directory, whole_directory
from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats import names
from edge_runtime.formats.adapter import initial
from edge_runtime.formats.manifest import Manifest, TargetSpec, decode_manifest
from edge_runtime.formats.peft_format import CONFIG_FILE, KEY_PREFIX, WEIGHTS_FILE
from edge_runtime.formats.run_directory import ARTIFACTS_FOLDER

Array = npt.NDArray[np.float32]

_A, _B = names.lora_a(""), names.lora_b("")
_PICKLE: Final = "adapter_model.bin"
_SUPPORTED: Final[Mapping[str, tuple[object, ...]]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "fan_in_fan_out": (False,),
    "trainable_token_indices": (),
}
"""Settings of PEFT that have a meaning here, and those of their values that do; a missing one is fine."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """An adapter as it lies on disk."""

    path: Path
    tensors: Mapping[str, Array]
    """By Hugging Face name, without PEFT's prefix."""
    scalings: Mapping[str, float]
    """Factor of each module's B A."""
    labels: tuple[str, ...] = ()
    """Classes in the order of the classifier's outputs; empty = not known."""

    @property
    def rank(self) -> int:
        """The largest of its modules."""
        return max((value.shape[0] for name, value in self.tensors.items() if name.endswith(_A)), default=0)


def read_adapter(path: Path) -> Given:
    """Read an adapter, whatever model it is for.

    Args:
        path: folder that PEFT's ``save_pretrained`` wrote, or a run's directory, or its ``round-NNNN.safetensors``.

    Raises:
        ConfigError: it is none of these, is damaged, or holds tensors that a run cannot start from.
    """
    if path.is_dir() and not (path / CONFIG_FILE).is_file():
        if (whole := whole_directory(path)) is not None:
            _refuse(path, f"is a run that tuned all weights, and has no adapter: give --model {whole}")
        path = peft_directory(path)
    if path.is_dir() and (path / CONFIG_FILE).is_file():
        return _read_peft(path)
    if not path.is_file():
        _refuse(
            path, f"is not an adapter: give a folder with {CONFIG_FILE}, or a run's adapters/round-NNNN.safetensors"
        )
    return _read_round(path)


def check_rank(given: Given, rank: int) -> None:
    """Refuse an adapter of a larger rank than the run has.

    Raises:
        ConfigError: it has.
    """
    if given.rank > rank:
        _refuse(
            given.path, f"has rank {given.rank}, but the largest of --arms is {rank}: give an arm of rank {given.rank}"
        )


def start_from(given: Given, artifact: Artifact, run_dir: Path, rank: int, lora_scaling: float, seed: int) -> list[str]:
    """Make an adapter the one of round 0.

    Args:
        given: the adapter.
        artifact: that the run trains.
        run_dir: of the run, which has no adapter yet.
        rank: of the run's global adapter.
        lora_scaling: of the run.
        seed: of the tensors that the adapter lacks.

    Returns:
        Notes for the user.

    Raises:
        ConfigError: it does not fit the model or the run.
        DiskFullError: there is no space.
    """
    check_rank(given, rank)
    manifest, rng = artifact.manifest, np.random.default_rng((seed, 0, 0))
    adapter = initial(manifest, artifact.initial(), rank, rng)
    targets = {target.module: target for target in manifest.targets}
    modules = {name.removesuffix(_A) for name in given.tensors if name.endswith(_A)}
    if unknown := sorted(modules - set(targets)):
        parts = ",".join(sorted({module.rpartition(".")[2] for module in modules}))
        known = ",".join(sorted({module.rpartition(".")[2] for module in targets}))
        _refuse(
            given.path,
            f"tunes {unknown[0]!r}, which this run does not (it tunes {known}): give --targets {parts}, or the model "
            "that the adapter is of",
        )
    for module in sorted(modules):
        _place(given, targets[module], lora_scaling, adapter)
    _place_others(given, artifact, modules, adapter)
    adapters = GlobalAdapters(run_dir, manifest, artifact.digest, rank=rank, lora_scaling=lora_scaling)
    adapters.write(0, Aggregated(adapter=adapter))
    return _notes(given, manifest, modules)


def _notes(given: Given, manifest: Manifest, modules: set[str]) -> list[str]:
    said = [f"the run starts from the adapter {given.path}, of rank {given.rank} on {plural(len(modules), 'layer')}"]
    if lacking := len(manifest.targets) - len(modules):
        said.append(f"the run tunes {plural(lacking, 'layer')} more than that adapter has: new factors there")
    if anew := [spec.name for spec in manifest.dense if spec.name not in given.tensors]:
        said.append(f"{anew[0]} is not in that adapter: it starts as the model has it")
    return said


def _place(given: Given, target: TargetSpec, lora_scaling: float, adapter: dict[str, Array]) -> None:
    """Put one module's factors into the run's adapter, as its leading components."""
    a_name, b_name = names.lora_a(target.module), names.lora_b(target.module)
    if b_name not in given.tensors:
        _refuse(given.path, f"has {a_name} without {b_name}: it is damaged")
    a, b = given.tensors[a_name], given.tensors[b_name]
    rank = a.shape[0]
    if a.shape != (rank, target.in_features) or b.shape != (target.out_features, rank):
        wanted = f"[{rank}, {target.in_features}] and [{target.out_features}, {rank}]"
        got = f"{list(a.shape)} and {list(b.shape)}"
        _refuse(given.path, f"is of another model: {target.module} has factors {got}, but this model needs {wanted}")
    adapter[a_name][:rank] = a
    adapter[b_name][:, :rank] = b * np.float32(given.scalings[target.module] / lora_scaling)


def _place_others(given: Given, artifact: Artifact, modules: set[str], adapter: dict[str, Array]) -> None:
    """Tensors that are trained as a whole; those that are frozen here must equal the model's."""
    frozen = {spec.name: spec for spec in artifact.manifest.tensors}
    factors = {name(module) for module in modules for name in (names.lora_a, names.lora_b)}
    for name, value in given.tensors.items():
        if name in factors:
            continue
        if name in adapter:
            if value.shape != adapter[name].shape:
                got, wanted = list(value.shape), list(adapter[name].shape)
                _refuse(given.path, f"has {name} of shape {got}, but this run needs {wanted}: it is of other classes")
            adapter[name][...] = value[_order(given, artifact.manifest.labels)]
        elif name not in frozen or not _same(value, artifact.weight(frozen[name])):
            what = "which is not what this model has" if name in frozen else "which no adapter of this run has"
            _refuse(given.path, f"holds {name}, {what}: give an adapter of LoRA factors on this model")


def _order(given: Given, labels: tuple[str, ...]) -> Any:  # noqa: ANN401 - what numpy takes as an index
    """Rows of a classifier, in the order that the run has its classes in."""
    if not given.labels:
        return ...
    if set(given.labels) != set(labels):
        _refuse(given.path, f"is of the classes {list(given.labels[:8])}, but the data has {list(labels[:8])}")
    return [given.labels.index(label) for label in labels]


def _same(one: Array, other: npt.NDArray[Any]) -> bool:
    """Return whether two arrays are equal within half precision."""
    return one.shape == other.shape and bool(np.allclose(one, np.asarray(other, np.float32), rtol=1e-2, atol=1e-3))


def _read_round(path: Path) -> Given:
    data = _bytes(path)
    tensors = _decode(path, data)
    metadata = _metadata(path)
    if any(name.endswith((names.MERGED_A_SUFFIX, names.MERGED_B_SUFFIX)) for name in tensors):
        _refuse(path, f"holds merged factors: give {path.parent / PEFT_FOLDER}, where they are part of the adapter")
    try:
        scaling = float(metadata["lora_scaling"])
    except (KeyError, ValueError):
        scaling = math.nan
    if not math.isfinite(scaling) or scaling <= 0:
        _refuse(path, "does not say its lora_scaling: give the file of a run, or the folder adapters/peft beside it")
    modules = [name.removesuffix(_A) for name in tensors if name.endswith(_A)]
    labels = _labels_of_run(path, metadata)
    return Given(path=path, tensors=tensors, scalings=dict.fromkeys(modules, scaling), labels=labels)


def _labels_of_run(path: Path, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Classes of the artifact that a file's run trained, where it lies beside it."""
    artifact = path.absolute().parent.parent / ARTIFACTS_FOLDER / metadata.get("artifact_digest", "")
    manifest = artifact / names.MANIFEST_FILE
    return decode_manifest(manifest.read_bytes()).labels if manifest.is_file() else ()


def _labels_beside(folder: Path) -> tuple[str, ...]:
    """Classes of a configuration that lies in PEFT's folder; transformers writes its keys as text."""
    try:
        found = json.loads((folder / "config.json").read_bytes())["id2label"]
        return tuple(str(found[str(index)]) for index in range(len(found)))
    except (OSError, ValueError, LookupError, TypeError):
        return ()


def _read_peft(folder: Path) -> Given:
    try:
        config = json.loads(_bytes(folder / CONFIG_FILE))
    except ValueError as error:
        _refuse(folder, f"has a {CONFIG_FILE} that is not JSON ({error}): save it again")
    if not isinstance(config, dict):
        _refuse(folder, f"has a {CONFIG_FILE} that is not an object: save it again")
    for key, known in _SUPPORTED.items():
        if (value := config.get(key)) is not None and value not in known:
            _refuse(folder, f"has {key} = {value!r}, which a run cannot go on with; expected {(*known, None)[0]!r}")
    if not (folder / WEIGHTS_FILE).is_file():
        pickled = f": {_PICKLE} is not read, it can run code" if (folder / _PICKLE).is_file() else ""
        _refuse(folder, f"lacks {WEIGHTS_FILE}{pickled}; save it with save_pretrained(..., safe_serialization=True)")
    found = _decode(folder / WEIGHTS_FILE, _bytes(folder / WEIGHTS_FILE))
    tensors = {name.removeprefix(KEY_PREFIX): value for name, value in found.items()}
    ranks = {name.removesuffix(_A): value.shape[0] for name, value in tensors.items() if name.endswith(_A)}
    if not ranks:
        _refuse(folder, "holds no LoRA factors (lora_A, lora_B): nothing to start from")
    return Given(
        path=folder,
        tensors=tensors,
        scalings={module: _scaling(folder, config, module, rank) for module, rank in ranks.items()},
        labels=_labels_beside(folder),
    )


def _scaling(folder: Path, config: Mapping[str, Any], module: str, rank: int) -> float:
    """Alpha / r, or alpha / sqrt(r), of a module, as PEFT computes it."""
    alpha = config.get("lora_alpha")
    patterns = config.get("alpha_pattern") or {}
    for pattern, own in patterns.items() if isinstance(patterns, dict) else ():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = own
        except re.error:
            _refuse(folder, f"has an alpha_pattern {pattern!r} that is not a regular expression: save it again")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf or rank < 1:
        _refuse(folder, f"has lora_alpha {alpha!r} for {module}, expected a number above 0")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _decode(path: Path, data: bytes) -> dict[str, Array]:
    """All tensors of a file as float32; bfloat16, which PEFT may write, too.

    Raises:
        ConfigError: it is not a safetensors file, or holds values that are not finite.
    """
    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        _refuse(path, f"is not a safetensors file ({error}): save it again")
    found: dict[str, Array] = {}
    for name, entry in entries:
        if name == names.POOL:
            _refuse(path, "is of a run that tuned all weights, and is no adapter: give its adapters/whole as --model")
        if name.startswith(names.MEMORY_PREFIX):
            continue  # state of the run that wrote the file
        if entry["dtype"] == "BF16":
            wide = np.frombuffer(entry["data"], np.uint16).astype(np.uint32) << 16
            found[name] = wide.view(np.float32).reshape(entry["shape"])
        elif entry["dtype"] in {"F32", "F16"}:
            kind = np.float32 if entry["dtype"] == "F32" else np.float16
            found[name] = np.frombuffer(entry["data"], kind).astype(np.float32).reshape(entry["shape"])
        else:
            _refuse(path, f"holds {name} as {entry['dtype']}, expected F32, F16 or BF16")
        if not np.isfinite(found[name]).all():
            _refuse(path, f"holds values in {name} that are not finite: training cannot go on from it")
    if any(value.ndim != 2 for name, value in found.items() if name.endswith((_A, _B))):
        _refuse(path, "holds LoRA factors that are not matrices: it is not of linear layers")
    return found


def _metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror}")


def _refuse(path: Path, problem: str) -> NoReturn:
    msg = f"--adapter {path} {problem}"
    raise ConfigError(msg)
