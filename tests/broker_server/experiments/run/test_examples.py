"""Data files: what is refused, and how."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker_server.errors import ConfigError
from broker_server.experiments.run.examples import DataSet, hold_out, load_data, read_examples, write_examples
from broker_server.experiments.run.job import data_lines
from broker_server.experiments.run.preparation import named_classes
from broker_server.experiments.run.resolve import resolve
from edge_runtime.agent.precheck import count_examples
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.errors import DataEmptyError, DataError, DataInvalidError, UnknownLabelError
from edge_runtime.engine.examples import Fields

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
        {"text": "good", "label": "5"},
        {"text": "bad", "label": "1"},
    ]


def test_a_field_to_split_by_is_kept_whatever_its_name(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "a.jsonl", {"body": "good", "text": 7.0, "label": 1.0}, {"body": "bad", "text": "x", "label": 0}
    )

    assert read_examples(path, Fields(text="body", label="label", key="text")) == [
        {"text": "good", "label": "1", "key": "7"},
        {"text": "bad", "label": "0", "key": "x"},
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
        ("{", "line 1 begins a JSON object"),
        ("[1]", "line 1 holds a list"),
        ({"label": "a"}, "line 1 has no field 'text'; its fields are 'label'"),
        ({"text": 3, "label": "a"}, "line 1 has the number 3 in 'text'"),
        ({"text": "x"}, "line 1 has no field 'label'; its fields are 'text'"),
        ({"text": "x", "label": True}, "line 1 has true in 'label'"),
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
    with pytest.raises(DataInvalidError, match="does not exist"):
        read_examples(tmp_path / "none.jsonl", CLASSES)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataEmptyError, match="holds no example"):
        read_examples(_file(tmp_path / "a.jsonl", ""), CLASSES)


def test_a_held_out_label_that_training_lacks_is_refused(tmp_path: Path) -> None:
    data = _file(tmp_path / "train.jsonl", {"text": "x", "label": "a"}, {"text": "y", "label": "b"})
    test = _file(tmp_path / "test.jsonl", {"text": "x", "label": "c"})

    with pytest.raises(
        UnknownLabelError, match=r"test\.jsonl: line 1 has the label 'c', which the training data .* known: a, b$"
    ):
        load_data(data, test, CLASSES, np.random.default_rng(0))


def test_held_out_examples_are_not_trained_on() -> None:
    examples: list[dict[str, object]] = [{"text": str(n)} for n in range(50)]

    train, test = hold_out(examples, np.random.default_rng(0))

    assert len(test) == 5
    assert sorted([*train, *test], key=lambda e: int(str(e["text"]))) == examples


def test_one_example_cannot_be_divided() -> None:
    with pytest.raises(DataEmptyError, match="give --test"):
        hold_out([{"text": "x"}], np.random.default_rng(0))


LABELS = {
    "text": (["1", "2", "10"] * 9, ("1", "2", "10")),
    "signs": ([-2, -1, 0.0, 1] * 6, ("-2", "-1", "0", "1")),
    "blanks": (["a", "a ", "b"] * 8, ("a", "b")),
    "case": (["Spam", "spam", "Ham"] * 8, ("Ham", "Spam", "spam")),
    "halves": (["0.5", "1.5"] * 8, ("0.5", "1.5")),
    "stars": (["5 stars", "4 stars"] * 8, ("4 stars", "5 stars")),
}


@pytest.mark.parametrize(("labels", "classes"), LABELS.values(), ids=list(LABELS))
def test_classes(tmp_path: Path, labels: list[object], classes: tuple[str, ...]) -> None:
    data = _file(tmp_path / "d.jsonl", *({"text": f"row {n}", "label": label} for n, label in enumerate(labels)))

    assert load_data(data, None, CLASSES, np.random.default_rng(0)).labels == classes


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        (["Spam", "spam", "Ham"] * 8, "classes 'Spam' (8 examples) and 'spam' (8 examples) are kept apart"),
        (["cafe\u0301", "caf\u00e9", "tea"] * 8, "differ only in case, blanks or form"),
        (["1", "1.0", "2"] * 8, "classes '1' (8 examples) and '1.0' (8 examples)"),
        ([f"row {n}" for n in range(30)], "'label' has 30 different values in 30 examples"),
    ],
    ids=["case", "accent", "number", "no-class"],
)
def test_classes_that_look_wrong_are_warned_of(tmp_path: Path, labels: list[str], part: str) -> None:
    data = _file(tmp_path / "d.jsonl", *({"text": f"row {n}", "label": label} for n, label in enumerate(labels)))
    test = _file(tmp_path / "t.jsonl", {"text": "row", "label": labels[0]}, {"text": "", "label": labels[0]})

    first, second = load_data(data, test, CLASSES, np.random.default_rng(0)).warnings

    assert part in first
    assert second == f"{test}: 1 example has an empty text and is left out, first line 2"


def test_a_run_says_what_its_devices_hold_back() -> None:
    train: list[dict[str, object]] = [{"text": "x", "label": "a"}] * 9
    data = DataSet(train=train, test=train[:2], labels=("a", "b"), warnings=("d.jsonl: odd",))

    warning, sizes, held_back = data_lines(data, 3)

    assert warning == "warning: d.jsonl: odd"
    assert sizes == "9 training and 2 held-out examples, 2 classes, over 3 devices"
    assert held_back.startswith("each device holds back up to 32 of its examples, at most a fifth")


def test_one_class_is_nothing_to_learn(tmp_path: Path) -> None:
    data = _file(tmp_path / "d.jsonl", *({"text": f"row {n}", "label": 1} for n in range(9)))

    with pytest.raises(DataInvalidError, match="all 9 examples have the label '1' in 'label'"):
        load_data(data, None, CLASSES, np.random.default_rng(0))


def test_a_class_of_one_example_is_trained_on() -> None:
    examples: list[dict[str, object]] = [{"text": str(n), "label": str(n % 10)} for n in range(11)]

    for seed in range(20):
        train, test = hold_out(examples, np.random.default_rng(seed))
        assert {example["label"] for example in train} == {str(n) for n in range(10)}
        assert len(test) == 1


def test_where_every_class_has_one_example_none_can_be_held_out() -> None:
    with pytest.raises(DataEmptyError, match="each of 9 examples is alone in its class"):
        hold_out([{"text": "x", "label": str(n)} for n in range(9)], np.random.default_rng(0))


def test_a_test_file_that_is_trained_on_is_warned_of(tmp_path: Path) -> None:
    data = _file(tmp_path / "d.jsonl", {"text": "x", "label": "a"}, {"text": "y", "label": "b"})
    other = tmp_path / "link.jsonl"
    other.symlink_to(data)

    (warning,) = load_data(data, other, CLASSES, np.random.default_rng(0)).warnings

    assert "figures are of examples that are trained on" in warning


def test_a_number_is_no_index_of_names_in_another_file(tmp_path: Path) -> None:
    data = _file(tmp_path / "d.jsonl", {"text": "x", "label": "a"}, {"text": "y", "label": "b"})
    test = _file(tmp_path / "t.jsonl", {"text": "x", "label": 1})

    with pytest.raises(UnknownLabelError, match="line 1 has the label 1, which the training data does not have"):
        load_data(data, test, CLASSES, np.random.default_rng(0))


def test_a_number_is_the_class_of_the_same_value(tmp_path: Path) -> None:
    data = _file(tmp_path / "d.jsonl", {"text": "x", "label": "1.0"}, {"text": "y", "label": "0.0"})
    test = _file(tmp_path / "t.jsonl", {"text": "x", "label": 1})

    assert load_data(data, test, CLASSES, np.random.default_rng(0)).test == [{"text": "x", "label": "1.0"}]


def test_docstrings_are_split_by_nothing_else() -> None:
    with pytest.raises(ConfigError, match="the docstrings have the field 'key' alone, not 'site'"):
        load_data(None, None, Fields(key="site"), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"split": "by-key:site"}, ("text", None, "site")),
        ({"split": "dirichlet:1", "label_field": "topic", "data": "d"}, ("text", None, "topic")),
        ({"task": "text-classification", "model": "m", "data": "d", "split": "dirichlet:1"}, ("text", "label", None)),
        ({"data": "d", "text_field": "body"}, ("body", None, None)),
    ],
    ids=["by-key", "topic", "classes", "iid"],
)
def test_settings_say_which_fields_are_needed(options: dict[str, str], fields: tuple[str | None, ...]) -> None:
    assert resolve(options).fields[:3] == fields


SAME_FOR_ALL = [
    b'{"text": "tea", "label": "red", "score": NaN}',
    b'{"text": "tea", "label": 1.0}',
    b'{"text": "tea", "label": "red "}',
    b'\xef\xbb\xbf{"text": "tea", "label": "red"}\r\n\r\n{"text": "", "label": "red"}\r\n',
    '{"text": "tea", "label": "red"}\n'.encode("utf-16"),
    b'{"text": "caf\xe9", "label": "red"}\n',
    b'{"text": "tea", "text": "tea", "label": "red"}',
    b'{"text": "\\ud800", "label": "red"}',
    b'{"text": NaN, "label": "red"}',
    b'{"text": null, "label": "red"}',
    b'{"messages": [], "label": "red"}',
    b'{"input_ids": [1, -1], "label": "red"}',
    b'[{"text": "tea", "label": "red"}]',
    b"text,label\ntea,red\n",
    b'{"text": "tea", "label": "red"',
    b'{"text": "tea", "label": "red"}\n\0\0\0',
    b"",
]


@pytest.mark.parametrize("data", SAME_FOR_ALL, ids=lambda data: ascii(data)[2:40])
def test_run_device_and_precheck_say_the_same(tmp_path: Path, tiny_bert_artifact: Path, data: bytes) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(data)
    artifact = Artifact.open(tiny_bert_artifact)

    answers = [
        _answer(lambda: len(read_examples(path, CLASSES))),
        _answer(lambda: len(load_examples(path, artifact, 8))),
        _answer(lambda: count_examples(path)),
    ]

    assert answers[0] == answers[1]
    assert answers[2].removesuffix(EXPECTED) == answers[0].removesuffix(f"{EXPECTED} and 'label'")


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=3,
)
RECORDS = st.fixed_dictionaries(
    {"text": st.sampled_from(["tea", " "]) | ODD, "label": st.sampled_from(["red", " green", 0, 2.0]) | ODD},
    optional={"input_ids": ODD | st.lists(st.integers(-1, 9), max_size=3), "score": ODD},
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(records=st.lists(RECORDS, max_size=3), encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]))
def test_run_and_device_agree_on_any_records(
    tmp_path: Path, tiny_bert_artifact: Path, records: list[dict[str, Any]], encoding: str
) -> None:
    """The device takes what the run takes, except classes and tokens that the artifact lacks; errors are alike."""
    path = tmp_path / "d.jsonl"
    text = "".join(json.dumps(record, ensure_ascii=encoding != "utf-8") + "\n" for record in records)
    path.write_bytes(text.encode(encoding, "surrogatepass"))
    artifact = Artifact.open(tiny_bert_artifact)
    run, device = (
        _answer(lambda: len(read_examples(path, CLASSES))),
        _answer(lambda: len(load_examples(path, artifact, 8))),
    )
    ids = [one for record in records if isinstance(one := record.get("input_ids"), list)]
    size = artifact.manifest.text.vocab_size
    is_beyond = any(isinstance(one, int) and one >= size for each in ids for one in each)
    known_to_artifacts = ["the artifact does not have", "names or indices"]
    known_to_artifacts += ["outside the vocabulary"] if is_beyond else []
    assert run == device or any(fault in device for fault in known_to_artifacts)
    if run.isdecimal():
        written = tmp_path / "written.jsonl"
        write_examples(written, read_examples(path, CLASSES))
        assert _answer(lambda: len(read_examples(written, CLASSES))) == run


EXPECTED = "; expected one JSON object a line with 'text' (or 'input_ids')"


def _answer(read: Callable[[], int]) -> str:
    try:
        return str(read())
    except DataError as error:
        return str(error)
