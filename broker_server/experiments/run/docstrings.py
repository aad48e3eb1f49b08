"""Text that every Python installation has: the docstrings of its own standard library. Read, never imported."""

from __future__ import annotations

import ast
import os
import re
import sysconfig
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path

MIN_CHARACTERS = 60
"""Shorter docstrings say too little to learn from."""

SKIPPED = frozenset({"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test", "lib-dynload"})
"""Folders without text of the library's own."""

KEY_FIELD = "key"
"""Field that holds an example's top-level package."""


_BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")
"""Fields of a statement whose nodes hold statements, in the order of :func:`ast.iter_child_nodes`."""

_SURROGATE = re.compile("[\ud800-\udfff]")
"""Lone surrogates: an escape in a docstring can make one, but it is not a character."""


def standard_library() -> Path:
    """Folder of the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def docstring_examples(root: Path) -> list[dict[str, object]]:
    """Examples ``{"text", "key"}``, one a docstring, in the order of the files; ``key`` is the top-level package.

    Repeated texts count once, where they are met first. A file that this Python cannot parse is passed over.

    Args:
        root: folder of a library.
    """
    seen: set[str] = set()
    examples: list[dict[str, object]] = []
    for path in sorted(_sources(root)):
        key = path.relative_to(root).parts[0].removesuffix(".py")
        for text in _docstrings(path):
            if len(text) >= MIN_CHARACTERS and text not in seen:
                seen.add(text)
                examples.append({"text": text, KEY_FIELD: key})
    return examples


def _sources(root: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED]  # walk() does not enter removed folders
        yield from (Path(folder) / name for name in files if name.endswith(".py"))


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old sources hold invalid escapes
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and _SURROGATE.search(text) is None:
                yield text.strip()


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The module and its statements in the order of :func:`ast.walk`, without expressions: no definition is in one."""
    todo: deque[ast.AST] = deque([tree])
    while todo:
        node = todo.popleft()
        yield node
        for field in _BLOCKS:
            todo.extend(getattr(node, field, ()))
