"""Words of the field alone: house words do not come back into code, tests or documents (GLOSSARY.md)."""

from __future__ import annotations

import ast
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

OPENINGS = {"what", "where", "how", "which", "who", "whose", "when", "why"}
"""Words that no docstring begins with."""

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


def questions(source: str) -> Iterator[tuple[int, str]]:
    """Line and first word of docstrings that begin like a question: of modules, classes, functions and attributes."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        asked = OPENINGS | ({"whether"} if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else set())
        for index, statement in enumerate(node.body):
            if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
                continue
            word = re.match(r"\s*(\w*)", str(statement.value.value))
            if word and word[1].lower() in (OPENINGS if index else asked):
                yield statement.lineno, word[1]


def test_what_is_looked_for_is_found() -> None:
    assert list(questions('"""What a run is."""\nLIMIT = 3\n"""Where it ends."""')) == [(1, "What"), (3, "Where")]
    assert list(questions('class Run:\n    ended: bool\n    """Whether it ended; what it left is elsewhere."""')) == []
    assert list(questions('def ended():\n    """Whether it ended."""')) == [(2, "Whether")]

    assert house_words("the Mailroom of make_workbench2, officers") == {"mailroom", "workbench"}
    assert [
        name for name in names("knowledge = 1  # facts\nclass LearntState: ...") if parts(name) & IN_NAMES.keys()
    ] == [
        "knowledge",
        "LearntState",
    ]


def test_no_docstring_begins_like_a_question(root: Path) -> None:
    found = [
        f"{path.relative_to(root)}:{line}: begins with {word!r}; say what it is or does, as 'Files of a run.'"
        for path in tracked(root, "*.py")
        for line, word in questions(path.read_text(encoding="utf-8"))
    ]
    assert not found


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
