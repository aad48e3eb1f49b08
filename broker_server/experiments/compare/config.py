"""The file of a comparison: shared settings, methods, seeds and targets in TOML, checked before anything starts."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from broker_server.errors import ConfigError
from broker_server.experiments.run.resolve import resolve
from broker_server.experiments.run.settings import RunSettings
from broker_server.methods.by_name import METHODS, method_of, needed, passed_over
from broker_server.methods.presets import Preset, Settings, Shared
from broker_server.naming import as_key, malformed
from edge_runtime.bounds.fields import NAME
from edge_runtime.errors import FedSpineError
from edge_runtime.system.registry import nearest
from edge_runtime.wire.arms import ArmError

SAME_FOR_ALL: Final = frozenset(
    {
        "model", "task", "base", "targets", "top_blocks", "data", "test", "text_field", "label_field", "new_head",
        "max_length", "split", "devices", "local_steps", "batch_size", "accumulation_steps", "class_balance",
        "sparsity", "eval_examples", "eval_sparse",
    }
)  # fmt: skip
"""Settings that a method must not change: another problem or other rounds would not be comparable. How *many* rounds
it plays is its own: tables set quality against time and bytes, and a method of cheap rounds may play more of them."""

SET_HERE: Final = frozenset({"method", "seed", "artifact", "calibration", "broker", "broker_port", "artifact_port"})
"""Settings that the comparison gives to each run itself."""


UNSAID: Final[Mapping[str, object]] = {"method": "", "emulate": "none"}
"""Settings of a comparison whose file does not give them: its methods give all that they need."""


class MethodTable(msgspec.Struct, frozen=True, kw_only=True):
    """``[method.NAME]``, less the settings of ``fedspine run`` in it."""

    preset: str | None = None
    """Method to start from; default: the preset of the same name, if there is one."""
    label: str | None = None
    about: str | None = None


class QuickTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[quick]``: the settings that ``--quick`` changes."""

    seeds: tuple[int, ...] | None = None
    methods: tuple[str, ...] | None = None
    target: float | None = None
    run: dict[str, Any] = {}


class ComparisonFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A comparison's TOML file."""

    title: str
    methods: tuple[str, ...]
    """Presets, or names of ``[method.NAME]``."""
    seeds: tuple[int, ...] = (0, 1, 2)
    target: float | None = None
    """Accuracy to reach at least, or perplexity to reach at most."""
    reference: str | None = None
    """Method that the others are set against; default: the first."""
    budgets_s: tuple[float, ...] = ()
    budgets_bytes: tuple[int, ...] = ()
    run: dict[str, Any]
    """Settings of ``fedspine run`` that all methods share."""
    method: dict[str, dict[str, Any]] = {}
    scenario: dict[str, dict[str, Any]] = {}
    """Robustness: settings (a fleet with churn or drift) under which ``methods`` run once more."""
    quick: QuickTable | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One column of the comparison."""

    name: str
    """Unique; ``METHOD+SCENARIO`` under a scenario."""
    label: str
    about: str
    settings: Settings
    """On top of the shared ones."""
    preset: str = ""
    """Method of ``fedspine run`` that it starts from; empty = none. All that it sets is in ``settings`` too."""
    base: str
    """Name without the scenario."""
    scenario: str = ""

    @property
    def plays_shared_arms(self) -> bool:
        """Return whether ``arms`` of ``[run]``, which are LoRA's, fit its method; with other axes, it gives its own."""
        return method_of(self.preset).axes == method_of("").axes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunKey:
    """One run of a comparison."""

    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method} seed {self.seed}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A checked comparison. Make it with :meth:`load`."""

    title: str
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    target: float | None
    reference: str
    budgets_s: tuple[float, ...]
    budgets_bytes: tuple[int, ...]
    shared: Mapping[str, object]
    is_quick: bool

    @classmethod
    def load(cls, path: Path, *, quick: bool = False) -> Self:
        """Read and check a comparison.

        Raises:
            ConfigError: the file cannot be read, a key or method is unknown, a value is wrong, or a method changes a
                setting that must be the same for all.
            ArmError: an arm is outside its range.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            msg = f"comparison {path} cannot be read: {why}"
            raise ConfigError(msg) from error
        try:
            file = msgspec.convert(tomllib.loads(text), ComparisonFile)
            return cls.of(file, quick=quick)
        except tomllib.TOMLDecodeError as error:
            msg = f"comparison {path} is not TOML: {error}"
            raise ConfigError(msg) from error
        except msgspec.ValidationError as error:
            msg = f"comparison {path}: {malformed(error, ComparisonFile)}"
            raise ConfigError(msg) from error
        except (ConfigError, ArmError) as error:
            msg = f"comparison {path}: {error}"
            raise type(error)(msg) from error

    @classmethod
    def of(cls, file: ComparisonFile, *, quick: bool = False) -> Self:
        """A comparison from the contents of its file; see :meth:`load`."""
        changes = (file.quick or QuickTable()) if quick else QuickTable()
        shared = {**file.run, **changes.run}
        if given_here := sorted(SET_HERE & set(shared)):
            msg = f"setting {given_here[0]!r} is set for each run by the comparison: leave it out of [run]"
            raise ConfigError(msg)
        seeds = tuple(dict.fromkeys(changes.seeds or file.seeds))
        names = tuple(dict.fromkeys(changes.methods or file.methods))
        if not seeds or not names:
            msg = "expected one seed or more, and one method or more"
            raise ConfigError(msg)
        methods = _methods(file, names, shared)
        reference = file.reference or names[0]
        comparison = cls(
            title=file.title,
            methods=methods,
            seeds=seeds,
            target=file.target if changes.target is None else changes.target,
            reference=reference,
            budgets_s=file.budgets_s,
            budgets_bytes=file.budgets_bytes,
            shared=shared,
            is_quick=quick,
        )
        if reference not in {method.name for method in methods}:
            msg = f"reference {reference!r} is not among the methods: {', '.join(names)}"
            raise ConfigError(msg)
        for key in comparison.run_keys:
            comparison.settings(key)
        return comparison

    @property
    def run_keys(self) -> tuple[RunKey, ...]:
        """All runs, all methods of the first seed first."""
        return tuple(RunKey(method=method.name, seed=seed) for seed in self.seeds for method in self.methods)

    def method(self, name: str) -> Method:
        """The method of that name."""
        return next(method for method in self.methods if method.name == name)

    def settings(self, key: RunKey, *, artifact: Path | None = None, calibration: Path | None = None) -> RunSettings:
        """Settings of one run.

        Args:
            key: which one.
            artifact: artifact to use in place of an export.
            calibration: file of measured step times that all runs share.

        Raises:
            ConfigError: a wrong setting; says of which method.
            ArmError: an arm outside its range.
        """
        shared = {
            "sparsity": resolve({**UNSAID, **self.shared}).sparsity,
            **self.shared,
        }  # one sparsity for all methods, whatever their arms are
        method = self.method(key.method)
        if not method.plays_shared_arms:
            shared.pop("arms", None)
        for name in needed(passed_over(method.preset)):
            shared.pop(name, None)  # only other methods need it; this one has its own
        given: Settings = {
            **UNSAID,
            "compact": False,
            "method": method.preset,
            **shared,
            **method.settings,
            "seed": key.seed,
        }
        if artifact is not None:
            given |= {"artifact": str(artifact), "new_head": False}  # the export has made the head
        if calibration is not None:
            given["calibration"] = str(calibration)
        try:
            return resolve(given)
        except FedSpineError as error:
            msg = f"method {key.method}: {as_key(error)}"
            raise type(error)(msg) from error


