"""The manifest: the description of an exported model for devices and server, without torch.

An *artifact* is a directory of immutable files named by the manifest; the artifact's identity is the SHA-256 of the
manifest's bytes, and the manifest holds the SHA-256 of every other file.

Shape legend: ``R`` LoRA rank, ``N`` number of trainable elements.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Annotated, Final, Literal

import msgspec

from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import (
    Count,
    Digest,
    FileBytes,
    GroupName,
    Integer,
    Label,
    Layer,
    Name,
    NumUnits,
    Positive,
    Short,
    TensorName,
    Version,
    Versions,
)
from edge_runtime.bounds.versioned import decode_description
from edge_runtime.errors import ManifestError
from edge_runtime.formats import names

FORMAT_VERSION: Final = 3
"""Version of the artifact format; an artifact of another version is refused."""

NF4_BLOCK_SIZE: Final = 64
"""Elements of a block in nf4."""

Task = Literal["text-classification", "causal-lm"]
Dtype = Literal["float32", "float16", "int8", "nf4"]
BaseDtype = Literal["stored", "float32", "float16", "int8", "nf4"]
"""Storage of frozen weights: in the checkpoint's type (``stored``) or another; int8 and nf4 are for matrices."""


Shape = Annotated[tuple[Count, ...], msgspec.Meta(max_length=limits.MAX_TENSOR_AXES)]
"""Shape of a tensor before pruning."""


class FileRef(msgspec.Struct, frozen=True, kw_only=True):
    """One file of an artifact."""

    digest: Digest
    """SHA-256, 64 hexadecimal digits."""
    size_bytes: FileBytes
    on_device: bool
    """Whether a device needs the file (graphs, tokenizer, base weights) or only the server (model configuration)."""


class PruneAxis(msgspec.Struct, frozen=True, kw_only=True):
    """An axis of a tensor that shrinks when units of a group are removed.

    Unit ``u`` owns the indices ``[u * unit_size, (u + 1) * unit_size)`` of the axis.
    """

    axis: Annotated[int, msgspec.Meta(ge=0, lt=limits.MAX_TENSOR_AXES)]
    group: GroupName
    """Name of the group, unique within its layer: ``heads`` or ``channels``."""
    unit_size: NumUnits


class GroupSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Units of one layer that can be removed: attention heads or feed-forward channels.

    With grouped-query attention a unit is a key/value head with all its query heads.
    """

    layer: Layer
    group: GroupName
    num_units: NumUnits


def block_axis(prunes: Iterable[PruneAxis]) -> int:
    """The axis of a matrix along which blocks of nf4 lie: along its rows, or down its columns if columns are pruned."""
    return 0 if any(prune.axis == 1 for prune in prunes) else 1


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A frozen weight: an input of the graphs, stored in the base blob under the same name."""

    name: TensorName
    shape: Shape
    """Shape before pruning."""
    dtype: Dtype
    """Storage type in the base blob; int8 and nf4 have scales beside them (:mod:`.quantization`)."""
    layer: Layer | None
    """Index of the tensor's block; None for embedding and head."""
    prune: Annotated[tuple[PruneAxis, ...], msgspec.Meta(max_length=limits.MAX_TENSOR_AXES)] = ()

    @property
    def block_axis(self) -> int:
        """See :func:`block_axis`."""
        return block_axis(self.prune)


class TargetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A linear layer that carries LoRA factors: A ``[R, in_features]``, B ``[out_features, R]``."""

    module: TensorName
    """Module path in the Hugging Face model, without ``.weight``."""
    layer: Layer
    in_features: Positive
    out_features: Positive
    in_prune: PruneAxis | None = None
    """Groups in which the columns of A shrink (``axis`` is 1), or None if the input is the hidden state."""
    out_prune: PruneAxis | None = None
    """Groups in which the rows of B shrink (``axis`` is 0), or None if the output is the hidden state."""


class DenseSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor that is trained whole (the classifier of a new task); ``initial.safetensors`` has its initial value."""

    name: TensorName
    shape: Shape


class TextSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Rules of tokenisation; the tokenizer itself (``tokenizer.json``) is a file of the artifact."""

    pad_token_id: Integer
    eos_token_id: Integer | None
    append_eos: bool
    """Whether an end-of-text token is added after each example (causal-lm whose tokenizer does not add it itself)."""
    max_length: Positive
    """Longest sequence that the model's positions allow, tokens."""
    vocab_size: Positive
    """Rows of the word embedding; every id of a token is below it."""
    end_token_ids: Annotated[tuple[Count, ...], msgspec.Meta(max_length=limits.MAX_END_TOKENS)] = ()
    """Tokens that end a generated text, beside ``eos_token_id``."""

    @property
    def ends(self) -> frozenset[int]:
        """All tokens that end a generated text."""
        return frozenset(self.end_token_ids if self.eos_token_id is None else (*self.end_token_ids, self.eos_token_id))

    def check(self) -> None:
        """Refuse ids outside the vocabulary, before they are looked up.

        Raises:
            ManifestError: names the first such id.
        """
        ids = {"pad_token_id": self.pad_token_id, "eos_token_id": self.eos_token_id}
        ids |= {f"end_token_ids[{place}]": token for place, token in enumerate(self.end_token_ids)}
        for name, token in ids.items():
            if token is not None and not 0 <= token < self.vocab_size:
                msg = f"{name} is {token}, expected a token of the vocabulary (0 to {self.vocab_size - 1}): "
                raise ManifestError(msg + "export the model again")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Description of an artifact; ``files`` lists every file except the manifest itself."""

    format_version: Version
    family: Name
    """Name of the model family (``bert``, ``llama``)."""
    task: Task
    model_name: Short
    """Name of the source model, for people; never a path."""
    num_layers: Count
    hidden_size: Positive
    block_prefixes: Annotated[tuple[TensorName, ...], msgspec.Meta(max_length=limits.MAX_LAYERS)]
    """Prefix of the names of each block's weights and targets, layer by layer."""
    word_embedding: TensorName
    """The tensor whose rows are looked up by token id."""
    post_norm: bool
    """Whether a block ends in a norm of its residual sum; staged mode then keeps this sum for the block's backward."""
    labels: Annotated[tuple[Label, ...], msgspec.Meta(max_length=limits.MAX_LABELS)]
    """Class names in the order of the classifier's rows; empty for causal-lm."""
    text: TextSpec
    groups: Annotated[tuple[GroupSpec, ...], msgspec.Meta(max_length=limits.MAX_GROUPS)]
    tensors: Annotated[tuple[TensorSpec, ...], msgspec.Meta(max_length=limits.MAX_TENSORS)]
    targets: Annotated[tuple[TargetSpec, ...], msgspec.Meta(max_length=limits.MAX_TARGETS)]
    dense: Annotated[tuple[DenseSpec, ...], msgspec.Meta(max_length=limits.MAX_TENSORS)]
    files: Annotated[dict[Name, FileRef], msgspec.Meta(max_length=limits.MAX_FILES)]
    producer: Versions
    """Versions of the packages that wrote the artifact."""

    @property
    def is_embedding_tied(self) -> bool:
        """Return whether a causal-lm's word embedding is also its output matrix, by the shapes outside blocks."""
        outside = [tensor for tensor in self.tensors if tensor.layer is None]
        (table,) = (tensor.shape for tensor in outside if tensor.name == self.word_embedding)
        return self.task == "causal-lm" and sum(tensor.shape == table for tensor in outside) == 1

    @property
    def looked_up(self) -> frozenset[str]:
        """Matrices that are only looked up by token id: the word embedding, unless it is tied."""
        return frozenset() if self.is_embedding_tied else frozenset({self.word_embedding})

    @property
    def first_tuned(self) -> int:
        """Index of the lowest block with LoRA targets; the number of blocks if there are no targets."""
        return min((target.layer for target in self.targets), default=self.num_layers)

    @property
    def residual_layers(self) -> range:
        """Blocks whose residual sum staged mode keeps: tuned blocks, except a last block that outputs first tokens."""
        num_kept = self.num_layers - self.scores_first_only if self.post_norm else 0
        return range(self.first_tuned, max(self.first_tuned, num_kept))

    @property
    def scores_first_only(self) -> bool:
        """Return whether the last block has its own graphs, which output only the first token of each sequence."""
        return names.LAST_BLOCK_STAGE in self.files

    def group(self, layer: int, name: str) -> GroupSpec:
        """The group ``name`` of ``layer``.

        Raises:
            ManifestError: there is no such group.
        """
        for spec in self.groups:
            if spec.layer == layer and spec.group == name:
                return spec
        msg = f"manifest has no group {name!r} in layer {layer}; known: {sorted({g.group for g in self.groups})}"
        raise ManifestError(msg)


def digest_of(data: bytes | memoryview) -> str:
    """SHA-256 of ``data`` as 64 hexadecimal digits: the identity of blobs, files and artifacts."""
    return hashlib.sha256(data).hexdigest()


