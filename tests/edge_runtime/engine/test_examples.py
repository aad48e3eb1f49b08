"""The one reader of examples: what it takes, what it leaves out, and the words in which it refuses."""

from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.engine.errors import DataEmptyError, DataError, DataInvalidError
from edge_runtime.engine.examples import Example, ExampleReader, Fields, read_texts

LABELLED = Fields(label="label", key="site")
WORD = '{"text": "caf\u00e9 \u2013 cr\u00e8me", "label": "a"}'
MANY = "".join(f'{{"text": "Tee f\u00fcr {n} \u2013 zwei", "label": "a"}}\r\n' for n in range(9))
POLISH = '{"text": "za\u017c\u00f3\u0142\u0107 g\u0119\u015bl\u0105 ja\u017a\u0144", "label": "a"}\n'
GREEK = '{"text": "\u03ba\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1 \u03ba\u03cc\u03c3\u03bc\u03b5", "label": "a"}\n'


def write(path: Path, data: bytes | str, name: str = "data.jsonl") -> Path:
    target = path / name
    target.write_bytes(data if isinstance(data, bytes) else data.encode())
    return target


def read(path: Path, fields: Fields = Fields(label="label")) -> list[Example]:  # noqa: B008 - immutable
    return list(ExampleReader(path, fields))


def row(**changes: object) -> str:
    return json.dumps({"text": "tea", "label": "a", "site": "x"} | changes) + "\n"


@pytest.mark.parametrize(
    "data",
    [
        WORD.encode("utf-8-sig"),
        f"\r\n{WORD}\r\n  \r\n".encode(),
        f"\n\n{WORD}".encode(),
        f" {WORD}\t\n".encode(),
        b'{"text": "caf\\u00e9 \\u2013 cr\\u00e8me", "label": "a", "score": NaN, "other": [-Infinity, 1e999]}',
        f'{{"x": 1, "x": 2, {WORD[1:]}'.encode(),
        f'{{"input_ids": null, {WORD[1:]}'.encode(),
        f'{{"odd": "\\ud800", {WORD[1:]}'.encode(),
    ],
    ids=["mark", "crlf-blank", "no-end", "blanks", "nan-unused", "unused-twice", "null-ids", "surrogate-unused"],
)
def test_what_does_no_harm_is_read(tmp_path: Path, data: bytes) -> None:
    (example,) = read(write(tmp_path, data))
    assert (example.text, example.label) == ("caf\u00e9 \u2013 cr\u00e8me", "a")


def test_files_with_marks_may_be_joined(tmp_path: Path) -> None:
    piece = f"{WORD}\n".encode("utf-8-sig")
    assert [example.line for example in read(write(tmp_path, piece * 2))] == [1, 2]


@pytest.mark.parametrize(
    ("label", "read_as"),
    [("a", "a"), ("a ", "a"), ("\ta\n", "a"), (1, 1), (1.0, 1), (-0.0, 0), (-1, -1), ("1", "1"), ("1.0", "1.0")],
    ids=repr,
)
def test_labels(tmp_path: Path, label: object, read_as: object) -> None:
    (example,) = read(write(tmp_path, row(label=label)))
    assert example.label == read_as
    assert type(example.label) is type(read_as)


