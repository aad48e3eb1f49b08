"""Descriptions of artifacts, ort-training models and compact models: deterministic JSON with a version."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from edge_runtime.bounds import limits
from edge_runtime.bounds.plain import escaped, plain
from edge_runtime.errors import ArtifactVersionError, ManifestError

D = TypeVar("D", bound=msgspec.Struct)


def encode_description(description: msgspec.Struct) -> bytes:
    """Deterministic, indented UTF-8 JSON (sorted keys of maps, fields in declaration order)."""
    return msgspec.json.format(msgspec.json.encode(description, order="deterministic"), indent=1) + b"\n"


def decode_description(data: bytes, kind: type[D], *, version: int, file: str, what: str, remedy: str) -> D:
    """Parse a description.

    The version is checked first, so that a file of another release is not reported as damaged.

    Args:
        data: the file's bytes.
        kind: a Struct with a field ``format_version``.
        version: the only version that is read.
        file: name of the file, for errors.
        what: kind of the described thing, for errors.
        remedy: how to make the file anew, in the imperative, for errors.

    Raises:
        ManifestError: not JSON, a missing field, a wrong type, a value outside its range, or too long.
        ArtifactVersionError: written in another format version.
    """
    if len(data) > limits.MAX_MANIFEST_BYTES:
        msg = f"{file} is {len(data)} bytes, at most {limits.MAX_MANIFEST_BYTES} are read"
        raise ManifestError(msg)
    try:
        found = msgspec.json.decode(data, type=_VersionOnly).format_version
        if found != version:
            msg = (
                f"{what} of format version {found}, but this release reads version {version}: "
                f"{remedy}, or install the release that wrote it"
            )
            raise ArtifactVersionError(msg)
        return escaped(msgspec.json.decode(data, type=kind))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        msg = f"{file} is malformed: {plain(str(error))}; {remedy}, or copy what was made"
        raise ManifestError(msg) from error


class _VersionOnly(msgspec.Struct, frozen=True):
    format_version: int
