"""Data files: what is refused, and how."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.errors import DataEmptyError, DataInvalidError, UnknownLabelError
from broker_server.run.examples import DataSet, Fields, hold_out, load_data, read_examples, write_examples
from broker_server.run.preparation import named_classes

CLASSES = Fields(label="label")


def _file(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def test_numbers_of_the_models_classes_become_their_names() -> None:
    data = DataSet(train=[{"text": "a", "label": "1"}], test=[{"text": "b", "label": "0"}], labels=("0", "1"))

    named = named_classes(data, ("no", "yes"))

    assert (named.train[0]["label"], named.test[0]["label"], named.labels) == ("yes", "no", ("no", "yes"))
    assert named_classes(data, ("1", "0")) == data  # here they are names


def test_fields_are_renamed_and_labels_become_text(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.jsonl", {"body": "good", "stars": 5, "site": "x"}, "", {"body": "bad", "stars": 1})

    assert read_examples(path, Fields(text="body", label="stars")) == [
        {"text": "good", "label": "5", "site": "x"},
        {"text": "bad", "label": "1"},
    ]


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "x"}\r\n')

    assert read_examples(path, Fields()) == [{"text": "x"}]


def test_tokens_are_taken_in_place_of_text(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.jsonl", {"input_ids": [1, 2, 3]})

    assert read_examples(path, Fields()) == [{"input_ids": [1, 2, 3]}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: expected a JSON object, got list"),
        ({"label": "a"}, "field 'text' must hold text, got NoneType"),
        ({"text": 3, "label": "a"}, "field 'text' must hold text, got int"),
        ({"text": "x"}, "field 'label' must hold text or a whole number, got NoneType"),
        ({"text": "x", "label": True}, "field 'label' must hold text or a whole number, got bool"),
    ],
    ids=["not-json", "not-object", "no-text", "text-number", "no-label", "label-bool"],
)
def test_a_bad_line_is_refused_with_its_place(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(DataInvalidError, match=message):
        read_examples(_file(tmp_path / "a.jsonl", row), CLASSES)


@given(data=st.binary(max_size=200))
def test_any_bytes_get_a_decided_answer(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.jsonl"
    path.write_bytes(data)
    try:
        examples = read_examples(path, CLASSES)
    except (DataInvalidError, DataEmptyError):
        return
    write_examples(path, examples)
    assert read_examples(path, CLASSES) == examples


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataInvalidError, match="cannot be read: No such file"):
        read_examples(tmp_path / "none.jsonl", CLASSES)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataEmptyError, match="holds no example"):
        read_examples(_file(tmp_path / "a.jsonl", ""), CLASSES)


def test_a_held_out_label_that_training_lacks_is_refused(tmp_path: Path) -> None:
    data = _file(tmp_path / "train.jsonl", {"text": "x", "label": "a"}, {"text": "y", "label": "b"})
    test = _file(tmp_path / "test.jsonl", {"text": "x", "label": "c"})

    with pytest.raises(UnknownLabelError, match=r"example 1: label 'c' is in no training example"):
        load_data(data, test, CLASSES, np.random.default_rng(0))


def test_held_out_examples_are_not_trained_on() -> None:
    examples: list[dict[str, object]] = [{"text": str(n)} for n in range(50)]

    train, test = hold_out(examples, np.random.default_rng(0))

    assert len(test) == 5
    assert sorted([*train, *test], key=lambda e: int(str(e["text"]))) == examples


def test_one_example_cannot_be_divided() -> None:
    with pytest.raises(DataEmptyError, match="give --test"):
        hold_out([{"text": "x"}], np.random.default_rng(0))
