"""Methods looked up by name: FedSpine's own presets, and those of installed packages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeGuard

from broker_server.errors import ConfigError
from broker_server.methods.method import Method
from broker_server.methods.presets import PRESETS, Preset, Settings, Shared
from broker_server.methods.registry import WORKS
from broker_server.naming import said_of
from edge_runtime.formats.manifest import Manifest
from edge_runtime.system.registry import Registry
from edge_runtime.wire.work import Arm


def check_method(name: str, settings: Mapping[str, object], manifest: Manifest | None = None) -> None:
    """Refuse settings that a method cannot keep to: see :meth:`broker_server.methods.method.Method.check_settings`.

    Args:
        name: of the method; empty = none was chosen, and anything goes.
        settings: values of all options, by name, as they are written.
        manifest: of the artifact; None = it is not known yet.

    Raises:
        ConfigError: begins with the option; or the method is not known.
    """
    if name:
        with said_of("method"):
            method = METHODS.find_or_import(name).method
        method.check_settings(settings, manifest)


def trained_sparsity(arms: Sequence[Arm]) -> float:
    """The smallest ratio above 0 that devices train: a model that was never trained pruned loses much when cut."""
    return min((arm.pruning_ratio for arm in arms if arm.pruning_ratio > 0), default=0.0)


def method_of(name: str) -> type[Method]:
    """The class of a method by name, which says what its arms are; that of LoRA where none is named.

    Raises:
        ConfigError: the method is not known.
    """
    return METHODS.find_or_import(name).method if name else WORKS["lora"]


def completed(name: str, given: Mapping[str, object], *, rounds: int) -> Settings:
    """Settings that a person gave, and below them those of a method.

    Args:
        name: of the method, or ``pkg.mod:NAME``.
        given: settings by name, as they are written.
        rounds: of the run, where ``given`` does not say.

    Raises:
        ConfigError: the method is not known, or it fails.
        ArmError: an arm is none of the method's, or outside its range.
    """
    with said_of("method"):
        preset = METHODS.find_or_import(name)
    with said_of("arms"):
        grid = preset.method.axes.parse(str(given.get("arms", preset.method.default_arms)))
    sparsity, num_rounds = given.get("sparsity"), given.get("rounds", rounds)
    shared = Shared(
        rounds=num_rounds if isinstance(num_rounds, int) else rounds,
        sparsity=float(sparsity) if isinstance(sparsity, int | float) else trained_sparsity(grid),
        arms=grid,
    )
    try:
        own = dict(preset.settings(shared))
    except Exception as error:
        msg = f"--method {name!r} cannot say its settings ({type(error).__name__}: {error}): fix it, or choose another"
        raise ConfigError(msg) from error
    return {**own, **given}


def _is_preset(value: object) -> TypeGuard[Preset]:
    return isinstance(value, Preset) and (isinstance(value.work, type) or value.work in WORKS)


METHODS: Final = Registry(
    group="fedspine.methods",
    kind="method",
    own=PRESETS,
    fits=_is_preset,
    expected="a broker_server.methods.presets.Preset whose work is a class of methods or a known kind",
    error=ConfigError,
)
"""Those, and the methods of installed packages."""