@pytest.mark.parametrize(("key", "read_as"), [("x", "x"), (7, "7"), (7.0, "7"), (True, "true")], ids=repr)
def test_keys(tmp_path: Path, key: object, read_as: str) -> None:
    (example,) = read(write(tmp_path, row(site=key)), LABELLED)
    assert example.key == read_as


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (row(text=None), "has null in 'text', where a value is needed"),
        (row(text=5), "has the number 5 in 'text', expected a text"),
        (row(text=float("nan")), "has NaN .no number. in 'text'"),
        (row(text=["a", "b"]), "has a list in 'text'"),
        (row(text={"a": 1}), "has an object in 'text'"),
        (row(text="\ud800"), "has half of a surrogate pair in 'text'"),
        (row(label=None), "has null in 'label'"),
        (
            row(label=True),
            "has true in 'label', expected a class name or a whole number: write a name, such as \"true\"",
        ),
        (row(label=0.5), "has the number 0.5 in 'label'"),
        (row(label=1e300), r"has the number 1e\+300 in 'label'"),
        (row(label=float("nan")), "has NaN .no number. in 'label'"),
        (row(label=float("-inf")), "has the number -inf in 'label'"),
        (row(label=["a"]), "has a list in 'label'.*one label"),
        (row(label=""), "has an empty text in 'label'"),
        (row(label=" \t"), "has an empty text in 'label'"),
        (row(label="a\x1b[2Jb"), r"has the text 'a\\x1b\[2Jb' in 'label', which is not a class name"),
        (row(label="a\0"), "which is not a class name"),
        (row(label="word " * 100), "at most 200 letters"),
        (row(label="\udfff"), "surrogate pair in 'label'"),
        (row(site=None), "has null in 'site'"),
        (row(site=float("nan")), "has NaN .no number. in 'site'"),
        (row(site=[1]), "has a list in 'site'"),
        (row(site="\ud800"), "surrogate pair in 'site'"),
        ('{"body": "x", "label": "a"}\n', "has no field 'text'; its fields are 'body', 'label': rename"),
        ('{"text": "x", "site": "a"}\n', "has no field 'label'; its fields are 'text', 'site': rename"),
        ("{}\n", "has no field 'text'; it has no fields at all"),
        ('{"text": "x", "text": "y", "label": "a"}\n', "has the field 'text' more than once"),
        ('{"text": "x", "label": "a", "label": "a"}\n', "has the field 'label' more than once"),
        ('{"messages": [{"role": "user"}]}\n', "its fields are 'messages': chat data .*apply_chat_template"),
        ('{"conversations": []}\n', "chat data"),
        ('{"prompt": "x", "completion": "y"}\n', "join 'prompt' and 'completion' to one text"),
        (row(input_ids="1 2"), "has the text '1 2' in 'input_ids', expected a list of whole numbers"),
        (row(input_ids=[1, 2.0]), "expected a list of whole numbers"),
        (row(input_ids=[True]), "expected a list of whole numbers"),
        (row(input_ids=[[1]]), "expected a list of whole numbers"),
        (row(input_ids=[1, -1]), "has the token id -1 in 'input_ids', which is outside every vocabulary"),
        (row(input_ids=[2**31]), "outside every vocabulary"),
        ("null\n", "holds null, expected one JSON object"),
        ("3\n", "holds the number 3"),
        ("[1, 2]\n", "holds a list"),
        ("{\n", "begins a JSON object and does not end it"),
        ('{"text": "tea', "is cut off: the file ends within it"),
        ('{"text": "tea", "label"', "is cut off"),
        (b'{"text": "caf\xc3', "is cut off"),
        (row().strip() + row(), "holds more than one JSON value, the second at column"),
        ("{'text': 'tea'}\n", "is not JSON but as Python prints a dict"),
        (row().strip() + ",\n", "has a comma after its JSON value"),
        (row().strip() + "\r" + row(), "holds more than one JSON value.*line ends are CR alone"),
        ('{"dialogue": [{"from": "human", "value": "x"}]}\n', "chat data .'dialogue'. is not read"),
        (row(text=[{"role": "user", "content": "x"}]), "has a list in 'text', expected a text: chat data"),
        ('{"premise": "x", "hypothesis": "y"}\n', "join 'premise' and 'hypothesis' to one text"),
        ("plain text\n", "is not JSON"),
        ('{"text": "a\tb"}\n', "is not JSON .Invalid control character"),
        (b"\0\0\0\0\n", "holds NUL bytes"),
        ('{"a": ' * 100_000 + "\n", "is nested too deep"),
        ('{"a": ' + "1" * 5000 + "}\n", "holds a number of too many digits"),
        (
            b'{"text": "caf\xe9", "label": "a"}\n',
            r"is not UTF-8 \(its byte 14 is 0xe9\) but, as it seems, Windows-1252",
        ),
        (b'{"text": "caf\xc3\xa9 caf\xe9", "label": "a"}\n', "is not UTF-8 .* damaged"),
        (b'{"text": "\xed\xa0\x80", "label": "a"}\n', "is not UTF-8"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str | bytes, fault: str) -> None:
    data = row().encode() + b"\n" + (line if isinstance(line, bytes) else line.encode())
    with pytest.raises(DataInvalidError, match=r"data\.jsonl: line 3 .*" + fault) as caught:
        read(write(tmp_path, data), LABELLED)
    assert "\n" not in str(caught.value)
    assert "NoneType" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("d.jsonl", MANY.encode("utf-16"), "not UTF-8 but UTF-16: .*`iconv -f UTF-16 -t UTF-8 d.jsonl > d.utf8.jsonl`"),
        ("d.jsonl", MANY.encode("utf-16-be"), "not UTF-8 but UTF-16BE: .*iconv -f UTF-16BE -t UTF-8"),
        ("d.jsonl", MANY.encode("utf-16-le"), "not UTF-8 but UTF-16LE: .*iconv -f UTF-16LE -t UTF-8"),
        ("d.jsonl", MANY.encode("utf-32"), "not UTF-8 but UTF-32"),
        ("d.jsonl", MANY.encode("cp1252"), "line 1 is not UTF-8 .*iconv -f WINDOWS-1252 -t UTF-8 d.jsonl"),
        ("d.jsonl", MANY.encode("latin-1", "ignore"), "iconv -f WINDOWS-1252"),
        ("d.jsonl", POLISH.encode("cp1250"), "line 1 is not UTF-8 .*iconv -f ENCODING -t UTF-8"),
        ("d.jsonl", GREEK.encode("iso8859-7"), "line 1 is not UTF-8 .*iconv -f ENCODING -t UTF-8"),
        ("d.jsonl", '{"text": "\u65e5\u672c\u8a9e", "label": "a"}'.encode("shift_jis"), "iconv -f ENCODING"),
        ("a b.jsonl.gz", gzip.compress(MANY.encode(), mtime=0), "packed with gzip: .*gunzip -k 'a b.jsonl.gz'`"),
        ("d.parquet", b"PAR1\x15\x04PAR1", 'Parquet .*read_parquet."d.parquet"..to_json."d.jsonl"'),
        ("d.xlsx", b"PK\x03\x04\x14\x00", "a spreadsheet.*read_excel"),
        ("d.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel or Word file of the old kind.*as JSON lines"),
        ("d.zip", b"PK\x03\x04\x14\x00", "packed with zip: .*unzip d.zip"),
        ("d.tar", bytes(257) + b"ustar\x0000", "tar archive"),
        ("d.bin", b"\x01\x02\x03\x04abc\n", "the file is binary"),
        ("d.npz", b"\x00" * 64, "the file is binary"),
        ("d.jsonl", b"version https://git-lfs.github.com/spec/v1\noid", "pointer of Git LFS"),
        ("d.jsonl", b"<!DOCTYPE html><html>", "HTML"),
        ("d.pkl", b"\x80\x04\x95\x00", "pickle"),
        ("d.csv", "text,label\ntea,a\n", "CSV .columns 'text', 'label'.*read_csv.+d.csv"),
        ("d.csv", "text\ntea\n", "CSV .columns 'text'"),
        ("d.tsv", "text\tlabel\ntea\ta\n", 'TSV .columns .*read_csv."d.tsv", sep="'),
        ("d.txt", "text;label\ntea;a\n", "CSV with semicolons"),
        ("d.json", '[{"text": "tea", "label": "a"}]', "JSON array.*jq -c '.+' d.json > d.jsonl"),
        ("d.json", '[\n  {"text": "tea"}\n]\n', "JSON array"),
        ("d.json", '{\n  "text": "tea"\n}\n', "line 1 begins a JSON object"),
        ("d.txt", "Hello, world. This is prose.\n", "line 1 is not JSON"),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_a_file_of_another_kind_is_named_with_what_to_do(
    tmp_path: Path, name: str, data: bytes | str, kind: str
) -> None:
    with pytest.raises(DataInvalidError, match=kind) as caught:
        read(write(tmp_path, data, name))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_advice_to_convert_is_right(tmp_path: Path) -> None:
    data = MANY.encode("cp1252")
    assert data.decode("WINDOWS-1252").encode() == MANY.encode()
    path = write(tmp_path, data.decode("WINDOWS-1252").encode())
    assert len(read(path)) == 9


