"""The settings of a run: defaults of the task, under a method, a TOML file, and the options of the command line."""

from __future__ import annotations

import contextlib
import tomllib
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

from broker_server.errors import ConfigError
from broker_server.experiments.run.settings import NOT_EMULATED, RunSettings
from broker_server.methods.by_name import completed, method_of, needed, passed_over, trained_sparsity, with_text
from broker_server.naming import as_key, option_of, said_of
from broker_server.options import build, check_values, options_of, renamed
from edge_runtime.errors import FedSpineError
from edge_runtime.system.registry import nearest
from edge_runtime.wire.arms import ArmError, Axes

METHOD: Final = "fedspine"
"""Method that ``fedspine run`` plays if none is given."""

EMULATED: Final = "jetson"
"""Classes of its devices, so that they are unequal on one machine; not of methods whose time is not modelled."""

TASK_DEFAULTS: Final[Mapping[str, Mapping[str, object]]] = {
    "text-classification": {
        "devices": 4,
        "rounds": 10,
        "local_steps": 10,
        "batch_size": 16,
        "max_length": 64,
        "split": "iid",
        "learning_rate": 2e-3,
        "emulate": EMULATED,
        "eval_examples": 500,
    },
    "causal-lm": {
        "devices": 4,
        "rounds": 8,
        "local_steps": 10,
        "batch_size": 8,
        "max_length": 128,
        "split": "iid",
        "learning_rate": 3e-3,
        "emulate": EMULATED,
        "eval_examples": 96,
    },
}
"""Defaults of each task; chosen by experiment (docs/run.md)."""


def resolve(options: Mapping[str, object], config: Path | None = None, *, called: str = "--config") -> RunSettings:
    """Settings from the task's defaults, under those of the method, of a TOML file, and the given options.

    Args:
        options: names of options to values; None = not given.
        config: TOML file with names of options as keys.
        called: name of the file in messages.

    Raises:
        ConfigError: the file cannot be read, an unknown key, a wrong type, or a value out of range; names the option,
            or the file and its key.
        ArmError: an arm outside its range.
    """
    given = {key: value for key, value in options.items() if value is not None}
    in_file = {} if config is None else _read_toml(config, called)
    with said_of_file(given, config):
        return _settings({**in_file, **given})


def kept_settings(path: Path, *, called: str = "settings") -> RunSettings:
    """Settings that a run keeps; earlier releases kept no method.

    Args:
        path: ``run.toml`` of its directory.
        called: name of the file in messages.

    Raises:
        ConfigError: see :func:`resolve`.
        ArmError: an arm outside its range.
    """
    return _settings({"method": "", **_read_toml(path, called)})


@contextlib.contextmanager
def said_of_file(given: Collection[str], config: Path | None) -> Iterator[None]:
    """Let an error that begins with an option begin with the file and its key, where the value is from there.

    Args:
        given: settings that are from the command line.
        config: TOML file of the others, or None.

    Raises:
        FedSpineError: the one that was raised inside.
    """
    try:
        yield
    except FedSpineError as error:
        if config is not None and option_of(error) in _read_toml(config).keys() - given:
            raise as_key(error, f"{config}: ") from error
        raise


def _settings(given: Mapping[str, object]) -> RunSettings:
    given = renamed(given, RunSettings)
    if "method" not in given:
        # Without LoRA factors on all layers, units cannot be scored by the factors' gradients.
        narrow = {"importance": "magnitude"} if given.get("targets") or given.get("top_blocks") else {}
        given = {"method": METHOD, **narrow, **given}
    given = with_text(given)
    check_values(given, RunSettings)
    defaults = _defaults(given)
    if method := str(given.get("method", "")):
        given = completed(method, given, rounds=typing.cast("int", defaults["rounds"]))
        with said_of("method"):
            check_values(given, RunSettings)
        defaults = _defaults(given)
    return build(RunSettings, {**defaults, **given})


def _defaults(given: Mapping[str, object]) -> dict[str, object]:
    task = given.get("task", "" if given.get("model") else "causal-lm")
    if task not in TASK_DEFAULTS:
        msg = f"a model needs its task: give --task {' or --task '.join(sorted(TASK_DEFAULTS))}"
        raise ConfigError(msg)
    for need in ("model", "data"):
        if task == "text-classification" and not given.get(need):
            msg = f"text-classification needs --{need}: what ships with the package is for causal-lm"
            raise ConfigError(msg)
    split = {} if given.get("data") else {"split": "by-key"}
    may_be_skewed = task == "text-classification" and not given.get("class_balance")
    aggregation = "fedspine" if may_be_skewed else "fedspine_holders"  # docs/aggregation.md
    name = str(given.get("method", ""))
    with said_of("method"):
        method, unused = method_of(name), passed_over(name)
    defaults = {**TASK_DEFAULTS[str(task)], **split, "aggregation": aggregation, "task": task}
    if not method.has_step_times:
        defaults["emulate"] = NOT_EMULATED[0]
    defaults = {key: value for key, value in defaults.items() if key not in unused or key in needed(unused)}
    arms = str(given.get("arms", method.default_arms))
    return {**defaults, "arms": method.default_arms, "sparsity": _trained_sparsity(arms, method.axes)}


def _trained_sparsity(arms: str, axes: Axes) -> float:
    try:
        return trained_sparsity(axes.parse(arms))
    except ArmError:
        return 0.0  # the check of the settings reports these arms


def _read_toml(path: Path, called: str = "--config") -> dict[str, object]:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{called} {path} cannot be read: {error.strerror or error}"
        raise ConfigError(msg) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        msg = f"{called} {path} cannot be read: it is not TOML ({error})"
        raise ConfigError(msg) from error
    found, known = renamed(found, RunSettings), options_of(RunSettings)
    if unknown := sorted(set(found) - set(known)):
        msg = f"{path}: key {unknown[0]!r} is not known; {nearest(unknown[0], tuple(known))}"
        raise ConfigError(msg)
    return found
