"""Methods are known by name in their own rooms, in registries and in the union on the wire; nothing else names one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from broker_server.methods.presets import PRESETS
from broker_server.methods.registry import WORKS

LORA: Final = "lora"
"""The word of the factors, which every method's model has; ``mixed`` and ``split`` are words of every day."""

NAMES: Final = frozenset({name for name, preset in PRESETS.items() if preset.work != LORA} | WORKS.keys()) - {
    LORA,
    "mixed",
    "split",
}
"""Methods whose devices do other work than first-order training, and that work."""

ROOMS: Final = re.compile(
    r"broker_server\.methods\.(probe|zero_order|mixed|split)\b"
    r"|edge_runtime\.agent\.methods\.(probe|zero_order|split)\b"
    r"|edge_runtime\.formats\.(probe|zero_order)$"
    r"|edge_runtime\.zero_order\b"
)
REGISTRIES: Final = frozenset(
    {
        "broker_server.methods.presets",
        "broker_server.methods.registry",
        "broker_server.methods.tables",
        "edge_runtime.agent.methods.registry",
        "edge_runtime.wire.work",
    }
)

ARITHMETIC: Final = frozenset({"edge_runtime.zero_order.pool"})
"""Weights that moved along a pool of noise are base weights: all that reads weights computes them."""


def words(name: str) -> Iterator[str]:
    """The parts of a dotted name in lower case, with underscores between words: ``OverProbe`` is ``over_probe``."""
    for part in name.split("."):
        yield re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", part).lower().strip("_")


def knows(text: str) -> bool:
    """Return whether an identifier names a method."""
    return any(re.search(rf"(^|_){name}s?(_|$)", word) for word in words(text) for name in NAMES)


def says(text: str) -> bool:
    """Return whether a string that a program reads or shows names a method."""
    return any(re.search(rf"\b{name}\b", text) for name in NAMES)


def docstrings(tree: ast.Module) -> set[int]:
    """Identities of the constants that document what is above them."""
    return {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def named(tree: ast.Module) -> Iterator[str]:
    """The lines of a module that name a method: identifiers, imports, strings that are no documentation."""
    documentation = docstrings(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=text) | ast.Attribute(attr=text) | ast.arg(arg=text) | ast.keyword(arg=str(text)):
                found = knows(text)
            case ast.FunctionDef(name=text) | ast.ClassDef(name=text) | ast.alias(name=text):
                found = knows(text)
            case ast.ImportFrom(module=str(text)) if text not in ARITHMETIC:
                found = knows(text)
            case ast.Constant(value=str(text)) if id(node) not in documentation:
                found = says(text)
            case _:
                continue
        if found:
            yield f"line {getattr(node, 'lineno', 0)}: {text[:60]}"


def test_names_are_those_of_the_methods() -> None:
    assert {"probe", "probe_softmax", "zero_order", "mezo", "fedspzo"} <= NAMES
    assert not {"lora", "fedspine", "fedit"} & NAMES


def test_what_names_a_method_is_found() -> None:
    code = '''
from edge_runtime.formats.probe import Head
class OverProbe: """A probe."""
zero_order_rate = {"work": "probe"}
def f(mezo): return "a problem, probed"
'''
    assert len(list(named(ast.parse(code)))) == 5


def test_no_module_outside_its_rooms_names_a_method(trees: dict[str, ast.Module]) -> None:
    outside = {
        module: found
        for module, tree in trees.items()
        if not ROOMS.match(module) and module not in REGISTRIES and (found := list(named(tree)))
    }
    assert not outside
