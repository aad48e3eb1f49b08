"""Rotary positions of a configuration, in the format of transformers 4 or of transformers 5.

transformers 4 writes ``rope_theta`` and ``rope_scaling``; transformers 5 writes one ``rope_parameters``, which may be
nested by type of layer. Both are read into one form. Its formulas are implemented here, so that transformers is an
independent reference (:mod:`models.parity`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from models.errors import ModelUnsupportedError

THETA: Final = "rope_theta"
SCALING: Final = "rope_scaling"
PARAMETERS: Final = "rope_parameters"
KEYS: Final = (THETA, SCALING, PARAMETERS, "original_max_position_embeddings", "partial_rotary_factor")
"""Keys of a configuration that are about rotary positions."""

_DEFAULT_THETA: Final = 10_000.0
_TYPE: Final = "rope_type"
_ORIGINAL: Final = "original_max_position_embeddings"
_OPTIONAL: Final = frozenset({"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"})
_FIELDS: Final[dict[str, frozenset[str]]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", _ORIGINAL}),
    "yarn": frozenset({"factor", _ORIGINAL}) | _OPTIONAL,
}
_SAY_NOTHING: Final = frozenset({"type", _TYPE, THETA, "partial_rotary_factor", "finetuned"})

Rotary = dict[str, Any]
"""One flat description in the format of transformers 5: ``rope_type``, ``rope_theta`` and fields of the type."""


def read(settings: Mapping[str, Any]) -> Rotary:
    """The rotary positions of a configuration, whichever transformers wrote it, as transformers 5 reads them.

    Args:
        settings: a configuration's keys, as ``config.json`` holds them.

    Raises:
        ModelUnsupportedError: a type or a setting that the stages do not reproduce, one that its type does not use, or
            two spellings that contradict each other.
    """
    found = [part for name in (PARAMETERS, SCALING) for part in _flattened(name, settings.get(name))]
    if (theta := settings.get(THETA)) is not None:
        found.append((THETA, {THETA: theta}))
    merged: Rotary = {}
    said_by: dict[str, str] = {}
    for place, part in found:
        for key, value in _renamed(place, part).items():
            where = key if place == key else f"{place}.{key}"
            if key in merged and merged[key] != value:
                msg = (
                    f"config.json says {said_by[key]} = {merged[key]!r} and {where} = {value!r}, which contradict each "
                    "other: remove the one that is wrong"
                )
                raise ModelUnsupportedError(msg)
            merged[key] = value
            said_by.setdefault(key, where)
    return _checked(merged, said_by, settings)


def written_for_transformers_4(rotary: Rotary) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` for a result of :func:`read`; transformers 5 reads these too."""
    scaling = {key: value for key, value in rotary.items() if key != THETA}
    return {THETA: rotary[THETA], SCALING: None if rotary[_TYPE] == "default" else scaling}


def frequencies(rotary: Rotary, head_dim: int) -> tuple[torch.Tensor, float]:
    """Inverse frequencies float32 ``[head_dim / 2]``, radians a position, and the factor of cosine and sine.

    The factor is that of YaRN's attention temperature, 1 for the other types.
    """
    base = 1.0 / rotary[THETA] ** (torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim)
    return _FORMULAS[rotary[_TYPE]](base, rotary)


def _flattened(name: str, value: object) -> list[tuple[str, dict[str, Any]]]:
    """A description, or those of each type of layer, each with the place where it stands."""
    if value is None:
        return []
    if not isinstance(value, dict):
        msg = f"config.json says {name} = {value!r}, expected an object: copy the model again"
        raise ModelUnsupportedError(msg)
    nested = {key: part for key, part in value.items() if isinstance(part, dict)}
    flat = {key: part for key, part in value.items() if not isinstance(part, dict)}
    return [*([(name, flat)] if flat else []), *((f"{name}.{key}", part) for key, part in nested.items())]


def _renamed(place: str, part: Mapping[str, Any]) -> dict[str, Any]:
    """A description without keys that say nothing, its type under the present name."""
    kinds = {part[key] for key in ("type", _TYPE) if part.get(key) is not None}
    if len(kinds) > 1:
        msg = f"config.json says {place}.type = {part['type']!r} and {place}.{_TYPE} = {part[_TYPE]!r}: remove one"
        raise ModelUnsupportedError(msg)
    plain = {key: value for key, value in part.items() if value is not None and key not in {"type", "finetuned"}}
    return {**plain, **({_TYPE: kinds.pop()} if kinds else {})}


