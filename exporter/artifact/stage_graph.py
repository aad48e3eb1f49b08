"""A stage as a piece of a graph: nodes over named inputs and sizes, placed any number of times by renaming."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.artifact.graph import Graph, Node


class StageGraph:
    """A translated stage."""

    def __init__(self, graph: Graph, outputs: Mapping[str, str], sizes: Mapping[str, str]) -> None:
        """Take the result of a translation.

        Args:
            graph: nodes of the stage; its inputs bear the stage's names.
            outputs: output of the stage to value in ``graph``.
            sizes: named size to input of ``graph``, int64 ``[1]``.
        """
        self.graph = graph
        self.outputs = dict(outputs)
        self.sizes = dict(sizes)
        self._needed: dict[tuple[tuple[str, ...], ...], list[Node]] = {}

    def place(
        self,
        target: Graph,
        inputs: Mapping[str, str],
        sizes: Mapping[str, str],
        wanted: Sequence[str],
        given: Mapping[str, str] | None = None,
    ) -> dict[str, str]:
        """Place the part of the stage that computes ``wanted`` in another graph.

        Args:
            target: where it goes.
            inputs: input of the stage to value of ``target``; those that ``wanted`` does not need may be left out.
            sizes: named size to int64 ``[1]`` value of ``target``.
            wanted: outputs of the stage.
            given: other outputs of the stage, to values of ``target``: they are not computed again.

        Returns:
            Output of the stage to value of ``target``.
        """
        known = {self.outputs[name]: value for name, value in (given or {}).items()}
        key = (tuple(wanted), tuple(sorted(known)))
        if key not in self._needed:
            self._needed[key] = self.graph.needed([self.outputs[name] for name in wanted], known)
        rename = dict(inputs) | known | {name: sizes[size] for size, name in self.sizes.items() if size in sizes}
        for node in self._needed[key]:
            for value in node.inputs:
                if value in self.graph.constants:
                    array = self.graph.constants[value]
                    rename[value] = target.constant(array, array.dtype)
            sources = [rename[value] for value in node.inputs]
            made = target.multi(node.kind, sources, len(node.outputs), **dict(node.attributes))
            rename.update(pair for pair in zip(node.outputs, made, strict=True) if pair[0] not in known)
        return {name: rename[self.outputs[name]] for name in wanted}
