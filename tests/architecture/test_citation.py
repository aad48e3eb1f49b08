"""CITATION.cff says of the project what pyproject.toml says, and can be read by what reads such files."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[2]


def cited() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    return found


def test_version_licence_and_keywords_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = cited()
    assert (found["version"], found["license"]) == (project["version"], project["license"])
    assert found["keywords"] == project["keywords"]


def test_every_field_that_the_format_asks_for_is_there() -> None:
    """Of version 1.2.0: the root's required keys, and of each reference ``authors``, ``title`` and ``type``."""
    found = cited()
    assert found["cff-version"] == "1.2.0"
    assert found["type"] == "software"
    assert found["authors"] == [{"name": "The FedSpine authors"}]
    assert all(isinstance(found[name], str) for name in ("message", "title", "abstract", "version", "license"))
    papers = {one["url"].rpartition("/")[2]: one for one in found["references"]}
    assert list(papers) == ["2501.02438", "2502.10239", "2506.02940"]
    for number, paper in papers.items():
        assert paper["type"] == "article"
        assert paper["title"]
        assert all(author.keys() == {"given-names", "family-names"} for author in paper["authors"])
        assert paper["identifiers"] == [{"type": "other", "value": f"arXiv:{number}"}]
