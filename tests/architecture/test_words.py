"""Words of the field alone: house words do not come back into code, tests or documents (GLOSSARY.md)."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.test_tree import tracked

SAY_INSTEAD = {
    "office": "CommandExecutor",
    "mailroom": "Inbox",
    "mouthpiece": "DeviceChannel or CoordinatorChannel",
    "dealer": "ArmSelection",
    "intake": "MessageTranslator",
    "workbench": "AssignmentRunner",
    "contest": "comparison",
    "belongings": "files, or what it is",
    "manners": "what it is",
}
"""Words that no text has, and what to say in their place."""

IN_NAMES = {
    "course": "LocalTraining",
    "letter": "message; a sign of a text is a character",
    "letters": "messages; signs of a text are characters",
    "knowledge": "GlobalState",
    "learnt": "SchedulerState",
    "facts": "the name of what it is",
}
"""Words of plain English that no name in code has; names of tests are sentences."""

HISTORY = {"CHANGELOG.md", "tests/architecture/test_words.py"}
TEXTS = ("*.py", "*.md", "*.toml", "*.yml", "*.j2", "scripts/*", ".ci/*")


def parts(name: str) -> set[str]:
    """Words of a name: of ``make_LocalCourse``, make, local and course."""
    return {part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def house_words(text: str) -> set[str]:
    """Words of a text that nothing should be called."""
    return {word for run in re.findall(r"\w+", text) for word in parts(run)} & SAY_INSTEAD.keys()


def names(source: str) -> Iterator[str]:
    """Names in Python code, but those of tests."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and not token.string.startswith("test_"):
            yield token.string


def test_what_is_looked_for_is_found() -> None:
    assert house_words("the Mailroom of make_workbench2, officers") == {"mailroom", "workbench"}
    assert [
        name for name in names("knowledge = 1  # facts\nclass LearntState: ...") if parts(name) & IN_NAMES.keys()
    ] == [
        "knowledge",
        "LearntState",
    ]


def test_no_text_has_a_house_word(root: Path) -> None:
    found = {
        f"{place}: {word}; say {SAY_INSTEAD[word]}"
        for path in tracked(root, *TEXTS)
        if (place := path.relative_to(root).as_posix()) not in HISTORY
        for word in house_words(f"{place} {path.read_text(encoding='utf-8')}")
    }
    assert not found


def test_no_name_in_code_has_a_house_word(root: Path) -> None:
    found = {
        f"{place}: {name}; say {IN_NAMES[word]}"
        for path in tracked(root, "*.py")
        if (place := path.relative_to(root).as_posix()) not in HISTORY
        for name in names(path.read_text(encoding="utf-8"))
        for word in parts(name) & IN_NAMES.keys()
    }
    assert not found
