"""Methods by name: FedSpine's presets and those of installed packages, and the options that a method does not use."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Final, TypeGuard

from broker_server.errors import ConfigError
from broker_server.methods import own_options
from broker_server.methods.method import Method
from broker_server.methods.own_options import OPTION
from broker_server.methods.presets import PRESETS, Preset, Settings, Shared
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.registry import WORKS
from broker_server.methods.tables import MethodTables
from broker_server.methods.training import TrainingConfig
from broker_server.naming import option_name, said_of
from broker_server.options import Option, options_of
from edge_runtime.bounds.fields import NAME, NAME_RULE
from edge_runtime.formats.manifest import Manifest
from edge_runtime.system.registry import Registry, nearest
from edge_runtime.wire.work import Arm, WorkType

_DECLARED: Final[Mapping[str, Option]] = {
    name: option for kind in (TrainingConfig, PruningConfig, MethodTables) for name, option in options_of(kind).items()
}

_OF_THE_RUN: Final = frozenset({"prune_scope", "protect_first", "protect_last"})
"""Options that the compact model of every method uses."""

OF_METHODS: Final = _DECLARED.keys() - _OF_THE_RUN | {"aggregation"}
"""Options that a method may use (:attr:`broker_server.methods.method.Method.uses`); all other options belong to the
run."""


def passed_over(name: str) -> frozenset[str]:
    """Options that a method does not use.

    Args:
        name: of the method; empty = none was chosen, and anything goes.

    Raises:
        ConfigError: the method is not known.
    """
    if not name:
        return frozenset()
    method = method_of(name)
    return frozenset(OF_METHODS - method.uses | ({OPTION} if method.own_options is None else set()))


def needed(names: Collection[str]) -> frozenset[str]:
    """Return the options that have no default."""
    return frozenset(name for name in names if name in _DECLARED and _DECLARED[name].default is dataclasses.MISSING)


def check_method(name: str, settings: Mapping[str, object], manifest: Manifest | None = None) -> None:
    """Refuse settings that a method does not support: see :meth:`broker_server.methods.method.Method.check_settings`.

    Args:
        name: of the method; empty = none was chosen, and anything goes.
        settings: values of all options, by name, as they are written.
        manifest: of the artifact; None = it is not known yet.

    Raises:
        ConfigError: begins with the option; or the method is not known.
    """
    if not name:
        return
    with said_of("method"):
        method, unused = method_of(name), passed_over(name)
        _check_declared(method)
    for option in sorted(unused - needed(unused)):
        if option in _DECLARED and option in settings and settings[option] != _DECLARED[option].default:
            raise _refusal(name, option, settings[option])
    method.check_settings(settings, manifest)
    if settings.get("update_transforms") and (not method.averages or method.trained is Method.trained):
        msg = f"--update-transforms apply to the change of a model, but {name} averages none: leave them out"
        raise ConfigError(msg)


def _check_declared(method: type[Method]) -> None:
    """Refuse a class of a package that cannot work, before a run begins."""
    called = f"{method.__module__}.{method.__name__}"
    if missing := sorted(method.__abstractmethods__):
        msg = f"{called} does not define {', '.join(missing)}: fix its package"
        raise ConfigError(msg)
    if unknown := sorted(method.uses - OF_METHODS - _OF_THE_RUN):
        known = nearest(unknown[0], sorted(OF_METHODS))
        msg = f"uses of {called} has {unknown[0]!r}, which is no option of methods; {known} Fix its package"
        raise ConfigError(msg)
    name, taken = method.device_method, typing.get_args(WorkType)
    if method.work_type == "plugin" and (name in taken or NAME.fullmatch(name) is None):
        expected = f"another name than those of FedSpine's own work, {', '.join(taken)}" if name in taken else NAME_RULE
        msg = f"device_method of {called} is {name!r}, expected {expected}: fix its package"
        raise ConfigError(msg)


def trained_sparsity(arms: Sequence[Arm]) -> float:
    """The smallest ratio above 0 that devices train, because pruning without training costs much quality."""
    return min((arm.pruning_ratio for arm in arms if arm.pruning_ratio > 0), default=0.0)


def method_of(name: str) -> type[Method]:
    """The class of a method by name, which declares its arms; LoRA's class for an empty name.

    Raises:
        ConfigError: the method is not known.
    """
    return METHODS.find_or_import(name).method if name else WORKS["lora"]


def completed(name: str, given: Mapping[str, object], *, rounds: int) -> Settings:
    """Merge given settings with those of a method; given settings take precedence.

    Args:
        name: of the method, or ``pkg.mod:NAME``.
        given: settings by name, as they are written.
        rounds: of the run, where ``given`` does not say.

    Raises:
        ConfigError: the method is not known, it fails, or it does not use a setting that is given.
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
    for option in sorted(given.keys() & passed_over(name)):
        if option not in own or given[option] != own[option]:
            raise _refusal(name, option, given[option])
    return {**own, **given, **_own_options(preset.method, own, given)}


def _own_options(method: type[Method], *layers: Mapping[str, object]) -> Settings:
    """All own options of a method as one text; options of later layers take precedence, each by its name."""
    kind = method.own_options
    values: dict[str, object] = {}
    if kind is None:
        return {}
    with said_of(OPTION):
        for layer in layers:
            values |= own_options.given(kind, layer.get(OPTION, ""))
        return {OPTION: own_options.text_of(own_options.made(kind, values))}


def with_text(given: Mapping[str, object]) -> Mapping[str, object]:
    """The settings, with a table of the method's own options written as one text.

    Raises:
        ConfigError: the method is not known, or has no such options.
    """
    table, name = given.get(OPTION), str(given.get("method", ""))
    if not isinstance(table, Mapping):
        return given
    with said_of("method"):
        kind = method_of(name).own_options
    with said_of(OPTION):
        return {**given, OPTION: own_options.as_text(own_options.given(kind, table) if kind else table)}


def read_own_options(text: str, name: str) -> object:
    """Parse the own options of a method from one text; missing options have defaults. None = the method has no options.

    Args:
        text: ``NAME=VALUE,...``.
        name: of the method; empty = none was chosen.

    Raises:
        ConfigError: one is not known, of another type, or outside its range; or the method has none.
    """
    kind = method_of(name).own_options
    if kind is None and text:
        raise _refusal(name or "a run without a method", OPTION, text)
    return None if kind is None else own_options.made(kind, own_options.given(kind, text))


def _refusal(method: str, option: str, value: object) -> ConfigError:
    return ConfigError(f"{option_name(option)} is {value}, but {method} does not use it: leave it out")


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
"""FedSpine's methods, and those of installed packages."""
