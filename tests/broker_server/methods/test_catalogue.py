"""``fedspine methods``: all methods, those of installed packages too, and one that cannot be used harms no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from broker_server import cli
from broker_server.methods import catalogue
from broker_server.methods.presets import PRESETS
from broker_server.methods.registry import WORKS

DOCS = Path(__file__).resolve().parents[3] / "docs"


def _install(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    info = folder / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fedspine.methods]\nbroken = outside_methods:GONE\nmine = outside_methods:MINE\n"
    )
    (folder / "outside_methods.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))


def test_every_method_is_listed_with_what_it_is_and_asks(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["methods", "--json"]) == 0

    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert list(found) == list(PRESETS)
    assert all(
        entry["about"] and entry["label"] and entry["asks"] == WORKS[entry["work"]].asks for entry in found.values()
    )
    assert found["fedit"]["source"] == "arXiv 2305.05644"


def test_the_list_fits_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "72")

    assert cli.call(["methods"]) == 0

    lines = capsys.readouterr().out.splitlines()
    listed = lines[: lines.index("")]
    assert [line.split()[0] for line in listed if not line.startswith(" ")] == list(PRESETS)
    assert max(map(len, listed)) <= 72


def test_methods_of_packages_are_listed_and_a_broken_one_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(
        tmp_path,
        monkeypatch,
        "from broker_server.methods.presets import Preset\n"
        "MINE = Preset(label='Mine', about='of my own', settings=lambda shared: {'arms': shared.unpruned})\n",
    )

    found = {entry.name: entry for entry in catalogue.entries()}

    assert [*found][-2:] == ["broken", "mine"]
    assert (found["mine"].package, found["mine"].about, found["mine"].error) == ("outside", "of my own", "")
    assert found["broken"].error.startswith("method 'broken' of the package outside cannot be imported (AttributeError")
    text = catalogue.as_text([*found.values()], 200)
    assert "mine           Mine: of my own. Work: lora. Package: outside." in text
    assert "broken         cannot be used: method 'broken'" in text


def test_docs_compare_names_every_method() -> None:
    text = (DOCS / "compare.md").read_text(encoding="utf-8")

    assert not [name for name in PRESETS if f"`{name}`" not in text]
