"""Docstrings as training text."""

from __future__ import annotations

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


def test_short_texts_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(f'"""{"x" * (MIN_CHARACTERS - 1)}"""')

    assert docstring_examples(tmp_path) == []