@pytest.mark.parametrize(
    "labels", [[1, "a"], ["a", 1], ["2", "a", 3.0], ["1.5", 1, "one"]], ids=lambda value: "-".join(map(str, value))
)
def test_numbers_and_names_are_not_mixed(tmp_path: Path, labels: list[object]) -> None:
    with pytest.raises(DataInvalidError, match=f"line {len(labels)} has the label .*give numbers or names, not both"):
        read(write(tmp_path, "".join(row(label=label) for label in labels)))


def test_numbers_may_be_written_as_text(tmp_path: Path) -> None:
    data = "".join(row(label=label) for label in [1, "1", "2", 2.0])
    assert [example.label for example in read(write(tmp_path, data))] == [1, "1", "2", 2]


def test_empty_examples_are_left_out_with_one_warning(tmp_path: Path) -> None:
    rows = [row(), row(text=""), row(text=" \u3000\n"), row(input_ids=[]), row(text="\0")]
    reader = ExampleReader(write(tmp_path, "".join(rows)), LABELLED)
    assert [example.line for example in reader] == [1, 5]
    (warning,) = reader.warnings()
    assert "3 examples have an empty text and are left out, first line 2" in warning


@pytest.mark.parametrize("data", ["", "\n \r\n", "\ufeff", row(text="")], ids=["empty", "blank", "mark", "no-word"])
def test_a_file_without_examples(tmp_path: Path, data: str) -> None:
    with pytest.raises(DataEmptyError, match=r"holds no example.*expected one JSON object a line with 'text'"):
        read(write(tmp_path, data))


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, fault in (
        (tmp_path / "none", "does not exist: give a file"),
        (tmp_path, "is a directory: give a file"),
        (tmp_path / "pipe", "is a pipe or a device"),
        (Path("/dev/null"), "is a pipe or a device"),
        (tmp_path / "a\0b", "cannot be read"),
        (tmp_path / ("x" * 5000), "cannot be read"),
        (write(tmp_path, "") / "below", "cannot be read"),
    ):
        with pytest.raises(DataInvalidError, match=fault) as caught:
            read(path)
        assert "\0" not in str(caught.value)


