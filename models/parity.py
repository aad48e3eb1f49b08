"""Compares the stages with transformers, on the checkpoint as transformers itself loads it.

The reference does not use this project's reading of the configuration: transformers reads the directory. If
transformers 5 wrote the file and transformers 4 is installed, only the rotary settings are rewritten in the form of
version 4. The reference uses the formulas of transformers, the stages use those of this project.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from transformers.modeling_utils import no_init_weights

from models.errors import ParityError
from models.family import Family

TOLERANCE: Final = 1e-4
"""Largest difference of a float32 logit; relative to the largest logit where that is beyond 1."""

_LENGTH: Final = 48
_PADDING: Final = 11


def check_parity(family: Family, weights: Mapping[str, torch.Tensor], source: Any, config: Any) -> float:
    """Compare logits with transformers', in float32, on random tokens, one sequence of two padded.

    Args:
        family: the model computed by the stages.
        weights: all parameters of the model, in the checkpoint's types.
        source: the checkpoint as transformers loads it; it is set to evaluation mode.
        config: the configuration to write beside the weights; a model built from it must agree too.

    Returns:
        The largest difference.

    Raises:
        ParityError: a difference beyond :data:`TOLERANCE`, or a logit that is not finite.
    """
    family.check_source(source)
    generator = torch.Generator().manual_seed(0)
    length = min(_LENGTH, family.max_length)
    ids = torch.randint(0, family.vocab_size, (2, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, max(1, length - _PADDING) :] = 0
    with torch.inference_mode():
        expected = _logits(source.eval(), ids, mask)
        differences = {
            "the stages": _difference(_of_stages(family, weights, ids, mask), expected),
            "the configuration as it is exported": _difference(_logits(_rebuilt(source, config), ids, mask), expected),
        }
    largest = float(expected.abs().max())
    for what, difference in differences.items():
        if not difference <= TOLERANCE * max(1.0, largest):
            msg = (
                f"logits of {what} are {difference:.1e} from those of transformers (largest {largest:.1f}), at most "
                f"{TOLERANCE:.0e} of the largest is accepted: the checkpoint has something that is not reproduced; "
                "please report its config.json"
            )
            raise ParityError(msg)
    return max(differences.values())


def _logits(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Of the positions that count: ``[B, classes]``, or ``[T, vocabulary]``."""
    with _in_float32(model):
        logits: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
    return logits[mask == 1] if logits.dim() == 3 else logits


@contextlib.contextmanager
def _in_float32(model: Any) -> Iterator[None]:
    """Let a model compute in float32 whatever its weights are stored in; those of one layer at a time are widened."""
    stored: dict[int, list[tuple[torch.nn.Parameter, torch.Tensor]]] = {}

    def widen(module: torch.nn.Module, inputs: object) -> None:
        del inputs
        stored[id(module)] = [(parameter, parameter.data) for parameter in module.parameters(recurse=False)]
        for parameter, value in stored[id(module)]:
            parameter.data = value.to(torch.float32)

    def restore(module: torch.nn.Module, inputs: object, output: object) -> None:
        del inputs, output
        for parameter, value in stored.pop(id(module)):
            parameter.data = value

    with contextlib.ExitStack() as hooks:
        for module in model.modules():
            if next(module.parameters(recurse=False), None) is not None:
                hooks.callback(module.register_forward_pre_hook(widen).remove)
                hooks.callback(module.register_forward_hook(restore).remove)
        yield


def _of_stages(
    family: Family, weights: Mapping[str, torch.Tensor], ids: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Block by block, so that one block's weights are float32 at a time."""

    def float32(names: list[str], prefix: str = "") -> dict[str, torch.Tensor]:
        return {name: weights[prefix + name].to(torch.float32) for name in names}

    hidden, context = family.embed(float32([p.name for p in family.embedding_params]), ids, mask)
    for layer in range(family.num_layers):
        block = float32([p.name for p in family.block_params], family.block_prefix(layer))
        hidden, _ = family.block(block, hidden, context)
    scored = hidden[:, 0] if family.dense else hidden[mask == 1]
    return family.logits(float32([p.name for p in family.head_params]), scored)


def _rebuilt(source: Any, config: Any) -> Any:
    """The model that transformers builds from a configuration as it is written, over the weights of ``source``."""
    written = type(config).from_dict(json.loads(json.dumps(config.to_dict())))
    with no_init_weights():
        model = type(source)._from_config(written, dtype=torch.float32, attn_implementation="eager")  # noqa: SLF001
    model.load_state_dict(source.state_dict(), assign=True)
    model.tie_weights()
    return model.eval()


def _difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).abs().max())
