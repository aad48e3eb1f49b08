"""Rules of the tree: sizes, names, docstrings, and that documents name files that exist."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.link.address import PASSWORD_VARIABLE

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
EMPTY_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "GLOSSARY.md",
    "docs/architecture.md",
    "docs/server.md",
    "docs/reliability.md",
)
SCRIPTS = (
    "setup",
    "test",
    "check",
    "docs",
    "test-device",
    "test-arm64",
    "test-ort-training",
    "setup-ort-training",
    "device-size",
    "device-wheel",
    "wheel",
)


def tracked(root: Path, *patterns: str) -> list[Path]:
    """Files of the working tree that git does not ignore."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(path for line in set(listing.stdout.splitlines()) if (path := root / line).is_file())


def test_no_file_is_long(root: Path) -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in tracked(root, "*.py")}
    assert lengths
    assert not {str(path.relative_to(root)): n for path, n in lengths.items() if n > MAX_FILE_LINES}


def test_no_function_is_long(root: Path) -> None:
    long = [
        f"{path.relative_to(root)}:{node.lineno} {node.name}"
        for path in tracked(root, "*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert not long


def test_no_file_has_a_name_that_says_nothing(root: Path) -> None:
    named = {part: path for path in tracked(root, "*.py") for part in path.relative_to(root).with_suffix("").parts}
    assert not {str(path.relative_to(root)) for part, path in named.items() if part in EMPTY_NAMES}


def test_every_module_says_what_it_is(trees: dict[str, ast.Module]) -> None:
    assert not [name for name, tree in trees.items() if not ast.get_docstring(tree)]


def test_every_folder_of_a_room_is_a_package(root: Path, rooms: list[str]) -> None:
    folders = {path.parent for room in rooms for path in tracked(root, f"{room}/*.py")}
    assert not [str(folder.relative_to(root)) for folder in folders if not (folder / "__init__.py").is_file()]


def test_every_room_is_typed_for_those_who_import_it(root: Path, rooms: list[str]) -> None:
    assert not [room for room in rooms if not (root / room / "py.typed").is_file()]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_of_a_document_lead_somewhere(root: Path, document: str) -> None:
    text = (root / document).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    missing = [link for link in links if not ((root / document).parent / link).exists()]
    assert not missing


def test_measured_figures_say_how_when_and_where(root: Path) -> None:
    """benchmarks/README.md: no figure without the command that reproduces it, the date and the machine."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted((root / "docs").glob("*.md"))}
    sections = re.split(r"^## ", texts[root / "docs" / "results.md"], flags=re.MULTILINE)[1:]
    commands = r"python -m benchmarks\.|fedspine (run|compare|export|bench)|scripts/"
    measured = [section for section in sections if re.search(commands, section)]
    assert len(measured) > 12
    assert [section for section in measured if section.startswith("Cost of an export")]
    needed = {
        "date": r"(?<![-\w])20\d\d-\d\d-\d\d(?!\.\w)",  # not that of a file
        "machine": r"\d (x86-64 |quiet )?cores|cores \d|emulated",
    }
    assert not [
        f"{section.splitlines()[0]}: no {fact}"
        for section in measured
        for fact, pattern in needed.items()
        if not re.search(pattern, section)
    ]
    assert not [path.name for path, text in texts.items() if re.search(r"^## Measured$", text, re.MULTILINE)], (
        "measured figures are in docs/results.md"
    )
    modules = re.findall(r"python -m (benchmarks\.\w+)", "".join(texts.values()))
    assert not [module for module in modules if not (root / f"{module.replace('.', '/')}.py").is_file()]


def test_table_of_what_to_open_names_what_is_there(root: Path) -> None:
    table = (root / "README.md").read_text(encoding="utf-8").split("## To change X, open Y")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    paths = [path for row in rows for path in re.findall(r"`([^`]+)`", row.split("|")[2])]
    assert paths
    assert not [path for path in paths if not (root / path).exists()]


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_can_be_run(root: Path, name: str) -> None:
    assert os.access(root / "scripts" / name, os.X_OK)


def test_commands_are_installed_from_functions_that_exist(
    project: dict[str, Any], trees: dict[str, ast.Module]
) -> None:
    for target in project["project"]["scripts"].values():
        module, function = target.split(":")
        assert function in {node.name for node in trees[module].body if isinstance(node, ast.FunctionDef)}


def test_the_passwords_variable_has_one_name_and_one_place(trees: dict[str, ast.Module]) -> None:
    places = [
        (module, node.value)
        for module, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and re.fullmatch(r"FEDSPINE_\w*PASSWORD\w*", str(node.value))
    ]
    assert places == [("edge_runtime.link.address", PASSWORD_VARIABLE)]


def test_docs_reliability_names_tests_that_exist(root: Path) -> None:
    """Each row: paths of test files in backquotes, each followed by the names of tests in it, or by none."""
    text = (root / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| input")]
    assert len(rows) > 100
    for row in rows:
        named = re.findall(r"`(tests/\S+\.py|test_\w+)`", row.rsplit(" | ", 1)[1])
        assert named, row
        source = ""
        for name in named:
            if name.startswith("tests/"):
                source = (root / name).read_text(encoding="utf-8")
            else:
                assert f"def {name}(" in source, name
