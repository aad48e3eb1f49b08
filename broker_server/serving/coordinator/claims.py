"""The number of examples with which a device's update counts: never more than the device registered."""

from __future__ import annotations

from typing import Final

from edge_runtime.formats.manifest import Task
from edge_runtime.wire.messages import Register

TOKENS_BESIDE: Final = 4
"""Most tokens that a tokenizer adds to a line: its begin, its end, and those of a normaliser."""


def most_examples(register: Register, task: Task, max_length: int) -> int:
    """The largest weight of a device's update, examples; 1 or more.

    For text-classification an example is a line of its file. For causal-lm all lines are joined and cut into windows of
    ``max_length`` tokens, so there are no more than the bytes of the file allow, at least one byte to a token; a device
    that does not say how many bytes it has (an earlier release) counts its lines.

    Args:
        register: the device's registration.
        task: of the run.
        max_length: tokens of a window.
    """
    if task != "causal-lm" or not register.data_bytes:
        return max(1, register.num_examples)
    num_tokens = register.data_bytes + TOKENS_BESIDE * register.num_examples
    return 1 + num_tokens // max_length
