"""Docstrings as training text."""

from __future__ import annotations

import ast
from pathlib import Path

from broker_server.experiments.run.docstrings import MIN_CHARACTERS, docstring_examples

LONG = "This sentence is long enough to be worth learning from, in any library."


def _library(root: Path) -> Path:
    (root / "alpha").mkdir()
    (root / "alpha" / "__init__.py").write_text(f'"""{LONG}"""\nimport does_not_exist\n')
    (root / "alpha" / "deep.py").write_text(
        f'class A:\n    """{LONG} In a class."""\n    def f(self):\n        """No."""\n'
    )
    (root / "beta.py").write_text(f'def f():\n    """{LONG}"""\n\nasync def g():\n    """{LONG} Asynchronous."""\n')
    (root / "broken.py").write_text("def (")
    (root / "tests").mkdir()
    (root / "tests" / "t.py").write_text(f'"""{LONG} A test."""')
    return root


def test_texts_come_with_their_package_once_and_in_a_fixed_order(tmp_path: Path) -> None:
    assert docstring_examples(_library(tmp_path)) == [
        {"text": LONG, "key": "alpha"},
        {"text": f"{LONG} In a class.", "key": "alpha"},
        {"text": f"{LONG} Asynchronous.", "key": "beta"},
    ]


EVERY_STATEMENT = """
if a:
    def f1(): {doc}
    class C:
        def f2(self): {doc}
else:
    def f3(): {doc}
try:
    def f4(): {doc}
except E:
    def f5(): {doc}
else:
    with b:
        def f6(): {doc}
finally:
    def f7(): {doc}
for x in y:
    def f8(): {doc}
else:
    def f9(): {doc}
while a:
    with b:
        async def f10(): {doc}
match a:
    case 1:
        def f11():
            def f12(): {doc}
"""


def test_definitions_within_any_statement_come_in_the_order_of_ast_walk(tmp_path: Path) -> None:
    pieces = EVERY_STATEMENT.split("{doc}")
    source = "".join(f'{piece}"""{LONG} {number}"""' for number, piece in enumerate(pieces[:-1]))
    (tmp_path / "a.py").write_text(source)
    defined = (ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, defined)]
    in_order = [text for text in texts if text is not None]

    assert len(in_order) == len(pieces) - 1
    assert in_order != sorted(in_order)
    assert [example["text"] for example in docstring_examples(tmp_path)] == in_order


def test_short_texts_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(f'"""{"x" * (MIN_CHARACTERS - 1)}"""')

    assert docstring_examples(tmp_path) == []
