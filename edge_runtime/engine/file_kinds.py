"""Parts of error messages for files that are not JSON lines in UTF-8: the kind of the file, and how to convert it.

This module reads no file; its functions take bytes.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
import shlex
import unicodedata
from pathlib import PurePath
from typing import Final

HEAD_BYTES: Final = 512
"""Number of bytes of a file that :func:`foreign_kind` looks at."""

_TAR_AT = 257
_SHOWN_COLUMNS = 8
_SHOWN = 40
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0e-\x19\x1b-\x1f]")
_SIGN_IN_WORD: Final = re.compile(r"[^\W\d_][\u00a1-\u00a9\u00ab-\u00b4\u00b6\u00b8\u00b9\u00bb-\u00bf][^\W\d_]")
_COLUMN: Final = re.compile(r"\w[\w .-]{0,39}")
_PACKED: Final = (
    (b"\x1f\x8b", "gzip", "gunzip -k"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
    (b"\xfd7zXZ\x00", "xz", "unxz -k"),
    (b"BZh", "bzip2", "bunzip2 -k"),
    (b"\x04\x22\x4d\x18", "lz4", "unlz4"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip", "7z x"),
    (b"PK\x03\x04", "zip", "unzip"),
)
_TABLES: Final = (
    (b"PAR1", "a Parquet file", "read_parquet"),
    (b"ARROW1", "an Arrow (Feather) file", "read_feather"),
    (b"\x89HDF", "an HDF5 file", "read_hdf"),
)
_PICKLE = "a pickle, which could run code and is not read: write one JSON object a line"
_OTHERS: Final = (
    (
        b"\xd0\xcf\x11\xe0",
        "an Excel or Word file of the old kind (xls, doc): export its table as CSV, and that as JSON lines",
    ),
    (b"Obj\x01", "an Avro file: write one JSON object a line"),
    (b"\xff\xff\xff\xff", "an Arrow stream: write it with datasets' to_json"),
    (b"SQLite format 3\x00", "an SQLite database: select its rows and write one JSON object a line"),
    (b"\x80\x02", _PICKLE),
    (b"\x80\x03", _PICKLE),
    (b"\x80\x04", _PICKLE),
    (b"\x80\x05", _PICKLE),
    (b"\x93NUMPY", "a numpy array: write one JSON object a line"),
    (b"%PDF", "a PDF: extract its text and write one JSON object a line"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: run git lfs pull"),
    (b"<", "HTML or XML, perhaps the page of an error: download the file itself"),
)
_WIDE: Final = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def foreign_kind(head: bytes, path: PurePath) -> str | None:
    """Return the kind of a file by its first bytes, and how to convert it; None = the file may be JSON lines.

    The text follows "FILE is".

    Args:
        head: the first HEAD_BYTES of the file.
        path: path of the file, for the suggested command.
    """
    if kind := _by_mark(head, path):
        return kind
    encoding = next((encoding for mark, encoding in _WIDE if head.startswith(mark)), _unmarked_utf16(head))
    if encoding is not None:
        return f"not UTF-8 but {encoding}: convert it with {_iconv(encoding, path)}"
    is_binary = not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and _CONTROL.search(head) is not None
    return "binary, not JSON lines: write one JSON object a line" if is_binary else None


def _by_mark(head: bytes, path: PurePath) -> str | None:
    if head.startswith(b"PK\x03\x04") and path.suffix.lower() in {".xlsx", ".xlsm", ".ods"}:
        return f"a spreadsheet: convert it to JSON lines with {_pandas('read_excel', path)}"
    if head[_TAR_AT:].startswith(b"ustar"):
        return f"a tar archive: unpack it with `tar -xf {shlex.quote(path.name)}`, give the file in it"
    for mark, kind, command in _PACKED:
        if head.startswith(mark):
            return f"packed with {kind}: unpack it with `{command} {shlex.quote(path.name)}`, give what comes out"
    for mark, kind, function in _TABLES:
        if head.startswith(mark):
            return f"{kind}: convert it to JSON lines with {_pandas(function, path)}"
    for mark, advice in _OTHERS:
        if head.startswith(mark):
            return advice
    return None


def not_utf8(line: bytes, place: int, path: PurePath, *, is_utf8_before: bool) -> str:
    """Return the likely encoding of a line that is not UTF-8, and the next step; the text follows "line N is".

    Args:
        line: bytes of the line.
        place: index of the first byte that is not UTF-8.
        path: path of the file, for the suggested command.
        is_utf8_before: whether earlier lines of the file hold non-ASCII characters in UTF-8.
    """
    what = f"not UTF-8 (its byte {place + 1} is 0x{line[place]:02x})"
    if is_utf8_before or not line[:place].isascii():
        return f"{what}, though the file is before that: it is damaged, repair or remove it"
    if _looks_like_windows_1252(line):
        return f"{what} but, as it seems, Windows-1252: convert the file with {_iconv('WINDOWS-1252', path)}"
    return f"{what}: convert the file with {_iconv('ENCODING', path)}, its own encoding in the place of ENCODING"


def not_json(line: str, path: PurePath) -> str | None:
    """Return the kind of a file whose first line is not a JSON object; the text follows "FILE is"; None = unknown.

    Args:
        line: the first line that is not blank.
        path: path of the file, for the suggested command.
    """
    line = line.strip()
    name = shlex.quote(path.name)
    if line.startswith("["):
        return f"a JSON array, not JSON lines: convert it with `jq -c '.[]' {name} > {_renamed(path, '.jsonl')}`"
    if line.startswith("{"):
        return None
    for suffix, delimiter, kind, option in (
        (".tsv", "\t", "TSV", ', sep="\\t"'),
        (".csv", ",", "CSV", ""),
        ("", ";", "CSV with semicolons", ', sep=";"'),
    ):
        columns = _columns(line, delimiter)
        if path.suffix.lower() == suffix != "" or (len(columns) > 1 and all(map(_COLUMN.fullmatch, columns))):
            names = ", ".join(repr(column[:_SHOWN]) for column in columns[:_SHOWN_COLUMNS])
            return f"{kind} (columns {names}), not JSON lines: convert it with {_pandas('read_csv', path, option)}"
    return None


def _columns(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(line), delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []


def _unmarked_utf16(head: bytes) -> str | None:
    """Recognise UTF-16 without a mark: with ASCII characters, as in JSON, every other byte is zero."""
    start = head[: len(head) // 2 * 2]
    for encoding, zeros, others in (("UTF-16LE", start[1::2], start[::2]), ("UTF-16BE", start[::2], start[1::2])):
        if len(others) > 1 and others[:1] in {b"{", b"["} and 2 * zeros.count(0) > len(zeros) and 0 not in others:
            return encoding
    return None


def _looks_like_windows_1252(line: bytes) -> bool:
    """Return whether a line is mostly ASCII with single letters and signs of Western Europe.

    Encodings of other scripts have runs of such bytes. Encodings of Central Europe have letters where Windows-1252 has
    signs, so signs would stand inside words.
    """
    try:
        text = line.decode("cp1252")
    except UnicodeDecodeError:
        return False
    found = [sign for sign in text if not sign.isascii()]
    runs = sum(byte >= 0x80 and before >= 0x80 for before, byte in itertools.pairwise(line))
    is_printable = all(unicodedata.category(sign) != "Cc" for sign in found)
    return (
        is_printable and not _SIGN_IN_WORD.search(text) and 4 * runs < max(4, len(found)) and 3 * len(found) < len(text)
    )


def _iconv(encoding: str, path: PurePath) -> str:
    return f"`iconv -f {encoding} -t UTF-8 {shlex.quote(path.name)} > {_renamed(path, f'.utf8{path.suffix}')}`"


def _pandas(function: str, path: PurePath, option: str = "") -> str:
    target = path.with_suffix(".jsonl").name if path.suffix != ".jsonl" else f"{path.stem}.new.jsonl"
    return f'pandas: `pandas.{function}("{path.name}"{option}).to_json("{target}", orient="records", lines=True)`'


def _renamed(path: PurePath, suffix: str) -> str:
    name = f"{path.stem}{suffix}"
    return shlex.quote(name if name != path.name else f"{path.stem}.new{suffix}")