def test_advice_names_the_option_where_there_is_one(tmp_path: Path) -> None:
    fields = Fields(text="body", text_advice="name it with --text-field")
    with pytest.raises(DataInvalidError, match=r"has no field 'body'; its fields are .*: name it with --text-field"):
        read(write(tmp_path, row()), fields)


def test_texts_of_a_stream_keep_empty_ones() -> None:
    stream = io.BytesIO(b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": ""}\n{"text": 7}\n')
    texts = read_texts(stream, None)
    assert [next(texts), next(texts)] == ["a", ""]
    with pytest.raises(DataInvalidError, match="standard input: line 4 has the number 7, expected a text in 'text'"):
        next(texts)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(cut=st.integers(0, 200), at=st.integers(0, 200), byte=st.integers(0, 255), is_wide=st.booleans())
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, cut: int, at: int, byte: int, *, is_wide: bool) -> None:
    data = bytearray(f"{WORD}\r\n{row(label='b')}".encode("utf-16" if is_wide else "utf-8")[:cut])
    if at < len(data):
        data[at] = byte
    found = read_or_refuse(write(tmp_path, bytes(data)))
    assert found
    assert "\n" not in str(found)


def read_or_refuse(path: Path) -> list[int] | DataError:
    try:
        return [example.line for example in read(path)]
    except DataError as error:
        return error
