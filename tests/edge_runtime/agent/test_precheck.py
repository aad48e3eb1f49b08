from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.agent.precheck import count_examples
from edge_runtime.engine.errors import DataEmptyError, DataInvalidError
from edge_runtime.wire.errors import ExitCode


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_bytes(data)
    return path


def test_examples_are_counted(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"text": "a", "label": 1}\n\n{"input_ids": [1]}\r\n  \n{"text": "b"}'
    assert count_examples(write(tmp_path, data)) == 3


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"text": "a"}\nnot json\n', ":2: not JSON"),
        (b"\xff\xfe\n", ":1: not JSON in UTF-8"),
        (b"[1]\n", ":1: got list"),
        (b'{"label": 1}\n', ":1: field 'text'"),
        (b"{}\n", "found none"),
        (b"[" * 9000, ":1: not JSON"),
    ],
)
def test_lines_that_are_no_examples_are_named(tmp_path: Path, data: bytes, expected: str) -> None:
    with pytest.raises(DataInvalidError, match=expected) as caught:
        count_examples(write(tmp_path, data))
    assert caught.value.exit_code == ExitCode.DATA_INVALID
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_a_file_without_examples_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataEmptyError) as caught:
        count_examples(write(tmp_path, data))
    assert caught.value.exit_code == ExitCode.DATA_EMPTY


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataInvalidError, match="cannot be read"):
        count_examples(tmp_path / "absent.jsonl")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataInvalidError, match="cannot be read"):
        count_examples(tmp_path)
