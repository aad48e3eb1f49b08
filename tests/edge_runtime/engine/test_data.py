"""Files of examples: every bad line is one clear error that names file and line."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.engine import data, json_lines
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.dataset import Dataset
from edge_runtime.engine.errors import (
    DataEmptyError,
    DataError,
    DataInvalidError,
    LengthError,
    MissingDependencyError,
    UnknownLabelError,
)
from edge_runtime.errors import ExitCode

MakeArtifact = Callable[..., Artifact]

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_lines(*lines: object) -> Path:
        path = tmp_path / "data.jsonl"
        encoded = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines]
        path.write_bytes(b"\n".join(encoded) + b"\n")
        return path

    return write_lines


def examples(path: Path, artifact: Artifact, max_length: int = 16) -> list[list[int]]:
    dataset = load_examples(path, artifact, max_length)
    return [list(map(int, part)) for part in np.split(dataset.tokens, dataset.offsets[1:-1])]


def test_text_is_tokenised_with_special_tokens(make_artifact: MakeArtifact, write: Write) -> None:
    path = write({"text": "the cat sat", "label": "positive"}, {"text": "unheard", "label": "negative"})
    dataset = load_examples(path, make_artifact(), 16)
    assert examples(path, make_artifact()) == [[2, 4, 5, 6], [2, 1]]
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [1, 0]


def test_long_text_is_truncated(make_artifact: MakeArtifact, write: Write) -> None:
    assert examples(write({"text": "the " * 30, "label": 0}), make_artifact(), 5) == [[2, 4, 4, 4, 4]]


@pytest.mark.parametrize(("label", "index"), [("negative", 0), (" positive ", 1), (0, 0), (1.0, 1), ("1", 1)], ids=repr)
def test_labels_are_names_or_indices(make_artifact: MakeArtifact, write: Write, label: object, index: int) -> None:
    dataset = load_examples(write({"text": "cat", "label": label}), make_artifact(), 16)
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [index]


@pytest.mark.parametrize("label", ["neutral", 2, -1, "2"], ids=str)
def test_unknown_label(make_artifact: MakeArtifact, write: Write, label: object) -> None:
    first = "negative" if isinstance(label, str) else 0
    path = write({"text": "cat", "label": first}, b"", {"text": "cat", "label": label})
    with pytest.raises(UnknownLabelError, match=r"data\.jsonl: line 3 has the label .*negative, positive") as caught:
        load_examples(path, make_artifact(), 16)
    assert caught.value.exit_code == ExitCode.UNKNOWN_LABEL


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ({"text": "cat"}, "has no field 'label'; its fields are 'text'"),
        ({"text": "cat", "label": True}, "has true in 'label'"),
        ({"text": "cat", "label": 0.5}, "has the number 0.5 in 'label'"),
        ({"text": "cat", "label": "positive"}, "has the label 'positive', but line 1 has a number"),
        ({"text": "cat", "label": "5 stars"}, "has the label '5 stars', but line 1 has a number"),
        ({"text": 5, "label": 0}, "has the number 5 in 'text', expected a text"),
        ({"input_ids": [1, 10], "label": 0}, r"has the token id 10, outside the vocabulary \(0 to 9\)"),
        ({"input_ids": [-1], "label": 0}, "has the token id -1 in 'input_ids'"),
        ({"input_ids": [10**30], "label": 0}, "has the token id 10+ in 'input_ids'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_line(make_artifact: MakeArtifact, write: Write, line: object, fault: str) -> None:
    with pytest.raises(DataInvalidError, match=r"data\.jsonl: line 2 " + fault) as caught:
        load_examples(write({"text": "cat", "label": 0}, line), make_artifact(), 16)
    assert caught.value.exit_code == ExitCode.DATA_INVALID
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_huge_line_is_refused_unread(
    make_artifact: MakeArtifact, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 100)
    with pytest.raises(DataInvalidError, match="line 1 is longer than 100 bytes"):
        load_examples(write({"text": "x" * 200, "label": 0}), make_artifact(), 16)


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"\xef\xbb\xbf"], ids=["empty", "blank", "mark only"])
def test_empty_file(make_artifact: MakeArtifact, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataEmptyError, match="holds no example") as caught:
        load_examples(path, make_artifact(), 16)
    assert caught.value.exit_code == ExitCode.DATA_EMPTY


def test_missing_file_and_directory(make_artifact: MakeArtifact, tmp_path: Path) -> None:
    for path, fault in ((tmp_path / "nowhere.jsonl", "does not exist"), (tmp_path, "is a directory")):
        with pytest.raises(DataInvalidError, match=fault):
            load_examples(path, make_artifact(), 16)


def test_byte_order_mark_and_crlf_are_no_fault(make_artifact: MakeArtifact, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "cat", "label": 0}\r\n{"text": "dog", "label": 1}')
    assert examples(path, make_artifact()) == [[2, 5], [2, 9]]


def test_pre_tokenised_needs_no_tokenizer(make_artifact: MakeArtifact, write: Write) -> None:
    path = write({"input_ids": [2, 4, 5], "label": 1, "text": "ignored"})
    assert examples(path, make_artifact(with_tokenizer=False)) == [[2, 4, 5]]


def test_pre_tokenised_is_truncated(make_artifact: MakeArtifact, write: Write) -> None:
    assert examples(write({"input_ids": [4] * 9, "label": 1}), make_artifact(), 3) == [[4, 4, 4]]


def test_text_without_a_tokenizer(make_artifact: MakeArtifact, write: Write) -> None:
    with pytest.raises(DataInvalidError, match="give pre-tokenised examples"):
        load_examples(write({"text": "cat", "label": 1}), make_artifact(with_tokenizer=False), 16)


def test_text_without_the_tokenizers_package(
    make_artifact: MakeArtifact, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any) -> Any:
        if name == "tokenizers":
            raise ImportError(name)
        return real(name, *args)

    artifact = make_artifact()
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependencyError, match=r"pip install 'fedspine\[text\]'") as caught:
        load_examples(write({"text": "cat", "label": 1}), artifact, 16)
    assert caught.value.exit_code == ExitCode.MISSING_DEPENDENCY


def test_documents_are_packed_into_windows(make_artifact: MakeArtifact, write: Write) -> None:
    path = write({"text": "the cat sat on"}, {"text": "the mat"}, {"input_ids": [9]})
    artifact = make_artifact("causal-lm", append_eos=True)
    assert examples(path, artifact, 4) == [[4, 5, 6, 7], [3, 4, 8, 3], [9, 3]]


def test_window_of_one_token_is_dropped(make_artifact: MakeArtifact, write: Write) -> None:
    assert examples(write({"input_ids": [4, 5, 6, 7, 8]}), make_artifact("causal-lm"), 4) == [[4, 5, 6, 7]]


def test_one_token_is_too_little_to_predict(make_artifact: MakeArtifact, write: Write) -> None:
    with pytest.raises(DataEmptyError, match="1 tokens, at least 2"):
        load_examples(write({"text": "cat"}), make_artifact("causal-lm"), 4)


@pytest.mark.parametrize("max_length", [1, 0, 17])
def test_length_that_the_model_does_not_allow(make_artifact: MakeArtifact, write: Write, max_length: int) -> None:
    with pytest.raises(LengthError, match="allows 2 to 16"):
        load_examples(write({"text": "cat", "label": 0}), make_artifact(), max_length)


def test_many_texts_keep_their_order_and_lines(make_artifact: MakeArtifact, write: Write) -> None:
    lines = [{"text": "cat " * (1 + i % 3), "label": i % 2} for i in range(1200)]
    lines[7] = {"input_ids": [9], "label": 0}
    tokens = examples(write(*lines), make_artifact())
    assert [len(t) for t in tokens] == [1 if i == 7 else 2 + i % 3 for i in range(1200)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), min_size=1, max_size=9),
    max_length=st.integers(2, 16),
)
def test_packing_keeps_the_stream(language_artifact: Artifact, documents: list[list[int]], max_length: int) -> None:
    path = language_artifact.directory.parent / "packed.jsonl"
    path.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in documents))
    stream = [token for ids in documents for token in [*ids, 3]]
    windows = examples(path, language_artifact, max_length)
    joined = [token for window in windows for token in window]
    assert joined == stream[: len(joined)]
    assert len(stream) - len(joined) <= 1
    assert all(len(window) == max_length for window in windows[:-1])
    assert 2 <= len(windows[-1]) <= max_length


@pytest.fixture
def language_artifact(make_artifact: MakeArtifact) -> Artifact:
    return make_artifact("causal-lm", append_eos=True)


@pytest.mark.parametrize(
    ("label", "index"), [(1, 1), (0, 0), ("0", 0), (2.0, None), (-1, None), ("zero", None)], ids=str
)
def test_a_number_is_no_index_where_classes_are_numbers(
    make_artifact: MakeArtifact, write: Write, label: object, index: int | None
) -> None:
    artifact = make_artifact()
    numbered = Artifact(
        artifact.directory, msgspec.structs.replace(artifact.manifest, labels=("0.0", "1.0")), artifact.digest
    )
    path = write({"text": "cat", "label": label})
    if index is None or isinstance(label, str):
        with pytest.raises(UnknownLabelError, match=r"known: 0\.0, 1\.0$"):
            load_examples(path, numbered, 16)
        return
    dataset = load_examples(path, numbered, 16)
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [index]


def test_empty_texts_are_left_out_and_said(
    make_artifact: MakeArtifact, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    path = write({"text": "cat", "label": 1}, {"text": " \n", "label": 0}, {"input_ids": [], "label": 0})
    dataset = load_examples(path, make_artifact(), 16)
    assert len(dataset) == 1
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [1]
    assert "2 examples have an empty text and are left out, first line 2" in caplog.text


def test_a_file_of_empty_texts_alone(make_artifact: MakeArtifact, write: Write) -> None:
    with pytest.raises(DataEmptyError, match="holds no example: 2 lines have an empty text"):
        load_examples(write({"text": "", "label": 1}, {"text": "  ", "label": 1}), make_artifact(), 16)


@pytest.mark.parametrize("labels", [("negative", "1"), ("0", "positive")], ids=str)
def test_names_and_indices_are_not_mixed(make_artifact: MakeArtifact, write: Write, labels: tuple[str, str]) -> None:
    path = write(*({"text": "cat", "label": label} for label in labels))
    with pytest.raises(DataInvalidError, match=r"line 2 has the label .*: give names or indices, not both"):
        load_examples(path, make_artifact(), 16)


ODD_TEXTS = ["\0", "a\0b", "\ufeff", "\u2028", "\U0001f600" * 9, "\x1b[2J", "e\u0301", "\uffff", "x" * 100_000]


@pytest.mark.parametrize("text", ODD_TEXTS, ids=ascii)
def test_odd_texts_are_texts(make_artifact: MakeArtifact, write: Write, text: str) -> None:
    assert len(load_examples(write({"text": f"the {text} cat", "label": 0}), make_artifact(), 16)) == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
LINES = st.one_of(
    st.binary(max_size=40),
    st.fixed_dictionaries(
        {}, optional={"text": st.just("the cat") | VALUES, "label": st.just("positive") | VALUES, "input_ids": VALUES}
    ).map(lambda record: json.dumps(record).encode()),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(lines=st.lists(LINES, max_size=3), end=st.sampled_from([b"\n", b"\r\n", b""]))
def test_any_bytes_get_a_decided_answer(
    make_artifact: MakeArtifact, tmp_path: Path, lines: list[bytes], end: bytes
) -> None:
    path = tmp_path / "any.jsonl"
    path.write_bytes(b"\n".join(lines) + end)
    found = load_or_refuse(path, make_artifact())
    if isinstance(found, DataError):
        assert "\n" not in str(found)
        assert str(path) in str(found)
    else:
        assert len(found) == found.offsets.size - 1 >= 1


def load_or_refuse(path: Path, artifact: Artifact) -> Dataset | DataError:
    try:
        return load_examples(path, artifact, 8)
    except DataError as error:
        return error


def test_long_lists_of_tokens_do_not_wait_for_others(
    make_artifact: MakeArtifact, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A board's memory holds a bounded number of letters or tokens that were not put away yet."""
    waiting: list[int] = []
    add = data._Loader._add

    def count(loader: Any, some: Any) -> None:
        waiting.append(len(some))
        add(loader, some)

    monkeypatch.setattr(data, "_CHARACTERS_AT_ONCE", 100)
    monkeypatch.setattr(data._Loader, "_add", count)
    assert len(examples(write(*[{"input_ids": [4] * 60, "label": 1}] * 6), make_artifact(), 3)) == 6
    assert max(waiting) == 2
