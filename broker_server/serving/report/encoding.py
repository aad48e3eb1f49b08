"""The bytes of reports for programs: of runs, comparisons and benchmarks."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from broker_server.errors import ReportError

R = TypeVar("R", bound=msgspec.Struct)


def encode(report: msgspec.Struct) -> bytes:
    """Indented UTF-8 JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def decode(data: bytes, kind: type[R], *, what: str) -> R:
    """Read a report that :func:`encode` wrote.

    Args:
        data: the file's bytes.
        kind: a Struct whose ``schema_version`` takes one value, its default.
        what: name of the file in errors.

    Raises:
        ReportError: malformed, or of another schema version.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        (version,) = (field.default for field in msgspec.structs.fields(kind) if field.name == "schema_version")
        msg = f"{what} is malformed, or of another version than {version}: {error}"
        raise ReportError(msg) from error
