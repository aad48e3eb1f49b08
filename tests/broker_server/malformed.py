"""Bytes that no reader of reports may take, or choke on."""

from __future__ import annotations

from typing import Final

MALFORMED_REPORTS: Final = (
    b"",
    b"{}",
    b"[]",
    b'{"schema_version": 2}',
    b'{"a": "\xff"}',
    b'{"a": ' + b"[" * 200_000,
)
"""Empty, without fields, of another kind, of another version, not UTF-8, nested without end."""