def _checked(merged: Rotary, said_by: Mapping[str, str], settings: Mapping[str, Any]) -> Rotary:
    kind = merged.get(_TYPE, "default")
    if kind not in _FIELDS:
        msg = f"rotary positions of type {kind!r} are not supported; known: {', '.join(_FIELDS)}"
        raise ModelUnsupportedError(msg)
    partial = merged.get("partial_rotary_factor", settings.get("partial_rotary_factor"))
    if partial is not None and partial != 1:
        msg = f"config.json says partial_rotary_factor = {partial!r}, but whole heads are rotated: it is not supported"
        raise ModelUnsupportedError(msg)
    fields = _FIELDS[kind]
    for key in merged.keys() - fields - _SAY_NOTHING:
        if key == _ORIGINAL and kind in {"default", "linear"}:
            continue  # it describes training; the formulas of these types do not use it
        msg = f"config.json says {said_by[key]} = {merged[key]!r}, which rotary positions of type {kind!r} do not use"
        raise ModelUnsupportedError(msg)
    out = {_TYPE: kind, THETA: merged.get(THETA, _DEFAULT_THETA)}
    out |= {key: merged[key] for key in sorted(fields & merged.keys())}
    if _ORIGINAL in fields:
        longest = settings.get("max_position_embeddings")
        outside = settings.get(_ORIGINAL)
        if outside is not None and out.setdefault(_ORIGINAL, outside) != outside:
            msg = (
                f"config.json says {_ORIGINAL} = {outside!r} and {said_by[_ORIGINAL]} = {out[_ORIGINAL]!r}: remove one"
            )
            raise ModelUnsupportedError(msg)
        out.setdefault(_ORIGINAL, longest)
        if kind == "yarn" and "factor" not in out and _is_number(longest) and _is_number(out[_ORIGINAL]):
            out["factor"] = longest / out[_ORIGINAL]
    _check_numbers(out, fields - _OPTIONAL)
    return out


def _check_numbers(rotary: Rotary, needed: frozenset[str]) -> None:
    if lacking := sorted(needed - rotary.keys()):
        msg = (
            f"rotary positions of type {rotary[_TYPE]!r} lack {', '.join(lacking)} in config.json: copy the model again"
        )
        raise ModelUnsupportedError(msg)
    for key, value in rotary.items():
        if key in {_TYPE, "truncate"}:
            continue
        least = {THETA: 1}.get(key, 0)
        if not _is_number(value) or value < least or (value == least and key not in _OPTIONAL):
            msg = (
                f"rotary positions have {key} = {value!r}, expected a finite number above {least}: correct config.json"
            )
            raise ModelUnsupportedError(msg)
    if rotary[_TYPE] == "llama3" and rotary["high_freq_factor"] <= rotary["low_freq_factor"]:
        msg = (
            f"rotary positions have high_freq_factor = {rotary['high_freq_factor']}, expected more than "
            f"low_freq_factor = {rotary['low_freq_factor']}: correct config.json"
        )
        raise ModelUnsupportedError(msg)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _default(base: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, float]:
    del rotary
    return base, 1.0


def _linear(base: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, float]:
    """Positions divided by the factor (Chen et al. 2023, arXiv 2306.15595)."""
    return base / rotary["factor"], 1.0


def _llama3(base: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, float]:
    """Long waves stretched, short ones kept, those between interpolated (Dubey et al. 2024, arXiv 2407.21783)."""
    low, high = rotary["low_freq_factor"], rotary["high_freq_factor"]
    waves = rotary[_ORIGINAL] * base / (2 * math.pi)  # number of waves in the length of training
    share = ((waves - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - share) * base / rotary["factor"] + share * base, 1.0


def _yarn(base: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, float]:
    """NTK by parts, with a temperature of attention (Peng et al. 2023, arXiv 2309.00071, sections 3.2 and 3.4)."""
    factor, head_dim = rotary["factor"], 2 * base.shape[0]

    def dimension(turns: float) -> float:
        """The one whose wave turns so often in the length of training."""
        return head_dim * math.log(rotary[_ORIGINAL] / (turns * 2 * math.pi)) / (2 * math.log(rotary[THETA]))

    first, last = dimension(rotary.get("beta_fast") or 32), dimension(rotary.get("beta_slow") or 1)
    if rotary.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    ramp = (torch.arange(base.shape[0], dtype=torch.float32) - first) / ((last - first) or 0.001)
    share = ramp.clamp(0.0, 1.0)
    return base / factor * share + base * (1 - share), _temperature(rotary)


def _temperature(rotary: Rotary) -> float:
    factor = rotary["factor"]

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rotary.get("attention_factor") is not None:
        return float(rotary["attention_factor"])
    over, under = rotary.get("mscale"), rotary.get("mscale_all_dim")
    return scale(over) / scale(under) if over and under else scale(1.0)


_FORMULAS: Final[dict[str, Callable[[torch.Tensor, Rotary], tuple[torch.Tensor, float]]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
