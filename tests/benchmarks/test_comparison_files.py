"""The comparison files of docs/results.md: whoever has the checkout can run them as printed."""

from __future__ import annotations

import itertools
import json
import re
import runpy
from pathlib import Path

import pytest
import transformers

from broker_server.emulation.fleet import load_fleet
from broker_server.experiments.compare.config import Comparison

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "compare"
FILES = sorted(path.name for path in FOLDER.glob("*.toml"))
PREPARE = runpy.run_path(str(FOLDER / "prepare.py"))


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("quick", [False, True])
def test_a_file_can_be_played_and_says_how(name: str, *, quick: bool) -> None:
    comparison = Comparison.load(FOLDER / name, quick=quick)
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines(keepends=True)
    head = "".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
    command = f"fedspine compare benchmarks/compare/{name}"
    assert command in head
    results = (FOLDER.parents[1] / "docs" / "results.md").read_text(encoding="utf-8")
    assert f"{command} --out OUT" in results or name == "quick.toml"
    for key in comparison.run_keys:
        settings = comparison.settings(key)
        assert settings.emulate == "jetson" or load_fleet(FOLDER.parents[1] / settings.emulate).classes
        for path in filter(None, (settings.model, settings.data, settings.test)):
            made = path if path == settings.model else str(Path(path).parent)
            assert re.search(rf"prepare\.py \w+ .*--to {re.escape(made)}\n", head), f"nothing says where {path} is from"


def test_ag_news_is_cut_as_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    labels = ("World", "Sports", "Business", "Sci/Tech")
    train.write_text(
        "".join(f'"{k % 4 + 1}","Title {k}","He said ""{k}"", and left"\n' for k in range(20)), encoding="utf-8"
    )
    test.write_text('"3","Fears","Unions, \\"\n"4","The","Ky. ü"\n', encoding="utf-8")

    PREPARE["agnews"](train, test, tmp_path / "out", num_train=7)

    made = rows(tmp_path / "out" / "train.jsonl")
    numbers = [int(re.findall(r"\d+", row["text"])[0]) for row in made]
    assert len(set(numbers)) == 7
    assert numbers != sorted(numbers)
    assert made == [{"text": f'He said "{k}", and left', "label": labels[k % 4]} for k in numbers]
    expected = [{"text": "Unions, \\", "label": "Business"}, {"text": "Ky. ü", "label": "Sci/Tech"}]
    assert rows(tmp_path / "out" / "test.jsonl") == expected
    assert "train.jsonl: 7 rows, SHA-256 " in capsys.readouterr().out
    again = tmp_path / "again"
    PREPARE["agnews"](train, test, again, num_train=7)
    assert (again / "train.jsonl").read_bytes() == (tmp_path / "out" / "train.jsonl").read_bytes()


def test_a_tenth_of_sst2_is_held_out(tmp_path: Path) -> None:
    train = tmp_path / "train.tsv"
    train.write_text("sentence\tlabel\n" + "".join(f'a "quote {k} \t{k % 2}\n' for k in range(30)), encoding="utf-8")

    PREPARE["main"](["sst2", str(train), "--to", str(tmp_path / "out")])

    kept, held_out = rows(tmp_path / "out" / "train.jsonl"), rows(tmp_path / "out" / "test.jsonl")
    assert (len(kept), len(held_out)) == (27, 3)
    texts = {f'a "quote {k}': ("negative", "positive")[k % 2] for k in range(30)}
    assert {row["text"]: row["label"] for row in kept + held_out} == texts


def test_the_model_is_kept_in_half_precision(tmp_path: Path, tiny_bert_model: Path) -> None:
    globals_of = PREPARE["model"].__globals__
    name, globals_of["MODEL"] = globals_of["MODEL"], str(tiny_bert_model)
    try:
        PREPARE["main"](["model", "--to", str(tmp_path / "model")])
    finally:
        globals_of["MODEL"] = name
    model = transformers.AutoModel.from_pretrained(tmp_path / "model", dtype="auto")
    assert str(model.dtype) == "torch.float16"
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "model")("hello")["input_ids"]
