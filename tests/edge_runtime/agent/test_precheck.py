from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_runtime.agent.precheck import count_examples, look_at_examples
from edge_runtime.engine.errors import DataEmptyError, DataInvalidError
from edge_runtime.errors import ExitCode


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
        (b'{"text": "a"}\nnot json\n', "line 2 is not JSON"),
        (b"\xff\xfe\n", "not UTF-8"),
        (b"[1]\n", "line 1 holds a list"),
        (b'{"label": 1}\n', "line 1 has no field 'text'; its fields are 'label'"),
        (b"{}\n", "it has no fields at all"),
        (b"[" * 9000, "JSON array"),
        (b'{"a": ' * 9000, "nested too deep"),
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
    with pytest.raises(DataInvalidError, match="does not exist"):
        count_examples(tmp_path / "absent.jsonl")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataInvalidError, match="is a directory"):
        count_examples(tmp_path)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([{"text": "a", "label": "x"}, {"text": "b", "label": True}], "line 2 has true in 'label'"),
        ([{"text": "a", "label": 1}, {"text": "b"}], "line 2 has no field 'label'"),
        ([{"text": "a", "label": 1}, {"text": "b", "label": "x"}], "line 2 has the label 'x', but line 1 has a number"),
    ],
    ids=["true", "missing", "mixed"],
)
def test_labels_that_a_classifier_would_refuse_are_warned_of(
    tmp_path: Path, rows: list[dict[str, object]], fault: str
) -> None:
    found = look_at_examples(write(tmp_path, "".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert found.num_examples == found.num_texts == 2
    (warning,) = found.warnings
    assert fault in warning
    assert warning.endswith("; a run that classifies will refuse the file")


def test_nothing_is_said_of_labels_that_are_nowhere(tmp_path: Path) -> None:
    assert look_at_examples(write(tmp_path, b'{"text": "a", "score": NaN}\n{"text": "b"}\n')).warnings == ()


def test_empty_texts_do_not_count(tmp_path: Path) -> None:
    found = look_at_examples(write(tmp_path, b'{"text": "a"}\n{"text": " "}\n'))
    assert found.num_examples == 1
    assert found.warnings == (f"{tmp_path / 'data.jsonl'}: 1 example has an empty text and is left out, first line 2",)