def _methods(file: ComparisonFile, names: tuple[str, ...], shared: Settings) -> tuple[Method, ...]:
    try:
        settings = resolve({**UNSAID, **shared})
    except (ConfigError, ArmError) as error:
        raise as_key(error, "[run] ") from error
    common = Shared(
        rounds=settings.training.num_rounds,
        sparsity=settings.sparsity or 0.0,
        arms=settings.arms,
    )
    methods = {name: _method(name, file.method.get(name), common) for name in names}
    return (*methods.values(), *_under_scenarios(file, methods))


def _method(name: str, table: dict[str, Any] | None, common: Shared) -> Method:
    _check_name(name, "method")
    known = METHODS.names()
    if table is None and name not in known:
        msg = f"method {name!r} is not known; {nearest(name, known)} Or give a table [method.{name}]"
        raise ConfigError(msg)
    given = dict(table or {})
    own = {field: given.pop(field) for field in MethodTable.__struct_fields__ if field in given}
    head = msgspec.convert(own, MethodTable)
    base = head.preset or (name if name in known else None)
    preset = None if base is None else _preset(name, base)
    if isinstance(own_rounds := given.get("rounds"), int):
        common = dataclasses.replace(common, rounds=own_rounds)
    if preset and preset.method.axes != method_of("").axes:
        common = dataclasses.replace(common, arms=preset.method.axes.parse(preset.method.default_arms))
    own_settings = preset.settings(common) if preset else {}
    others = {**own_settings, **given}.keys() - passed_over(base or "")
    _check_comparable(name, others, SAME_FOR_ALL | SET_HERE)
    return Method(
        name=name,
        label=head.label or (preset.label if preset and name == base else name),
        about=head.about or (preset.about_and_source if preset else ""),
        settings={**own_settings, **given},
        preset=base or "",
        base=name,
    )


def _preset(name: str, base: str) -> Preset:
    try:
        return METHODS.find_or_import(base)
    except ConfigError as error:
        msg = str(error) if name == base else f"method {name}: preset: {error}"
        raise ConfigError(msg) from error


def _under_scenarios(file: ComparisonFile, methods: Mapping[str, Method]) -> list[Method]:
    found = []
    for scenario, table in file.scenario.items():
        _check_name(scenario, "scenario")
        given = dict(table)
        names = given.pop("methods", list(methods))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            msg = f"scenario {scenario}: methods must be a list of names"
            raise ConfigError(msg)
        _check_comparable(f"scenario {scenario}", given, SET_HERE)
        for name in names:
            if name in methods:  # --quick may exclude some methods
                method = methods[name]
                settings = {**method.settings, **given}
                full = f"{name}+{scenario}"
                found.append(dataclasses.replace(method, name=full, settings=settings, scenario=scenario))
            elif name not in METHODS.names() and name not in file.method:
                msg = f"scenario {scenario}: method {name!r} is not known"
                raise ConfigError(msg)
    return found


def _check_name(name: str, what: str) -> None:
    """Names are names of directories too."""
    if NAME.fullmatch(name) is None:
        msg = f"{what} {name!r} is not allowed: use 1 to 64 letters, digits, '.', '_' or '-', starting with no mark"
        raise ConfigError(msg)


def _check_comparable(who: str, given: Collection[str], fixed: frozenset[str]) -> None:
    if wrong := sorted(fixed & set(given)):
        msg = f"{who}: setting {wrong[0]!r} must be the same for all methods: set it in [run]"
        raise ConfigError(msg)
