"""The TOML files that documents show are read by the code that reads such files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from broker_server.config import CoordinatorConfig
from broker_server.emulation.fleet import parse_fleet
from broker_server.experiments.compare.config import Comparison

DOCS = Path(__file__).resolve().parents[4] / "docs"


def example(document: str) -> str:
    text = (DOCS / document).read_text(encoding="utf-8")
    (found,) = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return str(found)


def test_configuration_of_a_coordinator() -> None:
    assert CoordinatorConfig.from_toml(example("server.md")).test_file == "test.jsonl"


def test_classes_of_a_fleet() -> None:
    assert parse_fleet(example("emulation.md"), "the document").dealt(["device-1"]).members == {"device-1": "tx2"}


@pytest.mark.parametrize("quick", [False, True], ids=["whole", "quick"])
def test_comparison(tmp_path: Path, *, quick: bool) -> None:
    path = tmp_path / "comparison.toml"
    path.write_text(example("compare.md"), encoding="utf-8")
    methods = {method.name for method in Comparison.load(path, quick=quick).methods}
    assert methods == {"fedspine", "fedit", "fedspine+drift", *(() if quick else ("mine",))}