def decode_manifest(data: bytes) -> Manifest:
    """Parse and check the bytes of ``manifest.json``.

    Raises:
        ManifestError: not JSON, a missing field, a wrong type, or contents that contradict each other.
        ArtifactVersionError: written in another format version.
    """
    manifest = decode_description(
        data, Manifest, version=FORMAT_VERSION, file="manifest", what="artifact", remedy="export the model again"
    )
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    if not 0 < manifest.num_layers <= limits.MAX_LAYERS:
        msg = f"manifest says {manifest.num_layers} layers, expected 1 to {limits.MAX_LAYERS}"
        raise ManifestError(msg)
    if len(manifest.block_prefixes) != manifest.num_layers:
        msg = f"manifest has {len(manifest.block_prefixes)} block prefixes for {manifest.num_layers} layers"
        raise ManifestError(msg)
    sizes: dict[tuple[int, str], int] = {}
    for group in manifest.groups:
        if (group.layer, group.group) in sizes:
            msg = f"manifest lists group {group.group!r} of layer {group.layer} twice"
            raise ManifestError(msg)
        if not 0 < group.num_units <= limits.MAX_UNITS or not 0 <= group.layer < manifest.num_layers:
            msg = f"manifest has an impossible group: {group}"
            raise ManifestError(msg)
        sizes[group.layer, group.group] = group.num_units
    _check_sizes(manifest)
    _check_targets(manifest)
    _check_tensors(manifest)
    manifest.text.check()
    _check_axes(manifest, sizes)
    for name, ref in manifest.files.items():
        is_plain = bool(name) and not name.startswith(".") and "/" not in name and "\\" not in name
        if not is_plain or not _is_digest(ref.digest) or ref.size_bytes < 0:
            msg = f"manifest lists an impossible file: {name!r} {ref}"
            raise ManifestError(msg)


def _check_sizes(manifest: Manifest) -> None:
    """Check sizes first, because numbers computed from larger shapes would overflow."""
    shapes = {tensor.name: tensor.shape for tensor in manifest.tensors}
    shapes |= {dense.name: dense.shape for dense in manifest.dense}
    shapes |= {target.module: (target.out_features, target.in_features) for target in manifest.targets}
    for name, shape in shapes.items():
        if math.prod(shape) > limits.MAX_TENSOR_ELEMENTS:
            msg = f"manifest says that {name} has the shape {shape}, more than {limits.MAX_TENSOR_ELEMENTS} elements"
            raise ManifestError(msg)


def _check_targets(manifest: Manifest) -> None:
    """Check that targets are in the order of layers, as the flat vector is."""
    layers = [target.layer for target in manifest.targets]
    if layers != sorted(layers) or not all(0 <= layer < manifest.num_layers for layer in layers):
        msg = f"manifest lists targets of layers {layers}, expected those of 0 to {manifest.num_layers - 1}, ascending"
        raise ManifestError(msg)


def _check_tensors(manifest: Manifest) -> None:
    """Check the tensors that the staged mode and the base blob rely on."""
    matrices = {
        tensor.name: tensor.shape[0] for tensor in manifest.tensors if len(tensor.shape) == 2 and tensor.layer is None
    }
    if manifest.word_embedding not in matrices:
        msg = f"manifest has no matrix {manifest.word_embedding!r}, which it says is the word embedding"
        raise ManifestError(msg)
    if matrices[manifest.word_embedding] != manifest.text.vocab_size:
        rows = matrices[manifest.word_embedding]
        msg = f"manifest says a vocabulary of {manifest.text.vocab_size} tokens, but the word embedding has {rows} rows"
        raise ManifestError(msg)
    for tensor in manifest.tensors:
        if tensor.layer is not None and not (
            0 <= tensor.layer < manifest.num_layers and tensor.name.startswith(manifest.block_prefixes[tensor.layer])
        ):
            msg = f"{tensor.name} is said to be of layer {tensor.layer}, whose names begin otherwise"
            raise ManifestError(msg)
        if tensor.dtype in {"int8", "nf4"} and not _is_divisible(tensor):
            msg = f"{tensor.name} of shape {tensor.shape} cannot be stored as {tensor.dtype}"
            raise ManifestError(msg)


def _is_divisible(tensor: TensorSpec) -> bool:
    """Return whether a tensor can be stored in few bits: a matrix; for nf4 one of whole blocks that no plan cuts."""
    if len(tensor.shape) != 2:
        return False
    is_cut = any(prune.axis == tensor.block_axis for prune in tensor.prune)
    return tensor.dtype == "int8" or (tensor.shape[tensor.block_axis] % NF4_BLOCK_SIZE == 0 and not is_cut)


def _check_axes(manifest: Manifest, sizes: dict[tuple[int, str], int]) -> None:
    for tensor in manifest.tensors:
        for prune in tensor.prune:
            _check_axis(tensor.name, tensor.layer, tensor.shape, prune, sizes)
    for target in manifest.targets:
        shape = (target.out_features, target.in_features)
        for axis in (target.out_prune, target.in_prune):
            if axis is not None:
                _check_axis(target.module, target.layer, shape, axis, sizes)


def _check_axis(
    name: str,
    layer: int | None,
    shape: tuple[int, ...],
    prune: PruneAxis,
    sizes: dict[tuple[int, str], int],
) -> None:
    units = None if layer is None else sizes.get((layer, prune.group))
    if units is None or not 0 <= prune.axis < len(shape) or units * prune.unit_size != shape[prune.axis]:
        msg = f"{name}: axis {prune.axis} of shape {shape} is not {units} units of {prune.unit_size} ({prune.group})"
        raise ManifestError(msg)


def _is_digest(text: str) -> bool:
    return len(text) == 64 and all(c in "0123456789abcdef" for c in text)
